"""The limit of the published estimator: W1 between all positives and all negatives.

    W1(P_i, N_i) = mean(P_i) - mean(N_i) + 2 * integral (N_i^-1 - P_i^-1)+ du

Both means are exact and cost one product with the sum S of all embeddings:
mean(N_i) = (<f_i, S> - sum of s(i, j) over its identity) / (n - n_c). The last term is zero unless
N_i^-1 is above P_i^-1 somewhere. A pool of random images shows for which images that is possible.
Only those are compared with all others, or in a large set with a second, much larger pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Array, Indices, Mask
from generate_pseudo_labels.distance.blocks import Block, BlockBatch, counted
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, similarities_within
from generate_pseudo_labels.distance.results import BlockRunner, Distances
from generate_pseudo_labels.distance.wasserstein import may_cross, negative_excess_ragged

ALL_NEGATIVES = 20_000  # images up to which the second pool is all images
SECOND_POOL = 16_384  # images of the second pool in larger sets
_PIECE = 2048  # pool images, or mates, of one product
_CHECKED = 8  # images of a block for which two halves of the second pool are compared
_FIXED_POINT = 2.0**32

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """Random images that represent all.

    Attributes:
        positions: (M,) ascending.
        rows: (M, D) their unit rows.
        half: (M,) a random half of them.
    """

    positions: Indices
    rows: Array
    half: Mask

    def own(self, starts: Indices, stops: Indices) -> tuple[Indices, Indices]:
        """For identities as ranges of positions: their ranges of the pool."""
        return np.searchsorted(self.positions, starts), np.searchsorted(self.positions, stops)


def draw_pools(embedded: EmbeddedSet, size: int, seed: int) -> tuple[Pool, Pool]:
    """The first pool of `size` images and the second, larger one; each at most all images."""
    images = len(embedded.groups)
    second = images if images <= ALL_NEGATIVES else min(images, max(size, SECOND_POOL))
    size = min(size, images)
    rng = np.random.default_rng(seed)
    order = np.sort(rng.choice(images, second, replace=False))
    chosen = np.zeros(second, bool)
    chosen[rng.choice(second, size, replace=False)] = True
    half = rng.random(second) < 0.5
    rows = embedded.at(order)
    first = rows[embedded.arrays.device(np.flatnonzero(chosen))]
    return Pool(order[chosen], first, half[chosen]), Pool(order, rows, half)


def mean_embedding(
    embedded: EmbeddedSet, runner: BlockRunner, processes: ProcessGroup, weight: float
) -> Array:
    """(D,) float32: the mean of all unit rows.

    Blocks are summed in whole numbers of 2**-32, so the order of addition does not change the mean.
    `weight` is the share of an image's whole work, for the progress.
    """
    arrays = embedded.arrays
    sums: list[npt.NDArray[np.int64]] = []

    def work(batch: BlockBatch) -> None:
        faces, begin = embedded.span(batch.begin, batch.end), batch.begin
        parts = [faces[block.start - begin : block.stop - begin].sum(0) for block in batch.blocks]
        exactly = arrays.host(arrays.xp.stack(parts)).astype(np.float64) * _FIXED_POINT
        sums.append(np.rint(exactly).astype(np.int64).sum(axis=0))

    runner.run(work, weight)
    total = np.sum([np.zeros(embedded.source.shape[1], np.int64), *sums], axis=0)
    mean = processes.add_up(total).astype(np.float64) / (_FIXED_POINT * len(embedded.groups))
    return arrays.device(mean.astype(np.float32))


class SameIdentitySimilarities:
    """Similarities of a batch's R rows within their identities.

    Attributes:
        counts: (R,) mates of each row.
        total: (R,) the sum of its similarities, the one to itself included.
        itself: (R,) the similarity to itself.
        lowest: (R,) the smallest similarity to a mate; infinity without one.
    """

    def __init__(self, embedded: EmbeddedSet, batch: BlockBatch, faces: Array) -> None:
        """Computes them. Similarities within small identities are few, so they are kept."""
        self.embedded, self.batch, self.faces = embedded, batch, faces
        arrays = embedded.arrays
        xp = arrays.xp
        self.counts = (batch.stops - batch.starts)[batch.owners()] - 1
        self.itself = xp.einsum("ij,ij->i", faces, faces)
        self.total = xp.zeros_like(self.itself) + self.itself
        self.lowest = xp.full_like(self.itself, np.inf)
        self._grams: list[Array] = []  # (g s, s), by size
        self._group, self._place = np.full((2, len(faces)), -1)
        for number, (of, gram) in enumerate(similarities_within(arrays, batch.blocks, faces)):
            rows, diagonal = arrays.device(of), arrays.device(np.arange(of.shape[1]))
            self.total[rows] = gram.sum(1)
            self.itself[rows] = gram[:, diagonal, diagonal]
            gram[:, diagonal, diagonal] = np.inf
            self.lowest[rows] = xp.amin(gram, 1)
            self._grams.append(gram.reshape(-1, of.shape[1]))
            self._group[of] = number
            self._place[of] = np.arange(of.size).reshape(of.shape)
        for block in batch.blocks:
            if not block.whole:
                self._piece(block)

    def _piece(self, block: Block) -> None:
        """The rows of a piece of one large identity, whose mates are read."""
        xp = self.embedded.arrays.xp
        rows = slice(block.start - self.batch.begin, block.stop - self.batch.begin)
        some = np.arange(rows.start, rows.stop)
        self.total[rows] = 0
        for begin, similarities in self._read(some, block.starts):
            self.total[rows] += similarities.sum(1)
            self._blank(similarities, some, begin)
            self.lowest[rows] = xp.minimum(self.lowest[rows], xp.amin(similarities, 1))

    def sorted(self, some: Indices) -> tuple[Array, Indices]:
        """The sorted positives of some rows, one row after the other, and how many each has."""
        arrays = self.embedded.arrays
        counts = self.counts[some]
        first = np.cumsum(counts) - counts
        p = arrays.empty((int(counts.sum()),))
        kept = self._group[some]
        for number in np.unique(kept[kept >= 0]):
            mine = np.flatnonzero(kept == number)
            gram = self._grams[number][arrays.device(self._place[some[mine]])]
            self._put(p, first[mine], gram)
        pieces = np.flatnonzero(kept < 0)
        starts = self.batch.starts[self.batch.owners()[some[pieces]]]
        for start in np.unique(starts):
            mine = pieces[starts == start]
            bounds = start + np.array([0, counts[mine[0]] + 1])
            parts = []
            for begin, similarities in self._read(some[mine], bounds):
                self._blank(similarities, some[mine], begin)
                parts.append(similarities)
            self._put(p, first[mine], arrays.xp.concatenate(parts, 1))
        return p, counts

    def _put(self, p: Array, first: Indices, similarities: Array) -> None:
        """Sorts rows of similarities into their places, without the one to itself (the last)."""
        arrays = self.embedded.arrays
        into = first[:, None] + np.arange(similarities.shape[1] - 1)
        p[arrays.device(into)] = arrays.sort(similarities)[:, :-1]

    def _read(self, some: Indices, bounds: Indices) -> Iterator[tuple[int, Array]]:
        """Similarities of some rows to an identity's images: first position, (r, pieces)."""
        faces = self.faces[self.embedded.arrays.device(some)]
        start, stop = (int(bound) for bound in bounds)
        for begin in range(start, stop, _PIECE):
            yield begin, faces @ self.embedded.span(begin, min(begin + _PIECE, stop)).T

    def _blank(self, similarities: Array, some: Indices, begin: int) -> None:
        """Puts infinity in place of an image's similarity to itself."""
        arrays = self.embedded.arrays
        column = some + self.batch.begin - begin
        rows = np.flatnonzero((column >= 0) & (column < similarities.shape[1]))
        similarities[arrays.device(rows), arrays.device(column[rows])] = np.inf


@dataclass(frozen=True)
class ExactEstimator:
    """Distances of whole blocks of images, against all others.

    Attributes:
        embedded: the set.
        pool, second: random images that represent all; the second pool is larger.
        mean: (D,) of all unit rows.
        errors: for each batch: images that overlap, those whose error was measured, and the sum of
            their squared standard errors. The error is the second pool's, where there is one.
    """

    embedded: EmbeddedSet
    pool: Pool
    second: Pool
    mean: Array
    errors: list[tuple[int, int, float]] = field(default_factory=list)

    def distances(self, batch: BlockBatch) -> Distances:
        """Distances of the images of consecutive blocks; NaN for the only image of an identity."""
        arrays = self.embedded.arrays
        faces = self.embedded.span(batch.begin, batch.end)  # (R, D)
        mates = SameIdentitySimilarities(self.embedded, batch, faces)
        images = len(self.embedded.groups)
        sizes = arrays.device((mates.counts + 1).astype(np.float32))
        mean_p = (mates.total - mates.itself) / (sizes - 1).clip(1)
        # The mean over all images, without the part of the own identity. (einsum rounds the same
        # way in batches of any size.)
        to_all = arrays.xp.einsum("ij,j->i", faces, self.mean)
        mean_n = (to_all - mates.total / images) * (images / (images - sizes))
        excess = np.zeros(len(faces), np.float32)
        overlapping = self._overlapping(mates)
        whole = np.ones(len(self.second.positions), bool)
        excess[overlapping] = self._excess(mates, overlapping, [whole])[0]
        self._check(mates, overlapping)
        pos, neg = arrays.host(mean_p), arrays.host(mean_n)
        w1 = np.maximum(pos - neg + 2 * excess, 0)
        share = np.divide(excess, w1, out=np.zeros_like(w1), where=w1 > 0)
        w1[mates.counts == 0] = np.nan
        pos = np.where(mates.counts == 0, np.float32(np.nan), pos)
        return Distances(w1[:, None], pos, neg, share.clip(0, 1))

    def _overlapping(self, mates: SameIdentitySimilarities) -> Indices:
        """The rows whose N^-1 may be above P^-1 somewhere, by the first pool."""
        arrays, batch, faces = self.embedded.arrays, mates.batch, mates.faces
        xp = arrays.xp
        first, last = self.pool.own(batch.starts, batch.stops)
        highest = xp.full_like(faces[:, 0], -np.inf)
        for begin in range(0, len(self.pool.positions), _PIECE):
            products = self.pool.rows[begin : begin + _PIECE] @ faces.T  # (M, R)
            for owner in np.flatnonzero((last > begin) & (first < begin + _PIECE) & (last > first)):
                low, high = max(first[owner] - begin, 0), last[owner] - begin
                products[low:high, batch.rows[owner] : batch.rows[owner + 1]] = -np.inf
            highest = xp.maximum(highest, xp.amax(products, 0))
        # Most images are done here: they have no positive below any negative.
        some = np.flatnonzero(arrays.host(highest > mates.lowest))
        if len(self.pool.positions) > _PIECE:
            return some
        crossing = [some[:0]]
        absent = (last - first)[batch.owners()]
        for part in self._portions(some, len(self.pool.positions), mates):
            p, counts = mates.sorted(part)
            n = arrays.sort(products[:, arrays.device(part)].T)
            crossing.append(part[arrays.host(may_cross(arrays, p, counts, n, absent[part]))])
        return np.concatenate(crossing)

    def _portions(
        self, some: Indices, width: int, mates: SameIdentitySimilarities
    ) -> Iterator[Indices]:
        """Cuts rows into portions whose similarities are few enough to be sorted at a time."""
        width += int(mates.counts[some].max(initial=0))
        step = max(1, self.embedded.arrays.cells // width)
        for begin in range(0, len(some), step):
            yield some[begin : begin + step]

    def _excess(self, mates: SameIdentitySimilarities, rows: Indices, parts: list[Mask]) -> Float64:
        """(len(parts), r) integrals (N^-1 - P^-1)+ of some rows; N is a part of the second pool."""
        arrays, batch, pool = self.embedded.arrays, mates.batch, self.second
        owners = batch.owners()
        found = [np.empty((len(parts), 0))]
        for some in self._portions(rows, len(pool.positions), mates):
            p, counts = mates.sorted(some)
            n = mates.faces[arrays.device(some)] @ pool.rows.T  # (r, M); -inf to the own identity
            first, last = pool.own(batch.starts[owners[some]], batch.stops[owners[some]])
            row, column = counted(first, last - first)
            n[arrays.device(row), arrays.device(column)] = -np.inf
            integrals = []
            for part in parts:
                before = np.concatenate([[0], np.cumsum(part)])
                of_part = arrays.sort(n[:, arrays.device(np.flatnonzero(part))])
                absent = before[last] - before[first]
                integrals.append(negative_excess_ragged(arrays, p, counts, of_part, absent))
            found.append(arrays.host(arrays.xp.stack(integrals)))
        return np.concatenate(found, axis=1)

    def _check(self, mates: SameIdentitySimilarities, overlapping: Indices) -> None:
        """Notes the standard error of W1 of each block's first rows, by two halves of the pool."""
        checked = overlapping[:0]
        if len(self.second.positions) < len(self.embedded.groups):
            ends = np.array([block.stop - mates.batch.begin for block in mates.batch.blocks])
            block = np.searchsorted(ends, overlapping, side="right")
            nth = np.arange(len(block)) - np.searchsorted(block, block)
            checked = overlapping[nth < _CHECKED]
        # W1 holds the integral twice; the mean of two halves has half their difference's deviation.
        one, other = self._excess(mates, checked, [self.second.half, ~self.second.half])
        squares = float(((one - other) ** 2).sum())
        self.errors.append((len(overlapping), len(checked), squares))
