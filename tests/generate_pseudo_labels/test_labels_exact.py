"""The exact estimator against brute force over all pairs, and the laws it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import wasserstein_distance

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance import blocks, exact
from generate_pseudo_labels.distance.array_backend import TorchArrays
from generate_pseudo_labels.distance.blocks import group_by_identity
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.similarity_distance import (
    DistanceResult,
    TooFewOutsiders,
    similarity_distances,
)

EVERYBODY = 10**9

Floats = npt.NDArray[np.float32]
Identities = npt.NDArray[np.int32]


def faces_of(
    sizes: list[int],
    spread: tuple[float, float] = (0.4, 1.2),
    swapped: int = 0,
    dimension: int = 48,
) -> tuple[Floats, Identities]:
    """Synthetic embeddings (n, D) of identities of given sizes; some images change places."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    noise = rng.uniform(*spread, size=(len(y), 1)) * rng.standard_normal((len(y), dimension))
    f = rng.standard_normal((len(sizes), dimension))[y] + noise + 0.2
    if swapped:
        some = rng.choice(len(y), swapped, replace=False)
        f[some] = f[np.roll(some, 1)]
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32), y


def brute_force(f: Floats, y: Identities) -> npt.NDArray[np.float64]:
    """Q_i = W1(P_i, N_i) over all j, and the mean Pos-Sim and Neg-Sim (NaN without mates)."""
    s = f.astype(np.float64) @ f.astype(np.float64).T
    result = np.full((len(f), 3), np.nan)
    for i in range(len(f)):
        P_i, N_i = s[i, (y == y[i]) & (np.arange(len(f)) != i)], s[i, y != y[i]]
        if len(P_i):
            result[i] = wasserstein_distance(P_i, N_i), P_i.mean(), N_i.mean()
    return result


def found_by(f: Floats, y: Identities, pool_size: int = 1024, **options: Any) -> DistanceResult:
    settings = LabelSettings("exact", pool_size=pool_size)
    return similarity_distances(f, group_by_identity(y), settings, **options)


SETS: dict[str, dict[str, Any]] = {
    "sizes 1 to 60": {"sizes": list(range(1, 61, 3)) * 2},
    "mislabelled": {"sizes": [12] * 80, "swapped": 60},
    "overlapping": {"sizes": [10] * 80, "spread": (1.5, 6)},
    "one large": {"sizes": [8] * 60 + [700], "spread": (0.5, 3), "swapped": 20},
}


@pytest.mark.parametrize("name", SETS)
def test_against_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 256)
    monkeypatch.setattr(exact, "_PIECE", 300)  # pools and large identities come in pieces
    f, y = faces_of(**SETS[name])
    expected = brute_force(f, y)
    found = found_by(f, y, pool_size=256).distances
    difference = found.w1[:, 0] - expected[:, 0]
    assert np.array_equal(np.isnan(difference), (y % 20 == 0) & (name == "sizes 1 to 60"))
    assert np.sqrt(np.nanmean(difference**2)) < 1e-4
    assert np.allclose(found.pos, expected[:, 1], atol=1e-6, equal_nan=True)
    mates = ~np.isnan(expected[:, 0])
    assert np.allclose(found.neg[mates], expected[mates, 2], atol=1e-6)
    excess = (expected[:, 0] - expected[:, 1] + expected[:, 2]) / 2
    error = ((found.excess * found.w1[:, 0]) - excess)[mates]
    assert np.sqrt(np.mean(error**2)) < 1e-4
    everybody = found_by(f, y, pool_size=EVERYBODY).distances.w1[:, 0]
    assert np.allclose(everybody, expected[:, 0], atol=3e-6, equal_nan=True)


def test_a_larger_second_pool_stands_for_all_in_a_large_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact, "ALL_NEGATIVES", 100)
    monkeypatch.setattr(exact, "SECOND_POOL", 500)
    f, y = faces_of([10] * 150, spread=(1.5, 6))
    found = found_by(f, y, pool_size=100)
    overlapping, checked, squares = found.crossing
    assert overlapping > 1000 and checked > 0
    error = np.sqrt(np.mean((found.distances.w1[:, 0] - brute_force(f, y)[:, 0]) ** 2))
    said = np.sqrt(squares / checked)
    assert 0.4 < error / said < 2.5


def test_permuting_images_and_identities_permutes_the_distances() -> None:
    f, y = faces_of([5, 9, 30, 2, 12] * 4, swapped=10)
    order = np.random.default_rng(1).permutation(len(y))
    names = np.random.default_rng(2).permutation(20).astype(np.int32)
    groups = group_by_identity(names[y[order]])
    mixed = found_by(f[order], names[y[order]], EVERYBODY).distances.w1[:, 0]
    plain = found_by(f, y, pool_size=EVERYBODY).distances.w1[:, 0]
    assert np.allclose(mixed, plain[order][groups.rows], atol=1e-6)


def test_same_results_whatever_the_batches_threads_and_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    f, y = faces_of([3, 40, 2, 1, 9, 300, 5, 27] * 2, spread=(0.5, 3))
    whole = found_by(f, y).distances.w1
    batched = found_by(f, y, batch_rows=10_000, threads=2).distances.w1
    # Not to the last bit: on CPUs without AVX-512, OpenBLAS rounds a row of a product by the
    # number of rows beside it.
    assert np.allclose(batched, whole, rtol=0, atol=2e-7, equal_nan=True)
    sums: list[npt.NDArray[Any]] = []  # of each process in a first run; a second has their total

    class Processes(ProcessGroup):
        def add_up(self, array: npt.NDArray[Any], first_only: bool = False) -> npt.NDArray[Any]:
            sums.append(array.copy())
            return array if len(sums) <= 3 else np.asarray(sum(sums[:3]))

    def run(rank: int) -> Floats:
        return found_by(f, y, processes=Processes(rank, 3)).distances.w1

    for rank in range(3):
        run(rank)
    parts = [run(rank) for rank in range(3)]
    assert np.allclose(np.concatenate(parts), whole, rtol=0, atol=2e-7, equal_nan=True)


def test_the_torch_path_agrees_with_the_numpy_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)  # one batch of many blocks, and pieces among them
    f, y = faces_of([3, 40, 2, 1, 9, 300, 5, 27] * 2, spread=(0.5, 3), swapped=9)
    ours, twin = found_by(f, y).distances, found_by(f, y, arrays=TorchArrays("cpu")).distances
    for name in ("w1", "pos", "neg", "excess"):
        assert np.allclose(getattr(ours, name), getattr(twin, name), atol=3e-6, equal_nan=True)


def test_planted_faces_are_found_out() -> None:
    f, y = faces_of([12] * 40, dimension=256)
    f[[100, 300]] = f[[300, 100]]  # two people under each other's name
    rng = np.random.default_rng(0)
    before = found_by(f, y).distances
    assert np.flatnonzero(before.mislabelled()).tolist() == [100, 300]
    f[200] = f[200] + 2.5 * rng.standard_normal(256).astype(np.float32) / 16
    after = found_by(f, y).distances
    assert after.w1[200, 0] < 0.6 * before.w1[200, 0]
    assert np.abs(after.w1 - before.w1)[y != y[200]].max() < 0.02


def test_without_outsiders_there_is_no_distance() -> None:
    f, y = faces_of([30])
    with pytest.raises(TooFewOutsiders, match="leaves 0 images of others"):
        found_by(f, y)
