"""A set of embeddings seen by position: unit rows, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance import Float32, Indices
from generate_pseudo_labels.distance.blocks import Block, Groups

Embeddings = Any  # (N, D) rows: an array, or a file that reads what is asked for

# The bits of a float16's exponent and fraction, shifted to their place in a float32, are the number
# times 2**-112. Its infinities and NaNs become 65536 and more.
_HALF_BITS = np.int32(0x8FFFE000 - 2**32)
_HALF_SCALE = np.float32(2.0**112)
_HALF_LIMIT = np.float32(65536.0**2)


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

    def span(self, start: int, stop: int) -> Float32:
        """(stop - start, D) unit rows of consecutive positions."""
        if self.groups.rows is None:
            return self._unit(self.source[start:stop], np.arange(start, stop))
        return self._take(self.groups.rows[start:stop])

    def at(self, positions: Indices) -> Float32:
        """(len(positions), D) unit rows of any positions."""
        return self._take(self.groups.rows_of(positions))

    def _take(self, rows: Indices) -> Float32:
        """Unit rows of some row numbers, read in the order of the file."""
        if len(rows) < 2 or np.all(rows[1:] > rows[:-1]):
            return self._unit(self.source[rows], rows)
        distinct, inverse = np.unique(rows, return_inverse=True)
        return self._unit(self.source[distinct][inverse], rows)

    def _unit(self, raw: npt.NDArray[Any], row_numbers: Indices) -> Float32:
        """float32 rows of length 1.

        Raises:
            UnusableRow: a row that is zero or too large, or holds NaN or infinity.
        """
        rows, squares = with_squares(raw)
        if not np.all((squares > 0) & (squares < np.inf)):
            bad = int(np.flatnonzero(~((squares > 0) & (squares < np.inf)))[0])
            fault = "is too large for float32" if np.isfinite(raw[bad]).all() else "is not finite"
            fault = "is zero" if squares[bad] == 0 else fault
            raise UnusableRow(int(row_numbers[bad]), fault)
        rows *= (1 / squares**0.5)[:, None]
        return rows


def with_squares(raw: npt.NDArray[Any]) -> tuple[Float32, Float32]:
    """(n, D) of any float type -> a copy as float32, and the squared norms of its rows."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses such rows
        if raw.dtype == np.float16:
            # By moving bits: five times as fast as numpy's own conversion.
            bits = raw.view(np.int16).astype(np.int32)
            np.left_shift(bits, 13, out=bits)
            np.bitwise_and(bits, _HALF_BITS, out=bits)
            rows = bits.view(np.float32)
            np.multiply(rows, _HALF_SCALE, out=rows)
            squares = np.einsum("ij,ij->i", rows, rows)
            if np.all(squares < _HALF_LIMIT):
                return rows, squares  # else far from unit rows: slower, but keeps inf and NaN
        rows = raw.astype(np.float32)
        return rows, np.einsum("ij,ij->i", rows, rows)


@dataclass(frozen=True)
class SameSize:
    """Identities of one size within a block.

    Attributes:
        starts: (g,) their first rows.
        rows: (g, size) all their rows.
    """

    starts: Indices
    rows: Indices

    def of(self, faces: Float32) -> Float32:
        """(g, size, D) the identities' rows of a block; a view where they are neighbours."""
        first, last = int(self.rows[0, 0]), int(self.rows[-1, -1]) + 1
        if last - first == self.rows.size:
            return faces[first:last].reshape(*self.rows.shape, -1)
        return faces[self.rows]


def by_size(block: Block) -> Iterator[SameSize]:
    """The identities that a block holds whole, by size; single images are left out."""
    if not block.whole:
        return
    starts, sizes = block.starts[:-1] - block.start, np.diff(block.starts)
    for size in np.unique(sizes[sizes > 1]).tolist():
        members = starts[sizes == size]
        yield SameSize(members, members[:, None] + np.arange(size))
