"""The limit of the published estimator: W1 between all positives and all negatives.

    W1(P_i, N_i) = mean(P_i) - mean(N_i) + 2 * integral (N_i^-1 - P_i^-1)+ du

Both means are exact and cost one product with the sum S of all embeddings:
mean(N_i) = (<f_i, S> - sum of s(i, j) over its identity) / (n - n_c). The last term is zero unless
N_i^-1 lies above P_i^-1 somewhere. A pool of random images tells the images for which that may be
so; those alone are compared with everybody, or on a large set with a much larger pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.array_backend import Array
from generate_pseudo_labels.distance.blocks import Batch, Plan, Positions
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet
from generate_pseudo_labels.distance.mates import Mates
from generate_pseudo_labels.distance.results import Distances, OnThreads
from generate_pseudo_labels.distance.wasserstein import may_cross, wrong_way_ragged

ALL_NEGATIVES = 20_000  # images up to which the second pool is everybody
SECOND_POOL = 16_384  # images of the second pool above that
_PIECE = 2048  # pool images of one product
_CHECKED = 8  # images of a block for which the second pool is halved, to see its error
_FIXED_POINT = 2.0**32

AddUp = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Pool:
    """Random images that stand for all.

    Attributes:
        positions: (M,) ascending.
        rows: (M, D) their unit rows.
        half: (M,) a random half of them.
    """

    positions: Positions
    rows: Array
    half: npt.NDArray[np.bool_]

    def own(self, starts: Positions, stops: Positions) -> tuple[Positions, Positions]:
        """For identities as ranges of positions: the range of the pool that is theirs."""
        return np.searchsorted(self.positions, starts), np.searchsorted(self.positions, stops)


def draw_pools(embedded: EmbeddedSet, size: int, seed: int) -> tuple[Pool, Pool]:
    """The first pool of `size` images and the second, larger one; both at most everybody."""
    images = len(embedded.groups)
    second = images if images <= ALL_NEGATIVES else min(images, max(size, SECOND_POOL))
    size = min(size, images)
    rng = np.random.default_rng(seed)
    order = np.sort(rng.choice(images, second, replace=False))
    chosen = np.zeros(second, bool)
    chosen[rng.choice(second, size, replace=False)] = True
    half = rng.random(second) < 0.5
    rows = embedded.at(order)
    if size == second:
        pool = Pool(order, rows, half)
        return pool, pool
    first = rows[embedded.arrays.device(np.flatnonzero(chosen))]
    return Pool(order[chosen], first, half[chosen]), Pool(order, rows, half)


def mean_embedding(
    embedded: EmbeddedSet, plan: Plan, blocks: range, add_up: AddUp, over: OnThreads, share: float
) -> Array:
    """(D,) float32: the mean of all unit rows.

    Blocks are summed in whole numbers of 2**-32, so no order of addition changes the mean.

    Args:
        embedded: the set.
        plan: its blocks.
        blocks: this process's share of it.
        add_up: sums an array over the processes.
        over: the threads.
        share: of an image's whole work, for the progress.
    """
    arrays = embedded.arrays
    sums: list[npt.NDArray[np.int64]] = []

    def work(numbers: range) -> None:
        batch = plan.batch(numbers)
        faces, begin = embedded.span(batch.begin, batch.end), batch.begin
        parts = [faces[block.start - begin : block.stop - begin].sum(0) for block in batch.blocks]
        exactly = arrays.host(arrays.xp.stack(parts)).astype(np.float64) * _FIXED_POINT
        sums.append(np.rint(exactly).astype(np.int64).sum(axis=0))

    over.run(work, blocks, share)
    total = np.zeros(embedded.source.shape[1], np.int64)
    for part in sums:
        total += part
    mean = add_up(total).astype(np.float64) / (_FIXED_POINT * len(embedded.groups))
    return arrays.device(mean.astype(np.float32))


class ExactEstimator:
    """Distances of whole blocks of images, against everybody.

    Attributes:
        errors: (images checked, their summed squared standard error, images that overlapped), a
            row a batch; the second pool's error, where there is one.
    """

    def __init__(
        self, embedded: EmbeddedSet, plan: Plan, pools: tuple[Pool, Pool], mean: Array
    ) -> None:
        """Keeps what every block needs."""
        self.embedded, self.plan, self.mean = embedded, plan, mean
        self.pool, self.second = pools
        self.errors: list[tuple[int, float, int]] = []

    def distances(self, numbers: range) -> Distances:
        """The distances of the images of consecutive blocks; NaN where an identity has one."""
        batch = self.plan.batch(numbers)
        arrays = self.embedded.arrays
        faces = self.embedded.span(batch.begin, batch.end)  # (R, D)
        mates = Mates(self.embedded, batch, faces)
        owners = batch.owners()
        counts = (batch.stops - batch.starts)[owners]
        images, sizes = len(self.plan.groups), arrays.device(counts.astype(np.float32))
        mean_p = (mates.total - mates.itself) / (sizes - 1).clip(1)
        # All others' mean from everybody's; the own identity's share is taken out.
        to_all = arrays.xp.einsum(
            "ij,j->i", faces, self.mean
        )  # rounds alike in batches of any size
        mean_n = (to_all - mates.total / images) * (images / (images - sizes))
        wrong = np.zeros(len(faces), np.float32)
        overlapping = self._overlapping(batch, faces, mates)
        if len(overlapping):
            wrong[overlapping] = self._wrong_way(batch, faces, mates, overlapping)
        self._check(batch, faces, mates, overlapping)
        pos, neg = arrays.host(mean_p), arrays.host(mean_n)
        w1 = np.maximum(pos - neg + 2 * wrong, 0)
        share = np.divide(wrong, w1, out=np.zeros_like(w1), where=w1 > 0)
        w1[counts == 1] = np.nan
        pos = np.where(counts == 1, np.float32(np.nan), pos)
        return Distances(w1[:, None], pos, neg, share.clip(0, 1))

    def _overlapping(self, batch: Batch, faces: Array, mates: Mates) -> Positions:
        """The rows whose N^-1 may lie above P^-1 somewhere, by the first pool."""
        arrays = self.embedded.arrays
        xp = arrays.xp
        first, last = self.pool.own(batch.starts, batch.stops)
        highest = xp.full_like(faces[:, 0], -np.inf)
        for begin in range(0, len(self.pool.positions), _PIECE):
            products = self.pool.rows[begin : begin + _PIECE] @ faces.T  # (M, R)
            for owner in np.flatnonzero((last > begin) & (first < begin + _PIECE) & (last > first)):
                low, high = max(first[owner] - begin, 0), last[owner] - begin
                products[low:high, batch.rows[owner] : batch.rows[owner + 1]] = -np.inf
            highest = xp.maximum(highest, xp.amax(products, 0))
        # Most images are done here: no positive below any negative.
        some = np.flatnonzero(arrays.host(highest > mates.lowest))
        if len(self.pool.positions) > _PIECE or len(some) == 0:
            return some
        crossing = []
        absent = (last - first)[batch.owners()]
        for part in self._portions(some, len(self.pool.positions), mates):
            p, counts = mates.sorted(part)
            n = arrays.sort(products[:, arrays.device(part)].T)
            crossing.append(part[arrays.host(may_cross(arrays, p, counts, n, absent[part]))])
        return np.concatenate(crossing)

    def _portions(self, some: Positions, width: int, mates: Mates) -> Iterator[Positions]:
        """Cuts rows into portions whose similarities are few enough to be sorted at a time."""
        if len(some) == 0:
            return
        step = max(1, self.embedded.arrays.cells // (width + int(mates.counts[some].max())))
        for begin in range(0, len(some), step):
            yield some[begin : begin + step]

    def _wrong_way(
        self, batch: Batch, faces: Array, mates: Mates, overlapping: Positions
    ) -> npt.NDArray[np.float64]:
        """Integral (N^-1 - P^-1)+ of some rows, N being the second pool."""
        parts: list[npt.NDArray[np.float64]] = []
        for some in self._portions(overlapping, len(self.second.positions), mates):
            n, (first, last) = self._similarities(batch, faces, some)
            parts.append(self._sorted_wrong_way(*mates.sorted(some), n, last - first))
        return np.concatenate(parts)

    def _similarities(
        self, batch: Batch, faces: Array, some: Positions
    ) -> tuple[Array, tuple[Positions, Positions]]:
        """(r, M) similarities to the second pool, -inf to the own identity; where that stands."""
        arrays = self.embedded.arrays
        n = faces[arrays.device(some)] @ self.second.rows.T
        owners = np.searchsorted(batch.rows, some, side="right") - 1
        first, last = self.second.own(batch.starts[owners], batch.stops[owners])
        own = last - first
        rows = np.repeat(np.arange(len(some)), own)
        columns = np.arange(len(rows)) - np.repeat(np.cumsum(own) - own - first, own)
        n[arrays.device(rows), arrays.device(columns)] = -np.inf
        return n, (first, last)

    def _sorted_wrong_way(
        self, p: Array, counts: Positions, n: Array, absent: Positions
    ) -> npt.NDArray[np.float64]:
        arrays = self.embedded.arrays
        return arrays.host(wrong_way_ragged(arrays, p, counts, arrays.sort(n), absent))

    def _check(self, batch: Batch, faces: Array, mates: Mates, overlapping: Positions) -> None:
        """Notes the standard error of W1 of each block's first rows, by two halves of the pool."""
        if len(self.second.positions) == len(self.plan.groups):
            return self.errors.append((0, 0.0, len(overlapping)))
        ends = np.array([block.stop - batch.begin for block in batch.blocks])
        block = np.searchsorted(ends, overlapping, side="right")
        nth = np.arange(len(block)) - np.searchsorted(block, block)
        checked, squares = overlapping[nth < _CHECKED], 0.0
        for some in self._portions(checked, len(self.second.positions), mates):
            p, counts = mates.sorted(some)
            n, (first, last) = self._similarities(batch, faces, some)
            halves = []
            for half in (self.second.half, ~self.second.half):
                before = np.concatenate([[0], np.cumsum(half)])
                part = n[:, self.embedded.arrays.device(np.flatnonzero(half))]
                halves.append(self._sorted_wrong_way(p, counts, part, before[last] - before[first]))
            # W1 holds the integral twice; the mean of two halves has half their difference's
            # deviation.
            squares += float(((halves[0] - halves[1]) ** 2).sum())
        return self.errors.append((len(checked), squares, len(overlapping)))
