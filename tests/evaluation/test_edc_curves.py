"""Curves against the plain definition, pair by pair."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edc_faces import FOUR, Floats, Ids, faces
from evaluation.edc import pairs as pairs_module
from evaluation.edc import thresholds as thresholds_module
from evaluation.edc.curves import Curve, Rules, evaluate
from evaluation.edc.pairs import PairSource, all_pairs, listed_pairs


class Plain:
    """The definition, slowly: every pair in a list, every state from scratch."""

    def __init__(
        self,
        similarity: Floats,
        first: Ids,
        second: Ids,
        same: npt.NDArray[np.bool_],
        scores: npt.NDArray[np.float64],
    ) -> None:
        self.similarity, self.same, self.scores = similarity, same, scores
        self.worse = np.minimum(scores[first], scores[second])

    def point(self, rules: Rules, fmr: float, percent: int) -> tuple[float, float, float]:
        """(share discarded, FNMR, threshold) for phi = percent / 100."""
        sorted_by = {
            "images": self.scores,
            "pairs": self.worse[self.same] if rules.threshold == "fixed" else self.worse,
        }[rules.discard]
        total = len(sorted_by)
        lowest_kept = max(
            value
            for value in set(self.scores.tolist())
            if 100 * int((sorted_by < value).sum()) <= percent * total
        )
        kept = self.worse >= lowest_kept
        share = int((sorted_by < lowest_kept).sum()) / total
        judged = kept if rules.threshold == "recomputed" else np.ones(len(kept), bool)
        threshold = self.threshold(self.similarity[judged & ~self.same], fmr)
        genuine = self.similarity[kept & self.same]
        if len(genuine) == 0:
            return share, self.point(rules, fmr, percent - 1)[1], threshold
        if np.isnan(threshold):
            return share, np.nan, np.nan
        return share, float((genuine < np.float32(threshold)).sum() / len(genuine)), threshold

    @staticmethod
    def threshold(impostors: Floats, fmr: float) -> float:
        allowed = int(Fraction(str(fmr)) * len(impostors))
        if allowed < 1:
            return np.nan
        return float(np.nextafter(np.sort(impostors)[::-1][allowed], np.float32(2)))


def plain_all(
    features: Floats, ids: Ids, scores: npt.NDArray[np.float64]
) -> tuple[Plain, Floats, Ids, Ids]:
    first, second = np.triu_indices(len(ids), 1)
    similarity = (features @ features.T)[first, second]
    return (
        Plain(similarity, first, second, ids[first] == ids[second], scores),
        similarity,
        first,
        second,
    )


def assert_equal(curve: Curve, plain: Plain) -> None:
    for percent in range(96):
        share, fnmr, threshold = plain.point(curve.rules, curve.fmr, percent)
        at = int(np.searchsorted(curve.shares, share))
        assert curve.shares[at] == share
        np.testing.assert_equal(curve.fnmr[at], fnmr)
        if not np.isnan(fnmr) and curve.genuine[at] > 0:
            assert curve.thresholds[at] == np.float32(threshold)
            assert curve.errors[at] == round(fnmr * curve.genuine[at])


def kinds_of_scores(quality: npt.NDArray[np.float64], kind: str) -> npt.NDArray[np.float64]:
    if kind == "tied":
        return np.round(quality * 12)
    if kind == "two values":
        return (quality > np.median(quality)).astype(float)
    return quality


@pytest.mark.parametrize("kind", ["distinct", "tied", "two values"])
@pytest.mark.parametrize("rules", FOUR)
def test_curves_equal_the_definition(rules: Rules, kind: str) -> None:
    features, ids, quality = faces(90, 25, seed=1)
    scores = kinds_of_scores(quality, kind)
    plain = plain_all(features, ids, scores)[0]
    found = evaluate(all_pairs(features, ids), {"q": scores}, [0.2, 0.01, 0.003], [rules])
    for curve in found.values():
        assert_equal(curve, plain)


@pytest.mark.parametrize("rules", FOUR)
def test_pair_lists_equal_the_definition(rules: Rules) -> None:
    features, ids, quality = faces(60, 12, seed=2)
    _, _, first, second = plain_all(features, ids, quality)
    generator = np.random.default_rng(3)
    some = generator.permutation(len(first))[:700]
    first, second = first[some], second[some]
    same = ids[first] == ids[second]
    similarity = (features @ features.T)[first, second]
    plain = Plain(similarity, first, second, same, quality)
    rows = first.astype(np.int32), second.astype(np.int32)
    source = listed_pairs(features, ids, *rows, same)
    found = evaluate(source, {"q": quality}, [0.1, 0.01], [rules])
    for curve in found.values():
        assert_equal(curve, plain)


@pytest.mark.parametrize("rules", FOUR)
def test_no_share_discarded_is_the_whole_set(rules: Rules) -> None:
    """The worst images may be in impostor pairs alone: nothing is discarded for them."""
    features, ids, quality = faces(60, 12, seed=2)
    _, _, first, second = plain_all(features, ids, quality)
    same = ids[first] == ids[second]
    worst = quality <= np.sort(quality)[20]
    kept = ~(same & (worst[first] | worst[second]))
    rows = first[kept].astype(np.int32), second[kept].astype(np.int32)
    source = listed_pairs(features, ids, *rows, same[kept])
    for curve in evaluate(source, {"q": quality}, [0.1], [rules]).values():
        assert curve.impostors[0] == np.count_nonzero(kept & ~same)
        assert curve.cuts[0] == 0


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(6, 40),
    identities=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    fmr=st.sampled_from([0.5, 0.1, 0.02]),
    levels=st.integers(1, 12),
)
def test_any_small_set_equals_the_definition(
    images: int, identities: int, seed: int, fmr: float, levels: int
) -> None:
    features, ids, quality = faces(images, identities, seed)
    if len(set(ids.tolist())) < 2 or len(set(ids.tolist())) == images:
        return
    scores = np.round(quality * levels)
    plain = plain_all(features, ids, scores)[0]
    for curve in evaluate(all_pairs(features, ids), {"q": scores}, [fmr], FOUR).values():
        assert_equal(curve, plain)


def test_small_blocks_bins_and_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, ids, quality = faces(150, 30, seed=4)
    scores = {"q": quality, "tied": np.round(quality * 9), "other": features[:, 0] + quality}
    fmrs = [0.05, 0.004]
    whole = evaluate(all_pairs(features, ids), scores, fmrs, FOUR)
    monkeypatch.setattr(pairs_module, "_ROWS", 8)
    monkeypatch.setattr(pairs_module, "_COLUMNS", 24)
    monkeypatch.setattr(thresholds_module, "_BINS", 16)
    monkeypatch.setattr(thresholds_module, "_SAMPLE_IMAGES", 60)
    monkeypatch.setattr(thresholds_module, "_FLUSH", 50)
    floors: list[float] = []
    guess = thresholds_module._floor

    def watched(*arguments: object) -> float:
        floors.append(guess(*arguments))  # type: ignore[arg-type]
        return floors[-1]

    monkeypatch.setattr(thresholds_module, "_floor", watched)
    pieces = evaluate(all_pairs(features, ids), scores, fmrs, FOUR[2:])
    assert floors[0] > -2, "the sample found no floor: the test would show nothing"
    pieces |= evaluate(all_pairs(features, ids), scores, fmrs, FOUR[:2])
    for key, curve in whole.items():
        np.testing.assert_array_equal(curve.thresholds, pieces[key].thresholds)
        np.testing.assert_array_equal(curve.fnmr, pieces[key].fnmr)


def test_a_floor_guessed_too_high_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    features, ids, quality = faces(80, 16, seed=5)
    right = evaluate(all_pairs(features, ids), {"q": quality}, [0.02], FOUR[:1])
    guess, calls = thresholds_module._floor, []

    def too_high(
        source: PairSource, subsets: list[thresholds_module.Subsets], wide: float
    ) -> float:
        calls.append(wide)
        return 0.9 if wide < np.inf else guess(source, subsets, wide)

    monkeypatch.setattr(thresholds_module, "_floor", too_high)
    again = evaluate(all_pairs(features, ids), {"q": quality}, [0.02], FOUR[:1])
    assert len(calls) == 3
    for key, curve in right.items():
        np.testing.assert_array_equal(curve.thresholds, again[key].thresholds)
