"""Areas, bootstrap, advice and leave-one-out quality: worked cases, oracles, laws."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import spearmanr, wasserstein_distance

from evaluation import leave_one_out as leave_one_out_module
from evaluation.edc.advice import advise
from evaluation.edc.areas import areas, quadrature, step_widths, theoretical_best
from evaluation.edc.bootstrap import draws, interval, resampled
from evaluation.edc.curves import Curve, Rules, evaluate
from evaluation.edc.gather import choose_images
from evaluation.edc.pairs import HeldPairs, Pairs, all_pairs
from evaluation.edc.study import differences, study
from evaluation.leave_one_out import leave_one_out

Values = npt.NDArray[np.float64]
FIXED_PAIRS = Rules("fixed", "pairs")


def separate_pairs(similarity: Values, quality: Values) -> tuple[HeldPairs, Values]:
    """Genuine pairs of two images each, with given similarities and qualities, and impostors.

    The impostor similarities are 0, .001, ..., .999: the threshold for FMR .1 lies above .899.
    """
    count = len(similarity)
    first, second = np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2)
    genuine = Pairs(similarity.astype(np.float32), first.astype(np.int32), second.astype(np.int32))
    at = np.arange(1000) % (count - 1)
    impostor = Pairs(
        (np.arange(1000) / 1000).astype(np.float32),
        first[at].astype(np.int32),
        first[at + 1].astype(np.int32),
    )
    ids = np.repeat(np.arange(count), 2).astype(np.int32)
    source = HeldPairs(ids, genuine, impostor, sampled=False)
    return source, np.repeat(quality, 2)


def curve_of(similarity: Values, quality: Values, rules: Rules = FIXED_PAIRS) -> Curve:
    source, scores = separate_pairs(similarity, np.asarray(quality, np.float64))
    return evaluate(source, {"q": scores}, [0.1], [rules])["q", 0.1, rules]


def made_curve(shares: list[float], fnmr: list[float], genuine: int = 10_000) -> Curve:
    points = len(shares)
    left = (genuine * (1 - np.array(shares))).astype(np.int64)
    return Curve(
        Rules("recomputed", "images"),
        1e-3,
        np.arange(points).astype(np.int32),
        np.arange(points),
        np.linspace(0, 10 * (points - 1), points),
        np.array(shares),
        np.ones(points, np.bool_),
        np.array(fnmr),
        np.nan_to_num(left * np.array(fnmr)).astype(np.int64),
        left,
        left,
        np.zeros(points, np.float32),
        (np.array(shares), np.array(fnmr)),
    )


def test_a_case_worked_by_hand() -> None:
    # Ten genuine pairs, two fail; the worst of quality fails, and the fourth worst.
    similarity = np.array([0.5, 0.95, 0.95, 0.5, *[0.95] * 6])
    curve = curve_of(similarity, np.arange(10.0))
    # g: 2/10, then 1/9, 1/8, 1/7 (one failure left), then 0 from 40 % on; each holds for .1.
    np.testing.assert_allclose(curve.fnmr[:6], [2 / 10, 1 / 9, 1 / 8, 1 / 7, 0, 0])
    found = areas(curve)
    assert found["stepwise_0.2"] == pytest.approx(0.1 * (2 / 10 + 1 / 9))
    assert found["stepwise_0.3"] == pytest.approx(0.1 * (2 / 10 + 1 / 9 + 1 / 8))
    # The trapezoid of the same points, straight between them, from 0 to .4 (then 0).
    whole = 0.1 * (0.1 + 1 / 9 + 1 / 8 + 1 / 7)
    assert found["aoc"] == pytest.approx(1 - whole / 0.2)
    part = 0.1 * (0.1 + 1 / 9 + 0.5 / 8)
    assert found["pauc_0.2"] == pytest.approx(part / (0.2 * 0.2))
    assert found["pauc_raw_0.2"] == pytest.approx(1000 * part)
    # Phi = 0, .05, .10, ...: the share really discarded at 5 % is 0, so the points are the same.
    assert found["auc"] == pytest.approx(whole)
    assert found["best_line_0.3"] == pytest.approx(0.2**2 / 2)
    assert found["best_0.3"] == pytest.approx(0.2 + 0.8 * np.log(0.8))


def test_equal_qualities_are_discarded_together_at_the_share_they_have() -> None:
    # Three pairs of quality 0, seven of 1: the only points are 0 and .3.
    curve = curve_of(np.array([0.5, 0.5, 0.95, 0.5, *[0.95] * 6]), np.array([0.0] * 3 + [1.0] * 7))
    assert curve.shares.tolist() == [0.0, 0.3]
    np.testing.assert_allclose(curve.fnmr, [0.3, 1 / 7])
    assert areas(curve)["stepwise_0.3"] == pytest.approx(0.3 * 0.3)
    # Up to .2 only the first point is reached: it is carried. Up to .95 the second is, from .3 on.
    assert areas(curve)["pauc_0.2"] == pytest.approx(1)
    assert areas(curve)["aoc"] == pytest.approx(1 - (0.3 * (0.3 + 1 / 7) / 2 + 0.65 / 7) / 0.3)


@pytest.mark.parametrize("start", [0.02, 0.2, 0.5])
def test_a_perfect_score_reaches_the_best_and_none_does_better(start: float) -> None:
    count = 1000
    fails = int(start * count)
    similarity = np.array([0.5] * fails + [0.95] * (count - fails))
    perfect = areas(curve_of(similarity, np.arange(count * 1.0)))
    reversed_ = areas(curve_of(similarity, -np.arange(count * 1.0)))
    chance = areas(curve_of(similarity, np.random.default_rng(1).random(count)))
    assert perfect["stepwise_0.3"] == pytest.approx(perfect["best_0.3"], abs=2 * start / count)
    for name in ("stepwise_0.3", "pauc_0.3", "auc"):
        assert perfect[name] < chance[name] < reversed_[name]
    assert perfect["aoc"] > chance["aoc"] > reversed_["aoc"]
    assert chance["aoc"] == pytest.approx(0.05, abs=0.25)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), fails=st.integers(1, 39), tied=st.booleans())
def test_no_score_leaves_the_bounds(seed: int, fails: int, tied: bool) -> None:
    generator = np.random.default_rng(seed)
    similarity = np.array([0.5] * fails + [0.95] * (40 - fails))
    quality = generator.random(40)
    if tied:
        quality = np.round(quality * 6)
    found = areas(curve_of(similarity, quality))["stepwise_0.3"]
    best = areas(curve_of(similarity, np.arange(40.0)))["stepwise_0.3"]
    worst = areas(curve_of(similarity, -np.arange(40.0)))["stepwise_0.3"]
    assert best - 1e-12 <= found <= worst + 1e-12


@pytest.mark.parametrize(("start", "limit"), [(0.05, 0.2), (0.4, 0.3), (1.0, 0.3), (0.0, 0.2)])
def test_theoretical_best_is_the_integral_it_says(start: float, limit: float) -> None:
    line, best = theoretical_best(start, limit)
    assert line == pytest.approx(quad(lambda x: max(start - x, 0), 0, limit, points=[start])[0])
    integral = quad(lambda x: max(start - x, 0) / (1 - x), 0, limit, points=[start])[0]
    assert best == pytest.approx(integral, abs=1e-9)


@settings(max_examples=50)
@given(steps=st.lists(st.floats(0.001, 0.4), min_size=0, max_size=20), limit=st.floats(0.05, 0.95))
def test_weights_integrate_constants_and_lines(steps: list[float], limit: float) -> None:
    shares = np.concatenate([[0.0], np.cumsum(steps)])
    assert quadrature(shares, limit).sum() == pytest.approx(limit)
    assert step_widths(shares, limit).sum() == pytest.approx(limit)
    last = shares[shares <= limit + 1e-12][-1]
    line = quadrature(shares, limit) @ shares
    assert line == pytest.approx(last**2 / 2 + (limit - last) * last)


def test_published_means() -> None:
    # SDD-FIQA's table prints the mean of its three FMRs: LFW .8284 .7993 .8170 -> .8149.
    assert np.mean([0.8284, 0.7993, 0.8170]) == pytest.approx(0.8149, abs=5e-5)


def noisy_set(seed: int, images: int = 120) -> tuple[Values, npt.NDArray[np.int64], Values]:
    generator = np.random.default_rng(seed)
    ids = generator.integers(images // 5, size=images)
    noise = generator.uniform(0.2, 2.5, size=images)
    centres = generator.normal(size=(images // 5, 24))
    return centres[ids] + noise[:, None] * generator.normal(size=(images, 24)), ids, -noise


@pytest.mark.parametrize("rules", [Rules("recomputed", "images"), Rules("fixed", "pairs")])
def test_bootstrap_is_the_weighted_count(rules: Rules) -> None:
    features, ids, quality = noisy_set(1)
    source = all_pairs(features, ids)
    curve = evaluate(source, {"q": quality}, [0.05], [rules])["q", 0.05, rules]
    found = resampled(source, curve, 70, seed=3)
    weights = draws(int(source.identities.max()) + 1, 0, 70, seed=3)
    pairs = source.genuine
    worse = np.minimum(curve.level[pairs.first], curve.level[pairs.second])
    for replicate in (0, 64, 69):  # the second block of replicates too
        of_pair = weights[replicate][source.identities[pairs.first]]
        for point in (0, len(curve.cuts) // 2):
            kept = worse >= curve.cuts[point]
            fails = kept & (pairs.similarity < curve.thresholds[point])
            expected = of_pair[fails].sum() / of_pair[kept].sum()
            assert found[replicate, point] == pytest.approx(expected)


def test_bootstrap_draws_depend_on_the_seed_alone() -> None:
    np.testing.assert_array_equal(draws(50, 10, 20, seed=1), draws(50, 0, 30, seed=1)[10:20])
    assert not np.array_equal(draws(50, 0, 5, seed=1), draws(50, 0, 5, seed=2))
    assert np.all(draws(50, 0, 20, seed=1).sum(axis=1) == 50)


def test_bootstrap_centres_on_the_measured_value_and_shows_clusters() -> None:
    features, ids, quality = noisy_set(2, images=400)
    source = all_pairs(features, ids)
    rules = Rules("recomputed", "images")
    curve = evaluate(source, {"q": quality}, [0.05], [rules])["q", 0.05, rules]
    found = resampled(source, curve, 400, seed=0)[:, 0]
    assert found.mean() == pytest.approx(curve.fnmr[0], rel=0.05)
    rate = float(curve.fnmr[0])
    assert found.std() > np.sqrt(rate * (1 - rate) / curve.genuine[0])  # pairs share images


def test_interval_needs_values() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert np.isnan(interval(np.array([np.nan] * 20 + [1.0] * 80))).all()


def test_study_orders_and_compares_scorers() -> None:
    features, ids, quality = noisy_set(3, images=300)
    source = all_pairs(features, ids)
    scores = {
        "chance": np.random.default_rng(0).random(300),
        "good": quality,
        "the same": quality * 2 + 1,
        "reversed": -quality,
    }
    rules = [Rules("recomputed", "images")]
    results = study("r", source, scores, [0.01], rules, replicates=200)
    assert [result.scorer for result in results[:2]] == ["good", "the same"]
    assert results[-1].scorer == "reversed"
    for result in results:
        low, high = result.intervals["aoc"]
        assert low < result.areas["aoc"] < high
    compared = differences(results, "aoc")
    assert len(compared) == 6
    against = {one.other.scorer: one for one in compared if one.better.scorer == "good"}
    assert against["reversed"].significant
    # Paired: two scorers of one order never differ, however wide their own intervals are.
    assert (against["the same"].low, against["the same"].high) == (0, 0)
    assert not against["the same"].significant
    lower_first = study("r", source, scores, [0.01], rules, area="pauc_0.3")
    assert lower_first[-1].scorer == "reversed" and lower_first[0].scorer == "good"


def test_advice_stops_where_nothing_is_won() -> None:
    shares = [0.0, 0.1, 0.2, 0.3, 0.4]
    found = advise(made_curve(shares, [0.10, 0.05, 0.02, 0.021, 0.0195]))
    assert found.enough == 2
    assert found.thresholds.tolist() == [0, 10, 20, 30, 40]
    assert advise(made_curve(shares, [0.1] * 5)).enough == 0
    falling = advise(made_curve(shares, [0.1, 0.08, 0.06, 0.04, 0.02]))
    assert falling.enough is None and falling.unknown == (
        "Discarding more helps up to the last share, 40.0%."
    )
    # Of 1,000 pairs at a rate of .004, none failing among the last 600 proves nothing.
    few = advise(made_curve(shares, [0.004, 0.004, 0.004, 0.004, 0.0], genuine=1000))
    assert few.enough is None and few.unknown.endswith("errors left at 0.0%: 4.")
    # What was refused is not advised on.
    assert len(advise(made_curve(shares, [0.1, 0.05, 0.05, np.nan, np.nan])).shares) == 3
    with pytest.raises(ValueError, match="cannot be shown: no advice"):
        advise(made_curve(shares, [np.nan] * 5))


def test_advice_takes_the_bootstrap_over_the_binomial() -> None:
    curve = made_curve([0.0, 0.5], [0.10, 0.05])
    generator = np.random.default_rng(0)
    unsure = np.stack([generator.normal(0.1, 0.1, 500), generator.normal(0.05, 0.1, 500)], axis=1)
    together = np.stack([unsure[:, 0], unsure[:, 0] / 2 - 1], axis=1)
    assert advise(curve).enough is None and "up to the last share" in advise(curve).unknown
    assert advise(curve, unsure).enough == 0
    assert advise(curve, together).enough is None


def brute_force_falls(features: Values, ids: npt.NDArray[np.int64]) -> Values:
    """Eq. 3-4 as written: FNMR at every FMR that the impostors can show, with and without x_i."""
    units = (features / np.linalg.norm(features, axis=1)[:, None]).astype(np.float32)
    similarity = units @ units.T

    def mean_fnmr(kept: npt.NDArray[np.int64]) -> float:
        first, second = np.triu_indices(len(kept), 1)
        pairs = similarity[kept[first], kept[second]]
        same = ids[kept[first]] == ids[kept[second]]
        impostors = np.sort(pairs[~same])[::-1]
        rates = []
        for k in range(len(impostors)):  # FMR in [k/n, (k+1)/n): k false matches are allowed
            threshold = np.nextafter(impostors[k], np.float32(2))
            assert np.mean(impostors >= threshold) <= k / len(impostors)
            rates.append(np.mean(pairs[same] < threshold))
        return float(np.mean(rates))

    everyone = np.arange(len(ids))
    whole = mean_fnmr(everyone)
    return np.array([whole - mean_fnmr(np.delete(everyone, image)) for image in everyone])


@pytest.mark.parametrize("seed", [1, 2])
def test_leave_one_out_is_the_papers_definition(seed: int) -> None:
    features, ids, _ = noisy_set(seed, images=36)
    np.testing.assert_allclose(
        leave_one_out(features, ids), brute_force_falls(features, ids), atol=1e-12
    )


def test_leave_one_out_counts_ties() -> None:
    generator = np.random.default_rng(3)
    features = generator.choice([-0.5, 0.5], size=(20, 4)).astype(np.float64)
    ids = np.arange(20) % 5
    np.testing.assert_allclose(
        leave_one_out(features, ids), brute_force_falls(features, ids), atol=1e-12
    )


def test_leave_one_out_falls_where_the_distance_is_small() -> None:
    features, ids, _ = noisy_set(4, images=300)
    falls = leave_one_out(features, ids)
    units = features / np.linalg.norm(features, axis=1)[:, None]
    similarity = units @ units.T
    mates = [(ids == ids[i]) & (np.arange(300) != i) for i in range(300)]
    own = [i for i in range(300) if mates[i].any()]
    w1 = [wasserstein_distance(similarity[i, mates[i]], similarity[i, ids != ids[i]]) for i in own]
    assert spearmanr(falls[own], w1).statistic < -0.5


def test_leave_one_out_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a genuine and an impostor pair must be left"):
        leave_one_out(np.eye(4), np.array([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="a genuine and an impostor pair must be left"):
        leave_one_out(np.empty((0, 4)), np.empty(0, np.int64))  # nobody has a mate
    monkeypatch.setattr(leave_one_out_module, "MAX_IMAGES", 3)
    with pytest.raises(ValueError, match="4 images: the exact leave-one-out takes at most 3"):
        leave_one_out(np.eye(4), np.array([0, 0, 1, 1]))


def test_choice_of_images() -> None:
    ids = np.array([5, 5, 5, 5, 7, 7, 9, 2, 2, 2])
    usable = np.ones(10, np.bool_)
    everyone = choose_images(ids, usable)
    assert everyone.tolist() == [True] * 6 + [False] + [True] * 3
    few = choose_images(ids, usable, max_per_id=2)
    assert [int(few[ids == i].sum()) for i in (5, 7, 9, 2)] == [2, 2, 0, 2]
    draws_ = {tuple(choose_images(ids, usable, max_per_id=2, seed=seed)) for seed in range(9)}
    assert len(draws_) > 1 and tuple(few) == tuple(choose_images(ids, usable, max_per_id=2))
    usable[4] = False  # its mate goes with it, unless single images are asked for
    assert not choose_images(ids, usable)[5]
    assert choose_images(ids, usable, min_per_id=1).sum() == 9
    assert choose_images(ids, usable, max_per_id=1, min_per_id=1).sum() == 4
