"""The published estimator against a plain per-image reference in the paper's notation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr, wasserstein_distance

from common.distributed import ProcessGroup
from generate_pseudo_labels import similarity_distance
from generate_pseudo_labels.distance import blocks, draws
from generate_pseudo_labels.distance.array_backend import Arrays, NumpyArrays, TorchArrays
from generate_pseudo_labels.distance.blocks import BlockPlan, group_by_identity, plan_blocks
from generate_pseudo_labels.distance.draws import draw_negatives, draw_positives, random_words
from generate_pseudo_labels.distance.embedded_set import UnusableRow
from generate_pseudo_labels.distance.results import BlockRunner, Distances, Progress
from generate_pseudo_labels.distance.wasserstein import negative_excess, negative_excess_ragged
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.labels import drop_top, quality_labels
from generate_pseudo_labels.similarity_distance import TooFewOutsiders, similarity_distances

PUBLISHED = LabelSettings()

Floats = npt.NDArray[np.float32]
Identities = npt.NDArray[np.int32]


def faces_of(sizes: list[int], swapped: int = 0) -> tuple[Floats, Identities]:
    """Synthetic embeddings (n, 32) of identities of given sizes; some images change places."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    centres = rng.standard_normal((len(sizes), 32))
    spread = rng.uniform(0.4, 1.2, (len(y), 1))
    f = centres[y] + spread * rng.standard_normal((len(y), 32)) + 0.2
    if swapped:
        some = rng.choice(len(y), swapped, replace=False)
        f[some] = f[np.roll(some, 1)]
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32), y


def reference(
    f: Floats, y: Identities, m: int = 24, K: int = 12, seed: int = 0
) -> npt.NDArray[np.float64]:
    """The published estimator as it reads: for repeat k, for image i, draw P_i and N_i, take W1."""
    rng = np.random.default_rng(seed)
    n = len(f)
    w1 = np.zeros((n, K))
    for k in range(K):
        for i in range(n):
            same = np.flatnonzero((y == y[i]) & (np.arange(n) != i))
            other = np.flatnonzero(y != y[i])
            P_i = f[rng.choice(same, min(m, len(same)), replace=False)] @ f[i]
            N_i = f[rng.choice(other, m, replace=False)] @ f[i]
            w1[i, k] = wasserstein_distance(P_i, N_i)
    return w1


def all_labelled(w1: Floats) -> Floats:
    return quality_labels(w1, np.ones(len(w1), bool))


def sampled(
    f: npt.NDArray[Any], y: Identities, settings: LabelSettings = PUBLISHED, **options: Any
) -> Distances:
    run = similarity_distances(f, group_by_identity(y), settings, **options)
    assert run.begin == 0
    return run.distances


@pytest.mark.parametrize("sizes", [[10] * 40, [2, 3, 60, 5, 31, 26, 25, 7] * 2, [3] * 60 + [300]])
def test_as_close_to_the_reference_as_it_is_to_itself(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 128)  # several blocks, and pieces of the largest identity
    f, y = faces_of(sizes, swapped=6)
    one, two = (reference(f, y, seed=seed) for seed in (1, 2))
    ours = sampled(f, y).w1
    # Raw distances: the noise of one image's mean over the repeats, and no bias.
    theirs = np.abs(one.mean(1) - two.mean(1)).mean()
    assert np.abs(ours.mean(1) - one.mean(1)).mean() < 1.15 * theirs
    assert abs(ours.mean() - (one.mean() + two.mean()) / 2) < 0.2 * theirs
    labels = [all_labelled(w1.astype(np.float32)) for w1 in (one, two, ours)]
    both = spearmanr(labels[0], labels[1])[0]
    assert spearmanr(labels[0], labels[2])[0] > both - 0.004


def test_every_outsider_is_drawn_equally_often_and_nobody_of_the_own_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draws, "NEGATIVE_GROUPS", 2)
    sizes = [4, 2, 6, 5, 3]
    groups = group_by_identity(np.repeat(np.arange(5), sizes).astype(np.int32))
    n, m, K = 20, 6, 12
    counts = np.zeros((n, n))
    plan = plan_blocks(groups)
    batch = plan.batch(range(len(plan)))
    for seed in range(60):
        shared_by_group, replacements = draw_negatives(batch, n, m, K, seed)
        for number, shared in enumerate(shared_by_group):
            block, group = batch.blocks[number // 2], number % 2
            images = np.arange(block.start + group, block.stop, 2)
            chosen = np.repeat(shared[None], len(images), 0)
            replaced = replacements[replacements[:, 0] == number]
            for _, k, slot, first, stop, other in replaced:
                chosen[first:stop, k, slot] = other
            for image, negatives in zip(images, chosen, strict=True):
                assert all(len(set(repeat)) == m for repeat in negatives)
                np.add.at(counts[image], negatives.ravel(), 1)
    y = np.repeat(np.arange(5), sizes)
    for own, drawn in zip(y, counts, strict=True):
        outside = y != own
        assert drawn[~outside].sum() == 0
        expected = 60 * K * m / outside.sum()
        # Drawn without replacement, so the counts spread less than Poisson's.
        assert np.abs(drawn[outside] / expected - 1).max() < 5 / np.sqrt(expected)


@pytest.mark.parametrize("size", [8, 26, 100, 101, 5000])
def test_mates_are_drawn_equally_often_and_alike_on_every_device(size: int) -> None:
    starts = np.arange(40) * size
    drawn = draw_positives(NumpyArrays(), starts, size, 5, 12, 0)
    assert drawn.shape == (40, draws.NEGATIVE_GROUPS, 12, 6)
    assert drawn.min() >= 0 and drawn.max() < size
    assert (np.diff(np.sort(drawn, axis=-1), axis=-1) > 0).all()  # nobody twice
    for slot in (0, 5):
        counts = np.bincount(drawn[..., slot].ravel() * 8 // size, minlength=8)
        expected = np.bincount(np.arange(size) * 8 // size) * (drawn[..., 0].size / size)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
    twin = draw_positives(TorchArrays("cpu"), starts, size, 5, 12, 0)
    assert np.array_equal(TorchArrays("cpu").host(twin), drawn)


def test_random_words_are_splitmix64() -> None:
    """Against the finaliser in whole numbers without an end."""

    def mixed(word: int, coordinate: int) -> int:
        word = (word + (coordinate + 1) * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    words = random_words(NumpyArrays(), -3, 2, np.array([5, 2**50]), 2, 3)
    for key, row in zip((5, 2**50), words, strict=True):
        for k, slot in np.ndindex(2, 3):
            expected = mixed(mixed(mixed(mixed(2**64 - 3, 2), key), k), slot)
            assert int(row[k, slot]) % 2**64 == expected


@pytest.mark.parametrize("arrays", [NumpyArrays(), TorchArrays("cpu")], ids=["numpy", "torch"])
def test_a_large_identity_may_have_fewer_mates_than_are_asked_for(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, y = faces_of([30, 20] + [3] * 20)
    whole = sampled(f, y, LabelSettings(fix_num=50))
    monkeypatch.setattr(blocks, "OWN_BLOCK", 8)
    monkeypatch.setattr(blocks, "BLOCK", 16)  # the first two come in pieces
    pieces = sampled(f, y, LabelSettings(fix_num=50), arrays=arrays)
    assert np.allclose(pieces.pos, whole.pos, atol=1e-6)  # all mates, every time


def test_same_seed_same_labels_whatever_the_batches_threads_and_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    f, y = faces_of([3, 40, 2, 1, 9, 300, 5, 27] * 2)
    whole = sampled(f, y)
    assert np.array_equal(sampled(f, y, batch_rows=10_000, threads=2).w1, whole.w1, equal_nan=True)
    groups = group_by_identity(y)
    parts = [
        similarity_distances(f, groups, PUBLISHED, processes=ProcessGroup(r, 3)).distances.w1
        for r in range(3)
    ]
    assert np.array_equal(np.concatenate(parts), whole.w1, equal_nan=True)
    assert not np.array_equal(sampled(f, y, LabelSettings(seed=1)).w1, whole.w1, equal_nan=True)


def test_the_torch_path_agrees_with_the_numpy_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)  # one batch of many blocks, and pieces among them
    f, y = faces_of([3, 40, 2, 1, 9, 300, 5, 27] * 2, swapped=9)
    f = f.astype(np.float16)
    ours, twin = sampled(f, y), sampled(f, y, arrays=TorchArrays("cpu"))
    for name in ("w1", "pos", "neg", "excess"):
        assert np.allclose(getattr(ours, name), getattr(twin, name), atol=2e-6, equal_nan=True)


def test_a_list_out_of_order_and_one_with_gaps() -> None:
    f, y = faces_of([12] * 20)
    order = np.random.default_rng(3).permutation(len(y))
    groups = group_by_identity(y[order])
    found = similarity_distances(f[order], groups, PUBLISHED).distances
    # The identities and the order within them differ, so the draws do; the estimate does not.
    back = np.empty((len(y), 12), np.float32)
    back[order[groups.rows]] = found.w1
    assert spearmanr(back.mean(1), sampled(f, y).w1.mean(1))[0] > 0.99
    usable = np.ones(len(y), bool)
    usable[[0, 5, 100]] = False
    with_gaps = group_by_identity(y, usable)
    f[~usable] = 0  # never looked at
    found = similarity_distances(f, with_gaps, PUBLISHED).distances
    alone = sampled(f[usable], y[usable])
    assert np.array_equal(found.w1, alone.w1)


def test_rows_of_any_length_and_float_type_have_the_same_labels() -> None:
    f, y = faces_of([12] * 20)
    scaled = f.astype(np.float64) * np.random.default_rng(0).uniform(0.1, 50, (len(f), 1))
    assert np.allclose(sampled(scaled, y).w1, sampled(f, y).w1, atol=1e-6)
    half = (f * 40).astype(np.float16)
    assert np.allclose(sampled(half, y).w1, sampled(f, y).w1, atol=2e-3)


def test_halves_become_floats_to_the_bit() -> None:
    bits = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = bits[np.isfinite(bits)]
    rows, _ = NumpyArrays().rows(finite.reshape(-1, 8))
    assert np.array_equal(rows.ravel(), finite.astype(np.float32))
    with np.errstate(invalid="ignore"):
        rows, squares = NumpyArrays().rows(np.array([[np.inf, 0], [np.nan, 1]], np.float16))
    assert not np.isfinite(squares).any()


@pytest.mark.parametrize("arrays", [NumpyArrays(), TorchArrays("cpu")], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "value, fault",
    [(0, "is zero"), (np.nan, "is not finite"), (1e300, "is too large for float32")],
)
@pytest.mark.filterwarnings("error")
def test_a_row_without_direction_is_named(arrays: Arrays, value: float, fault: str) -> None:
    f, y = faces_of([12] * 20)
    f = f.astype(np.float64)
    f[17] = value
    with pytest.raises(UnusableRow, match=fault) as caught:
        sampled(f, y, arrays=arrays)
    assert caught.value.row == 17


def test_too_few_outsiders() -> None:
    f, y = faces_of([30, 10, 13])
    with pytest.raises(TooFewOutsiders, match="23 images of others, fewer than the 24"):
        sampled(f, y)
    assert np.isfinite(sampled(f, y, LabelSettings(fix_num=23)).w1).all()


def test_an_image_without_mates_has_no_distance_but_is_an_outsider() -> None:
    f, y = faces_of([1, 1, 2] + [1] * 23)
    found = sampled(f, y)
    assert np.flatnonzero(~np.isnan(found.w1[:, 0])).tolist() == [2, 3]


@pytest.mark.parametrize("arrays", [NumpyArrays(), TorchArrays("cpu")], ids=["numpy", "torch"])
@pytest.mark.parametrize("a, b", [(1, 1), (1, 24), (7, 24), (24, 24), (60, 24), (13, 1), (12, 18)])
def test_two_means_and_the_negative_excess_are_w1(arrays: Arrays, a: int, b: int) -> None:
    rng = np.random.default_rng(a * 100 + b)
    p = np.sort(rng.normal(0.4, 0.2, (5, a)).astype(np.float32))
    n = np.sort(rng.normal(0.2, 0.3, (5, b)).astype(np.float32))

    def w1(p: Floats, n: Floats) -> Floats:
        excess = arrays.host(negative_excess(arrays, arrays.device(p), arrays.device(n)))
        return np.asarray(p.mean(1) - n.mean(1) + 2 * excess, np.float32)

    expected = [wasserstein_distance(x, y) for x, y in zip(p, n, strict=True)]
    assert np.allclose(w1(p, n), expected, atol=1e-6)
    assert np.allclose(w1(n, p), expected, atol=1e-6)
    assert np.allclose(w1(p * 3 + 1, n * 3 + 1), 3 * np.array(expected), atol=1e-6)
    assert np.allclose(w1(p, p + 1), 1, atol=1e-6)
    assert np.allclose(w1(p, np.repeat(p, 3, axis=1)), 0, atol=1e-6)


@pytest.mark.parametrize("arrays", [NumpyArrays(), TorchArrays("cpu")], ids=["numpy", "torch"])
def test_the_negative_excess_of_ragged_rows_against_the_quantile_functions(arrays: Arrays) -> None:
    rng = np.random.default_rng(5)
    counts, absent = np.array([1, 5, 30, 2, 7]), np.array([0, 3, 39, 12, 0])
    p = [np.sort(rng.uniform(-1, 1, count)).astype(np.float32) for count in counts]
    n = np.sort(rng.uniform(-0.5, 0.5, (5, 40)).astype(np.float32))
    n[4, 5:30] = n[4, 5]  # ties
    p[4][:] = n[4, 5]
    for row, skip in enumerate(absent):
        n[row, :skip] = -np.inf
    found = negative_excess_ragged(
        arrays, arrays.device(np.concatenate(p)), counts, arrays.device(n), absent
    )
    for row, skip in enumerate(absent):
        real = n[row, skip:].astype(np.float64)
        expected = (wasserstein_distance(p[row], real) - p[row].mean() + real.mean()) / 2
        assert abs(float(found[row]) - expected) < 1e-7


def test_labels_are_the_mean_of_ranges_and_dropping_takes_the_best() -> None:
    w1 = np.array([[1, 10], [2, 30], [3, 20], [9, 99]], np.float32)
    labelled = np.array([True, True, True, False])
    labels = quality_labels(w1, labelled)
    assert labels[:3].tolist() == [0, 75, 75] and np.isnan(labels[3])
    assert drop_top(labels, labelled, 34).tolist() == [False, False, True, False]
    assert not drop_top(labels, labelled, 33).any()
    with pytest.raises(ValueError, match="equal"):
        quality_labels(w1, np.array([True, False, False, False]))


def test_embeddings_that_are_equal_up_to_rounding_have_no_labels() -> None:
    rng, y = np.random.default_rng(0), np.repeat(np.arange(10), 6)
    rows = rng.standard_normal(64) * rng.uniform(0.1, 9, (60, 1))
    for settings in (PUBLISHED, LabelSettings("exact")):
        for constant in (rows, np.abs(rows[:, :1])):
            with pytest.raises(ValueError, match="all distances are equal up to rounding"):
                all_labelled(sampled(constant, y.astype(np.int32), settings).w1)


def test_a_gpu_has_few_batches_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a GB of its memory: a batch for each core of a server would not fit."""
    asked: list[int] = []

    def runner(
        plan: BlockPlan, blocks: range, rows: int, threads: int, progress: Progress | None
    ) -> BlockRunner:
        asked.append(threads)
        return BlockRunner(plan, blocks, rows, threads, progress)

    monkeypatch.setattr(similarity_distance, "BlockRunner", runner)
    f, y = faces_of([3] * 30)
    for arrays in (TorchArrays("cpu"), NumpyArrays()):
        sampled(f, y, arrays=arrays, threads=64)
    assert asked == [4, 64]
