"""Writing `<path> TAB <number> ...` files of millions of lines without a Python object a line."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dataset.lists import ImageList
from sdd_fiqa.files import replacing

_TAB, _NEWLINE, _DOT, _MINUS, _ZERO = (np.uint8(ord(sign)) for sign in "\t\n.-0")
_CELLS = 1 << 22  # characters laid out at a time
_ROWS = 1 << 16

Characters = npt.NDArray[np.uint8]


def write_columns(
    path: str | os.PathLike[str],
    table: ImageList,
    rows: npt.NDArray[np.intp],
    columns: Sequence[tuple[npt.NDArray[np.floating], int]],
) -> None:
    """Writes one line for each of (n,) ascending rows of a table: its path and its numbers.

    A column is (n,) finite numbers below 1e9, and its decimals, at most 9. The file is written
    whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path, "wb") as target:
        start = 0
        while start < len(rows):
            some = rows[start : start + _ROWS]
            widths = table.path_sizes[some]
            # One long path must not widen a large block: fewer lines then.
            fit = np.maximum.accumulate(widths).astype(np.int64) * np.arange(1, len(some) + 1)
            some = some[: max(1, int(np.searchsorted(fit, _CELLS, side="right")))]
            stop = start + len(some)
            parts = [_paths(table, some)]
            parts += [_numbers(values[start:stop], decimals) for values, decimals in columns]
            parts.append(np.full((len(some), 1), _NEWLINE))
            text = np.concatenate(parts, axis=1).ravel()
            target.write(text[text != 0].tobytes())
            start = stop


def _paths(table: ImageList, rows: npt.NDArray[np.intp]) -> Characters:
    """(n, width) the paths of ascending records, filled up with NUL."""
    handle = table.source.number
    begins, sizes = table.starts[rows], table.path_sizes[rows]
    first, last = int(begins[0]), int(begins[-1]) + int(sizes[-1])
    width = int(sizes.max())
    if last - first > 4 * _CELLS:  # far apart: one read a path
        cells = np.zeros((len(rows), width), np.uint8)
        for row, begin, size in zip(cells, begins.tolist(), sizes.tolist(), strict=True):
            row[:size] = np.frombuffer(os.pread(handle, size, begin), np.uint8)
        return cells
    data = np.frombuffer(os.pread(handle, last - first, first) + bytes(width), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(data, width)
    cells = windows[begins - first]
    cells *= np.arange(width, dtype=np.int32) < sizes[:, None]
    return cells


def _numbers(values: npt.NDArray[np.floating], decimals: int) -> Characters:
    """(n, width) a TAB and the numbers in fixed point, NUL where a character is not needed."""
    units = np.rint(values.astype(np.float64) * 10**decimals).astype(np.int64)
    sizes = np.abs(units)
    largest = int(sizes.max(initial=0))
    if largest < 2**32:  # 32-bit divisions are much faster than 64-bit ones
        sizes = sizes.astype(np.uint32)
    whole = len(str(largest // 10**decimals))
    cells = np.zeros((len(values), 3 + whole + decimals), np.uint8)
    cells[:, 0] = _TAB
    cells[:, 1] = np.where(units < 0, _MINUS, 0)
    cells[:, 2 + whole] = _DOT
    for digit in range(whole + decimals):
        power = 10 ** (whole + decimals - 1 - digit)
        place = 2 + digit + (digit >= whole)
        cells[:, place] = (sizes // power % 10).astype(np.uint8) + _ZERO
        if digit < whole - 1:  # no leading zeros
            cells[sizes < power, place] = 0
    return cells
