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

from generate_pseudo_labels.arrays import Array
from generate_pseudo_labels.distances import Distances, OnThreads
from generate_pseudo_labels.draws import Block, Plan, Positions
from generate_pseudo_labels.embedded_set import EmbeddedSet, by_size
from generate_pseudo_labels.wasserstein import may_cross, wrong_way_ragged

ALL_NEGATIVES = 20_000  # images up to which the second pool is everybody
SECOND_POOL = 16_384  # images of the second pool above that
_PIECE = 2048  # pool images, or mates, of one product
_CELLS = 1 << 20  # similarities that are sorted at a time
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

    def work(batch: range) -> None:
        for block in map(plan.block, batch):
            part = arrays.host(embedded.span(block.start, block.stop).sum(0)).astype(np.float64)
            sums.append(np.rint(part * _FIXED_POINT).astype(np.int64))

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
            row a block; the second pool's error, where there is one.
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
        parts = [self._block(self.plan.block(number)) for number in numbers]
        columns = zip(*((part.w1, part.pos, part.neg, part.wrong) for part in parts), strict=True)
        return Distances(*map(np.concatenate, columns))

    def _block(self, block: Block) -> Distances:
        arrays = self.embedded.arrays
        faces = self.embedded.span(block.start, block.stop)  # (R, D)
        starts, stops = block.bounds()
        positives = _WholeMates(self, block, faces) if block.whole else _Mates(self, block, faces)
        images, sizes = len(self.plan.groups), arrays.device((stops - starts).astype(np.float32))
        mean_p = (positives.total - positives.itself) / (sizes - 1).clip(1)
        # All others' mean from everybody's; the own identity's share is taken out.
        mean_n = (faces @ self.mean - positives.total / images) * (images / (images - sizes))
        wrong = np.zeros(len(starts), np.float32)
        overlapping = self._overlapping(block, faces, positives)
        if len(overlapping):
            wrong[overlapping] = self._wrong_way(block, faces, positives, overlapping)
        pos, neg = arrays.host(mean_p), arrays.host(mean_n)
        single = stops - starts == 1
        w1 = np.maximum(pos - neg + 2 * wrong, 0)
        share = np.divide(wrong, w1, out=np.zeros_like(w1), where=w1 > 0)
        w1[single] = np.nan
        pos = np.where(single, np.float32(np.nan), pos)
        return Distances(w1[:, None], pos, neg, share.clip(0, 1))

    def _overlapping(self, block: Block, faces: Array, positives: _Mates) -> Positions:
        """The images whose N^-1 may lie above P^-1 somewhere, by the first pool."""
        arrays = self.embedded.arrays
        xp = arrays.xp
        first, last = self.pool.own(block.starts[:-1], block.starts[1:])
        local = np.clip(block.starts, block.start, block.stop) - block.start
        highest = xp.full_like(faces[:, 0], -np.inf)
        for begin in range(0, len(self.pool.positions), _PIECE):
            products = self.pool.rows[begin : begin + _PIECE] @ faces.T  # (M, R)
            for owner in np.flatnonzero((last > begin) & (first < begin + _PIECE) & (last > first)):
                low, high = max(first[owner] - begin, 0), last[owner] - begin
                products[low:high, local[owner] : local[owner + 1]] = -np.inf
            highest = xp.maximum(highest, xp.amax(products, 0))
        # Most images are done here: no positive below any negative.
        some = np.flatnonzero(arrays.host(highest > positives.lowest))
        if len(self.pool.positions) > _PIECE or len(some) == 0:
            return some
        crossing = []
        starts, stops = block.bounds()
        for part in self._portions(some, len(self.pool.positions), stops - starts):
            p, counts = positives.sorted(part)
            n = arrays.sort(products[:, arrays.device(part)].T)
            absent = np.subtract(*self.pool.own(starts[part], stops[part])[::-1])
            crossing.append(part[arrays.host(may_cross(arrays, p, counts, n, absent))])
        return np.concatenate(crossing)

    def _portions(self, some: Positions, width: int, sizes: Positions) -> Iterator[Positions]:
        """Cuts images into portions whose similarities fit the cache."""
        step = max(1, _CELLS // (width + int(sizes[some].max())))
        for begin in range(0, len(some), step):
            yield some[begin : begin + step]

    def _wrong_way(
        self, block: Block, faces: Array, positives: _Mates, overlapping: Positions
    ) -> npt.NDArray[np.float64]:
        """Integral (N^-1 - P^-1)+ of some images, N being the second pool."""
        starts, stops = block.bounds()
        parts: list[npt.NDArray[np.float64]] = []
        for some in self._portions(overlapping, len(self.second.positions), stops - starts):
            p, counts = positives.sorted(some)
            n, (first, last) = self._similarities(faces, some, starts[some], stops[some])
            if not parts:
                self._check(p, counts, n, first, last, len(overlapping))
            parts.append(self._sorted_wrong_way(p, counts, n, last - first))
        return np.concatenate(parts)

    def _similarities(
        self, faces: Array, some: Positions, starts: Positions, stops: Positions
    ) -> tuple[Array, tuple[Positions, Positions]]:
        """(r, M) similarities to the second pool, -inf to the own identity; where that stands."""
        arrays = self.embedded.arrays
        n = faces[arrays.device(some)] @ self.second.rows.T
        first, last = self.second.own(starts, stops)
        for row in np.flatnonzero(last > first).tolist():
            n[row, first[row] : last[row]] = -np.inf
        return n, (first, last)

    def _sorted_wrong_way(
        self, p: Array, counts: Positions, n: Array, absent: Positions
    ) -> npt.NDArray[np.float64]:
        arrays = self.embedded.arrays
        return arrays.host(wrong_way_ragged(arrays, p, counts, arrays.sort(n), absent))

    def _check(
        self,
        p: Array,
        counts: Positions,
        n: Array,
        first: Positions,
        last: Positions,
        overlapping: int,
    ) -> None:
        """Notes the standard error of W1 of a block's first images, from two halves of the pool."""
        if len(self.second.positions) == len(self.plan.groups):
            return self.errors.append((0, 0.0, overlapping))
        arrays, rows = self.embedded.arrays, min(len(counts), _CHECKED)
        p, counts = p[: int(counts[:rows].sum())], counts[:rows]
        halves = []
        for half in (self.second.half, ~self.second.half):
            before = np.concatenate([[0], np.cumsum(half)])
            absent = before[last[:rows]] - before[first[:rows]]
            part = n[:rows][:, arrays.device(np.flatnonzero(half))]
            halves.append(self._sorted_wrong_way(p, counts, part, absent))
        # W1 holds the integral twice; the mean of two halves has half their difference's deviation.
        squares = float(((halves[0] - halves[1]) ** 2).sum())
        return self.errors.append((rows, squares, overlapping))


class _Mates:
    """Similarities within one large identity, of which a block is a piece; its mates are read."""

    def __init__(self, estimator: ExactEstimator, block: Block, faces: Array) -> None:
        """Computes for the block's R images: `total` with itself, `itself` and `lowest`."""
        self.embedded, self.block, self.faces = estimator.embedded, block, faces
        arrays = self.embedded.arrays
        xp = arrays.xp
        self.itself = xp.einsum("ij,ij->i", faces, faces)
        self.total = xp.zeros_like(self.itself)
        self.lowest = xp.full_like(self.itself, np.inf)
        for begin, similarities in self._pieces(np.arange(block.stop - block.start)):
            self.total += similarities.sum(1)
            self._blank(similarities, begin, np.arange(len(faces)))
            self.lowest = xp.minimum(self.lowest, xp.amin(similarities, 1))

    def sorted(self, some: Positions) -> tuple[Array, Positions]:
        """The sorted positives of some images, one after the other, and how many each has."""
        arrays = self.embedded.arrays
        start, stop = (int(bound) for bound in self.block.starts)
        p = arrays.empty((len(some), stop - start))
        for begin, similarities in self._pieces(some):
            self._blank(similarities, begin, some)
            p[:, begin - start : begin - start + similarities.shape[1]] = similarities
        counts = np.full(len(some), stop - start - 1)
        return arrays.sort(p)[:, : stop - start - 1].reshape(-1), counts

    def _pieces(self, some: Positions) -> Any:
        faces = self.faces[self.embedded.arrays.device(some)]
        start, stop = (int(bound) for bound in self.block.starts)
        for begin in range(start, stop, _PIECE):
            yield begin, faces @ self.embedded.span(begin, min(begin + _PIECE, stop)).T

    def _blank(self, similarities: Array, begin: int, some: Positions) -> None:
        """Puts infinity where an image meets itself."""
        arrays = self.embedded.arrays
        column = some + self.block.start - begin
        rows = np.flatnonzero((column >= 0) & (column < similarities.shape[1]))
        similarities[arrays.device(rows), arrays.device(column[rows])] = np.inf


class _WholeMates(_Mates):
    """Similarities within the identities that a block holds whole."""

    def __init__(self, estimator: ExactEstimator, block: Block, faces: Array) -> None:
        """As for a piece; the similarities themselves are few, and kept."""
        self.embedded, self.block, self.faces = estimator.embedded, block, faces
        arrays = self.embedded.arrays
        xp = arrays.xp
        self.itself = xp.einsum("ij,ij->i", faces, faces)
        self.total = xp.zeros_like(self.itself) + self.itself
        self.lowest = xp.full_like(self.itself, np.inf)
        count = len(faces)
        self.group_of, self.place = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.grams: list[Array] = []
        for number, group in enumerate(by_size([block])):
            members = group.of(arrays, faces)
            gram = xp.matmul(members, xp.swapaxes(members, 1, 2))  # (g, s, s)
            rows, diagonal = arrays.device(group.rows), arrays.device(np.arange(group.size))
            self.total[rows] = gram.sum(1)
            self.itself[rows] = gram[:, diagonal, diagonal]
            gram[:, diagonal, diagonal] = np.inf
            self.lowest[rows] = xp.amin(gram, 1)
            self.grams.append(gram.reshape(-1, group.size))
            self.group_of[group.rows] = number
            self.place[group.rows] = np.arange(group.rows.size).reshape(group.rows.shape)

    def sorted(self, some: Positions) -> tuple[Array, Positions]:
        """The sorted positives of some images, one after the other, and how many each has."""
        arrays = self.embedded.arrays
        counts = np.array([self.grams[group].shape[1] - 1 for group in self.group_of[some]])
        first = np.cumsum(counts) - counts
        p = arrays.empty((int(counts.sum()),))
        for number in np.unique(self.group_of[some]):
            mine = np.flatnonzero(self.group_of[some] == number)
            gram = self.grams[number][arrays.device(self.place[some[mine]])]
            into = first[mine][:, None] + np.arange(gram.shape[1] - 1)
            p[arrays.device(into)] = arrays.sort(gram)[:, :-1]
        return p, counts
