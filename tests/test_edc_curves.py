"""Curves against the plain definition, pair by pair, and against laws."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import pairs as pairs_module
from evaluation import thresholds as thresholds_module
from evaluation.areas import areas, refusal
from evaluation.edc import Curve, DiscardRule, Rules, evaluate, levels_of
from evaluation.pairs import PairSource, all_pairs, listed_pairs, sampled_pairs, unit_rows
from evaluation.thresholds import allowed_false_matches

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

FOUR = [
    Rules("recomputed", "images"),
    Rules("recomputed", "pairs"),
    Rules("fixed", "images"),
    Rules("fixed", "pairs"),
]


def faces(images: int, identities: int, seed: int) -> tuple[Floats, Ids, npt.NDArray[np.float64]]:
    """Embeddings of +-1/16, whose dot products are exact in float32, with their qualities.

    An image is its identity's code with some signs turned: the more, the worse its quality.
    """
    generator = np.random.default_rng(seed)
    ids = generator.integers(identities, size=images)
    codes = generator.choice([-1.0, 1.0], size=(identities, 256))
    turned = generator.uniform(0.05, 0.5, size=images)
    signs = np.where(generator.random((images, 256)) < turned[:, None], -1.0, 1.0)
    return (codes[ids] * signs / 16).astype(np.float32), ids, -turned


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


def test_small_blocks_bins_and_probes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, ids, quality = faces(150, 30, seed=4)
    scores = {"q": quality, "tied": np.round(quality * 9), "other": features[:, 0] + quality}
    fmrs = [0.05, 0.004]
    whole = evaluate(all_pairs(features, ids), scores, fmrs, FOUR)
    monkeypatch.setattr(pairs_module, "_ROWS", 8)
    monkeypatch.setattr(pairs_module, "_COLUMNS", 24)
    monkeypatch.setattr(thresholds_module, "_BINS", 16)
    monkeypatch.setattr(thresholds_module, "_PROBE_IMAGES", 60)
    monkeypatch.setattr(thresholds_module, "_FLUSH", 50)
    floors: list[float] = []
    guess = thresholds_module._floor

    def watched(*arguments: object) -> float:
        floors.append(guess(*arguments))  # type: ignore[arg-type]
        return floors[-1]

    monkeypatch.setattr(thresholds_module, "_floor", watched)
    pieces = evaluate(all_pairs(features, ids), scores, fmrs, FOUR[2:])
    assert floors[0] > -2, "the probe found no floor: the test would show nothing"
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


def test_order_of_images_and_scale_of_scores_change_nothing() -> None:
    features, ids, quality = faces(120, 20, seed=6)
    order = np.random.default_rng(7).permutation(120)
    given_order = evaluate(all_pairs(features, ids), {"q": quality}, [0.01], FOUR)
    other = evaluate(
        all_pairs(features[order], ids[order] * 17 - 5), {"q": np.exp(quality[order])}, [0.01], FOUR
    )
    for key, curve in given_order.items():
        np.testing.assert_array_equal(curve.shares, other[key].shares)
        np.testing.assert_array_equal(curve.fnmr, other[key].fnmr)
        np.testing.assert_equal(areas(curve), areas(other[key]))


@pytest.mark.parametrize("discard", ["images", "pairs"])
def test_recomputed_is_fixed_at_no_discard(discard: DiscardRule) -> None:
    features, ids, quality = faces(100, 15, seed=8)
    both = [Rules("recomputed", discard), Rules("fixed", discard)]
    found = evaluate(all_pairs(features, ids), {"q": quality}, [0.05], both)
    recomputed, fixed = (found["q", 0.05, rules] for rules in both)
    assert recomputed.fnmr[0] == fixed.fnmr[0] > 0
    assert recomputed.thresholds[0] == fixed.thresholds[0]
    assert np.any(recomputed.thresholds != recomputed.thresholds[0])
    assert np.all(fixed.thresholds == fixed.thresholds[0])


@pytest.mark.parametrize("rules", FOUR)
def test_a_constant_score_discards_nothing(rules: Rules) -> None:
    features, ids, _ = faces(100, 15, seed=9)
    curve = evaluate(all_pairs(features, ids), {"q": np.full(100, 3.0)}, [0.05], [rules])
    (only,) = curve.values()
    assert only.shares.tolist() == [0.0]
    assert areas(only)["aoc"] == pytest.approx(0.05)
    assert areas(only)["pauc_0.3"] == pytest.approx(1)


def test_pairs_discarded_together_are_images_discarded_at_another_share() -> None:
    # Every pair set that the pair rule can leave is all pairs of the images above some score.
    features, ids, quality = faces(100, 15, seed=10)
    found = evaluate(all_pairs(features, ids), {"q": quality}, [0.05], FOUR[:2])
    pairs = found["q", 0.05, FOUR[1]]
    kept = 100 - pairs.cuts
    np.testing.assert_allclose(1 - pairs.shares, kept * (kept - 1) / (100 * 99))


def test_sampled_impostors() -> None:
    features, ids, quality = faces(200, 20, seed=11)
    source = sampled_pairs(features, ids, 30_000, seed=1)
    again = sampled_pairs(features, ids, 30_000, seed=1)
    other = sampled_pairs(features, ids, 30_000, seed=2)
    listed = source.listed
    assert source.impostors == 30_000 and not source.exhaustive
    assert np.all(ids[listed.first] != ids[listed.second])
    np.testing.assert_array_equal(listed.first, again.listed.first)
    assert not np.array_equal(listed.first, other.listed.first)
    np.testing.assert_allclose(
        listed.similarity,
        np.sum(features[listed.first] * features[listed.second], axis=1),
        atol=1e-6,
    )
    whole = all_pairs(features, ids)
    np.testing.assert_array_equal(source.genuine.similarity, whole.genuine.similarity)
    exact = evaluate(whole, {"q": quality}, [0.05], FOUR)
    drawn = evaluate(source, {"q": quality}, [0.05], FOUR)
    for key, curve in exact.items():
        np.testing.assert_array_equal(curve.shares, drawn[key].shares)  # of all pairs, not the draw
        assert areas(curve)["aoc"] == pytest.approx(areas(drawn[key])["aoc"], abs=0.05)


def test_every_impostor_pair_is_drawn_alike() -> None:
    ids = np.array([0, 0, 0, 1, 1, 2])
    features = np.eye(6, dtype=np.float32)
    listed = sampled_pairs(features, ids, 110_000, seed=3).listed
    low, high = np.minimum(listed.first, listed.second), np.maximum(listed.first, listed.second)
    seen, counts = np.unique(low * 6 + high, return_counts=True)
    assert len(seen) == 11  # 15 pairs less 3 + 1 genuine ones
    assert np.all(np.abs(counts - 10_000) < 600)  # 6 standard deviations


@pytest.mark.parametrize("count", [1, 3, 9])
def test_sources_agree_on_counts(count: int) -> None:
    features, ids, quality = faces(50, count, seed=12)
    source = all_pairs(features, ids)
    tail = list(source.tail(-2.0))
    assert sum(len(part.similarity) for part in tail) == source.impostors
    assert len(source.genuine.similarity) + source.impostors == 50 * 49 // 2
    levels = levels_of(np.round(quality * 10))
    counted = np.zeros(len(levels), int)
    for part in tail:
        worse = np.minimum(levels.of_image[part.first], levels.of_image[part.second])
        counted += np.bincount(worse, minlength=len(levels))
    found = source.impostors_by_level(levels.of_image, len(levels))
    np.testing.assert_array_equal(found, counted)


def test_false_matches_allowed_are_those_of_the_decimal_number() -> None:
    # In binary floating point .29 * 100 is 28.999999999999996.
    assert allowed_false_matches(0.29, np.array([100, 99, 101])).tolist() == [29, 28, 29]
    assert allowed_false_matches(1e-4, np.array([30_000, 29_999])).tolist() == [3, 2]


def test_a_target_out_of_reach_is_refused_by_name() -> None:
    features, ids, quality = faces(60, 12, seed=13)
    source = all_pairs(features, ids)
    found = evaluate(source, {"q": quality}, [0.01, 1e-4], FOUR)
    never = found["q", 1e-4, FOUR[2]]
    assert np.all(np.isnan(never.fnmr)) and np.all(np.isnan(list(areas(never).values())))
    assert f"FMR 0.0001 cannot be shown with {source.impostors:,} impostor pairs" in str(
        refusal(never)
    )
    late = found["q", 0.01, FOUR[0]]
    assert 0.3 < late.reach < 0.95
    assert np.isnan(areas(late)["aoc"]) and np.isnan(areas(late)["auc"])
    assert np.isfinite(areas(late)["pauc_0.3"])
    assert f"largest phi that can be had: {late.reach:.2f}" in str(refusal(late))
    assert refusal(late, 0.3) is None
    assert refusal(found["q", 0.01, FOUR[2]]) is None


def test_the_last_value_is_carried_where_no_genuine_pair_is_left() -> None:
    ids = np.array([0, 0, *range(1, 99)])
    features = faces(100, 100, seed=14)[0]
    curve = evaluate(all_pairs(features, ids), {"q": np.arange(100.0)}, [0.05], [FOUR[2]])
    (only,) = curve.values()
    assert only.genuine.tolist() == [1] + [0] * (len(only.genuine) - 1)
    assert np.all(only.fnmr == only.fnmr[0])


def bad(**changes: object) -> Callable[[], object]:
    features, ids, quality = faces(20, 4, seed=15)
    given: dict[str, object] = {"ids": ids, "scores": quality, "fmr": 0.1, "features": features}
    given |= changes

    def run() -> object:
        source = all_pairs(given["features"], given["ids"])  # type: ignore[arg-type]
        return evaluate(source, {"q": given["scores"]}, [given["fmr"]], FOUR)  # type: ignore

    return run


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (bad(fmr=1.0), "FMR 1: must lie between 0 and 1"),
        (bad(fmr=0.0), "FMR 0: must lie between 0 and 1"),
        (bad(ids=np.arange(20)), "no genuine pair"),
        (bad(ids=np.zeros(20, int)), "no impostor pair"),
        (bad(scores=np.full(20, np.nan)), "not a finite number"),
        (bad(scores=np.zeros(19)), "scores for 20 images"),
        (bad(ids=np.zeros(19, int)), "20 embeddings, 19 identities"),
        (bad(features=np.zeros((20, 8), np.float32)), "embedding row 0 is zero or not finite"),
        (bad(features=np.zeros(20, np.float32)), r"must be \(n, D\)"),
    ],
)
def test_bad_input_is_named(run: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


def test_too_many_genuine_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "MAX_GENUINE", 10)
    with pytest.raises(ValueError, match="largest identity has 6 images; limit the images"):
        all_pairs(np.eye(8, dtype=np.float32), np.array([0] * 6 + [1] * 2))


def test_sampling_one_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="no impostor pair"):
        sampled_pairs(np.eye(4, dtype=np.float32), np.zeros(4, int), 5)


def test_rows_of_any_length_and_type_become_unit_rows() -> None:
    rows = np.random.default_rng(16).normal(size=(50, 7))
    units = unit_rows(rows * 100)
    np.testing.assert_allclose(units, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=1e-5)
    assert unit_rows(rows.astype(np.float16)).dtype == np.float32
