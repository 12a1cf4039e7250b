"""Similarities of images to all others of their own identity (their mates)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from generate_pseudo_labels.distance.array_backend import Array, Indices
from generate_pseudo_labels.distance.blocks import Block, BlockBatch
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, by_size

PIECE = 2048  # mates of one product


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
        for number, group in enumerate(by_size(batch.blocks)):
            members = group.of(arrays, faces)
            gram = xp.matmul(members, xp.swapaxes(members, 1, 2))  # (g, s, s)
            rows, diagonal = arrays.device(group.rows), arrays.device(np.arange(group.size))
            self.total[rows] = gram.sum(1)
            self.itself[rows] = gram[:, diagonal, diagonal]
            gram[:, diagonal, diagonal] = np.inf
            self.lowest[rows] = xp.amin(gram, 1)
            self._grams.append(gram.reshape(-1, group.size))
            self._group[group.rows] = number
            self._place[group.rows] = np.arange(group.rows.size).reshape(group.rows.shape)
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
        owners = np.searchsorted(self.batch.rows, some[pieces], side="right") - 1
        starts = self.batch.starts[owners]
        for start in np.unique(starts):
            mine = pieces[starts == start]
            bounds = start + np.array([0, counts[mine[0]] + 1])
            read = arrays.empty((len(mine), int(bounds[1] - start)))
            for begin, similarities in self._read(some[mine], bounds):
                self._blank(similarities, some[mine], begin)
                read[:, begin - start : begin - start + similarities.shape[1]] = similarities
            self._put(p, first[mine], read)
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
        for begin in range(start, stop, PIECE):
            yield begin, faces @ self.embedded.span(begin, min(begin + PIECE, stop)).T

    def _blank(self, similarities: Array, some: Indices, begin: int) -> None:
        """Puts infinity in place of an image's similarity to itself."""
        arrays = self.embedded.arrays
        column = some + self.batch.begin - begin
        rows = np.flatnonzero((column >= 0) & (column < similarities.shape[1]))
        similarities[arrays.device(rows), arrays.device(column[rows])] = np.inf
