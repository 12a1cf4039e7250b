"""Laws that curves keep, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edc_faces import FOUR, faces
from evaluation.edc.areas import areas, refusal
from evaluation.edc.curves import DiscardRule, Rules, evaluate
from evaluation.edc.pairs import all_pairs
from evaluation.edc.thresholds import allowed_false_matches


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
    few = f"too few impostor pairs ({source.impostors:,}) for FMR 0.0001; use "
    assert str(refusal(never)).startswith(few)
    late = found["q", 0.01, FOUR[0]]
    assert 0.3 < late.reach < 0.95
    assert np.isnan(areas(late)["aoc"]) and np.isnan(areas(late)["auc"])
    assert np.isfinite(areas(late)["pauc_0.3"])
    assert f"for FMR 0.01 beyond {100 * late.reach:.0f} % discarded; use" in str(refusal(late))
    for refused, rules in ((never, FOUR[2]), (late, FOUR[0])):  # the suggested value works
        fmr = float(str(refusal(refused)).rpartition(" ")[2])
        assert refusal(evaluate(source, {"q": quality}, [fmr], [rules])["q", fmr, rules]) is None
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
