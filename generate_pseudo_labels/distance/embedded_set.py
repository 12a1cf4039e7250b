"""A set of embeddings seen by position: unit rows on the device, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from generate_pseudo_labels.distance.array_backend import Array, Arrays, Indices
from generate_pseudo_labels.distance.blocks import Block, Groups

# (N, D) rows: an array, a tensor on a GPU, or a file that reads what is asked for.
Embeddings = Any
TOO_LARGE = "is too large for float32"


class UnusableRow(ValueError):
    """A row of embeddings that has no direction.

    Attributes:
        row: its number.
        fault: "is zero", "is not finite" or "is too large for float32".
    """

    def __init__(self, row: int, fault: str) -> None:
        super().__init__(f"row {row} {fault}")
        self.row = row
        self.fault = fault


@dataclass(frozen=True)
class EmbeddedSet:
    """The images of `groups` with their embeddings."""

    source: Embeddings
    groups: Groups
    arrays: Arrays

    def span(self, start: int, stop: int) -> Array:
        """(stop - start, D) unit rows of consecutive positions."""
        if self.groups.rows is None:
            return self._unit(self.source[start:stop], np.arange(start, stop))
        return self._take(self.groups.rows[start:stop])

    def at(self, positions: Indices) -> Array:
        """(len(positions), D) unit rows of any positions."""
        return self._take(self.groups.rows_of(positions))

    def _take(self, rows: Indices) -> Array:
        """Unit rows of some row numbers, read in the order of the file."""
        if len(rows) < 2 or np.all(rows[1:] > rows[:-1]):
            return self._unit(self.source[rows], rows)
        distinct, inverse = np.unique(rows, return_inverse=True)
        return self._unit(self.source[distinct][inverse], rows)

    def _unit(self, raw: Any, row_numbers: Indices) -> Array:
        """float32 rows of length 1.

        Raises:
            UnusableRow: a row that is zero or too large, or holds NaN or infinity.
        """
        rows, squares = self.arrays.rows(raw)
        if not bool(((squares > 0) & (squares < np.inf)).all()):
            values = self.arrays.host(squares)
            bad = int(np.flatnonzero(~((values > 0) & (values < np.inf)))[0])
            row = raw[bad] if isinstance(raw, np.ndarray) else self.arrays.host(raw[bad])
            fault = TOO_LARGE if np.isfinite(row).all() else "is not finite"
            fault = "is zero" if values[bad] == 0 else fault
            raise UnusableRow(int(row_numbers[bad]), fault)
        rows *= (1 / squares**0.5)[:, None]
        return rows


def similarities_within(
    arrays: Arrays, blocks: list[Block], faces: Array
) -> Iterator[tuple[Indices, Array]]:
    """The similarities within the identities that consecutive blocks hold whole, size by size.

    Yields:
        (g, s) the rows, among the (R, D) faces of the blocks, of g identities of s > 1 images; and
        (g, s, s) their similarities.
    """
    whole = [block.starts for block in blocks if block.whole]
    if not whole:
        return
    starts = np.concatenate([bounds[:-1] for bounds in whole]) - blocks[0].start
    sizes = np.concatenate([np.diff(bounds) for bounds in whole])
    order = np.argsort(sizes, kind="stable")
    cuts = np.flatnonzero(np.diff(sizes[order])) + 1
    for some in np.split(order, cuts):
        rows = starts[some][:, None] + np.arange(sizes[some[0]])
        if rows.shape[1] > 1:
            first, last = int(rows[0, 0]), int(rows[-1, -1]) + 1
            neighbours = last - first == rows.size  # then no row is copied
            members = faces[slice(first, last) if neighbours else arrays.device(rows)]
            members = members.reshape(*rows.shape, -1)
            yield rows, arrays.xp.matmul(members, arrays.xp.swapaxes(members, 1, 2))
