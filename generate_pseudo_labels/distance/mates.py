"""Similarities of images to all others of their own identity (their mates)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from generate_pseudo_labels.distance import Float32, Indices
from generate_pseudo_labels.distance.blocks import Block
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, by_size

PIECE = 2048  # mates of one product


class SameIdentitySimilarities:
    """Similarities of a block's R rows within their identities.

    Attributes:
        counts: (R,) mates of each row.
        total: (R,) the sum of its similarities, the one to itself included.
        itself: (R,) the similarity to itself.
        lowest: (R,) the smallest similarity to a mate; infinity without one.
    """

    def __init__(self, embedded: EmbeddedSet, block: Block, faces: Float32) -> None:
        """Computes them. Similarities within small identities are few, so they are kept."""
        self.embedded, self.block, self.faces = embedded, block, faces
        self.counts = np.diff(block.starts)[block.owners()] - 1
        self.itself = np.einsum("ij,ij->i", faces, faces)
        self.total = self.itself.copy()
        self.lowest = np.full_like(self.itself, np.inf)
        self._grams: list[Float32] = []  # (g s, s), by size
        self._group, self._place = np.full((2, len(faces)), -1)
        for number, group in enumerate(by_size(block)):
            members, rows = group.of(faces), group.rows
            gram = np.matmul(members, np.swapaxes(members, 1, 2))  # (g, s, s)
            diagonal = np.arange(rows.shape[1])
            self.total[rows] = gram.sum(1)
            self.itself[rows] = gram[:, diagonal, diagonal]
            gram[:, diagonal, diagonal] = np.inf
            self.lowest[rows] = gram.min(1)
            self._grams.append(gram.reshape(-1, rows.shape[1]))
            self._group[rows] = number
            self._place[rows] = np.arange(rows.size).reshape(rows.shape)
        if not block.whole:  # the mates of a piece are read
            everybody = np.arange(len(faces))
            self.total[:] = 0
            for begin, similarities in self._read(everybody):
                self.total += similarities.sum(1)
                self._blank(similarities, everybody, begin)
                self.lowest = np.minimum(self.lowest, similarities.min(1))

    def sorted(self, some: Indices) -> tuple[Float32, Indices]:
        """The sorted positives of some rows, one row after the other, and how many each has."""
        counts = self.counts[some]
        first = np.cumsum(counts) - counts
        p = np.empty(int(counts.sum()), np.float32)

        def put(
            mine: Indices, similarities: Float32
        ) -> None:  # without the one to itself, the last
            into = first[mine][:, None] + np.arange(similarities.shape[1] - 1)
            p[into] = np.sort(similarities)[:, :-1]

        if self.block.whole:
            kept = self._group[some]
            for number in np.unique(kept[kept >= 0]):
                mine = np.flatnonzero(kept == number)
                put(mine, self._grams[number][self._place[some[mine]]])
        else:
            start, stop = self.block.starts.tolist()
            read = np.empty((len(some), stop - start), np.float32)
            for begin, similarities in self._read(some):
                self._blank(similarities, some, begin)
                read[:, begin - start : begin - start + similarities.shape[1]] = similarities
            put(np.arange(len(some)), read)
        return p, counts

    def _read(self, some: Indices) -> Iterator[tuple[int, Float32]]:
        """Similarities of some rows to a large identity's images: first position, (r, pieces)."""
        faces = self.faces[some]
        start, stop = self.block.starts.tolist()
        for begin in range(start, stop, PIECE):
            yield begin, faces @ self.embedded.span(begin, min(begin + PIECE, stop)).T

    def _blank(self, similarities: Float32, some: Indices, begin: int) -> None:
        """Puts infinity in place of an image's similarity to itself."""
        column = some + self.block.start - begin
        rows = np.flatnonzero((column >= 0) & (column < similarities.shape[1]))
        similarities[rows, column[rows]] = np.inf
