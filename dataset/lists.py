"""Lists of images as text files that stay on disk: `<path>[ TAB <value>...]`, one record a line.

A list of ten million images costs ten million small numbers, not ten million Python strings: a
table keeps where each line starts and how long its path is, and reads paths when they are asked
for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from sdd_fiqa.errors import UserError
from sdd_fiqa.files import OpenFile, reading, replacing
from sdd_fiqa.number import plain_number

LABELPATH = "DATA.labelpath"
LABEL = "DATA.label"
PSEUDO_LABELS = "quality_pseudo_labels.txt"

# Who writes a list, for the message when it is missing.
_MAKERS = {LABEL: "gen_datalist.py", LABELPATH: "gen_datalist.py"} | {
    PSEUDO_LABELS: "gen_pseudo_labels.py"
}
_BLOCK = 1 << 24
_WIDEST = 40  # characters of a number
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors on Windows put it before the text
_TAB, _NEWLINE, _RETURN, _UNDERSCORE = 9, 10, 13, 95

Rows = npt.NDArray[np.int64]
Identities = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageList:
    """A text file of N records, its paths left on disk.

    Attributes:
        file: the text file.
        starts: (N,) int64, byte offset of each line.
        path_sizes: (N,) int32, bytes of each path.
        values: (N,) float64, the second column; empty when it was not asked for.
        sha256: of the whole file, hexadecimal.
        source: the file, open: another that takes its place meanwhile is never read for it.
    """

    file: Path
    starts: Rows
    path_sizes: npt.NDArray[np.int32]
    values: Values
    sha256: str
    source: OpenFile = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.starts)

    def path(self, row: int) -> str:
        """The path of one record, read from disk."""
        return next(self.paths_at([row]))

    def paths(self) -> Iterator[str]:
        """The paths of all records, in order, read in blocks."""
        for raw in self.raw_paths():
            yield raw.decode("utf-8")

    def raw_paths(self) -> Iterator[bytes]:
        """As `paths`, undecoded."""
        start = 0
        while start < len(self):
            first = int(self.starts[start])
            end = int(np.searchsorted(self.starts, first + _BLOCK))
            last = int(self.starts[end - 1]) + int(self.path_sizes[end - 1])
            block = os.pread(self.source.number, last - first, first)
            begins = (self.starts[start:end] - first).tolist()
            sizes = self.path_sizes[start:end].tolist()
            for begin, size in zip(begins, sizes, strict=True):
                yield block[begin : begin + size]
            start = end

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """The paths of some records, in the order asked for."""
        for row in rows:
            size, start = int(self.path_sizes[row]), int(self.starts[row])
            yield os.pread(self.source.number, size, start).decode("utf-8")

    def subset(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> ImageList:
        """The same file, some of its records, in rising order."""
        values = self.values[rows] if len(self.values) else self.values
        return replace(
            self, starts=self.starts[rows], path_sizes=self.path_sizes[rows], values=values
        )


def read_table(path: str | os.PathLike[str], value: str | None = None) -> ImageList:
    """Reads a list file into a `ImageList`.

    Args:
        path: the file.
        value: what the second column holds, in words, when it is a number that is needed
            ("identity index", "label", ...); None leaves the columns after the path alone.

    Raises:
        UserError: missing, empty, not UTF-8, or a line that is not `<path> TAB <number>`; the
            message names file, line and what was expected.
    """
    file_path = Path(path)
    parts: list[tuple[Rows, npt.NDArray[np.int32], Values]] = []
    digest = hashlib.sha256()
    rows = 0
    gap = b""
    maker = _MAKERS.get(file_path.name)
    missing = f"run {maker} first" if maker else "check its name"
    with reading(file_path, missing), open(file_path, "rb") as file:
        source = OpenFile(os.dup(file.fileno()))
        if file.peek(len(_BYTE_ORDER_MARK)).startswith(_BYTE_ORDER_MARK):
            digest.update(file.read(len(_BYTE_ORDER_MARK)))
        offset = file.tell()
        for block in whole_lines(file, _BLOCK, digest.update):
            if records := block.rstrip(b"\r\n"):  # a list may end in blank lines
                starts, sizes, values = _parse(file_path, gap + records + b"\n", rows, value)
                parts.append((starts + offset, sizes, values))
                rows += len(starts)
            if block.count(b"\n", len(records)) > bool(records):
                gap = b"\n"  # is refused where a record follows
            offset += len(block)
    if rows == 0:
        raise UserError(f"{file_path}: is empty; it must hold one `<path>` a line")
    starts, sizes, values = map(np.concatenate, zip(*parts, strict=True))
    return ImageList(file_path, starts, sizes, values, digest.hexdigest(), source)


def table_of(paths: Iterator[str], file: Path) -> ImageList:
    """Writes paths to a list file and reads it; none of them is kept in memory."""
    with replacing(file) as lines:
        for path in paths:
            lines.write(f"{path}\n")
    return read_table(file)


def whole_lines(
    file: IO[bytes], size: int, seen: Callable[[bytes], object] = lambda chunk: None
) -> Iterator[bytes]:
    """Blocks of whole lines of a file, each with its line end; `seen` gets the bytes read."""
    rest = b""
    while chunk := file.read(size):
        seen(chunk)
        block, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield block + newline
    if rest:
        yield rest + b"\n"


def read_labelpath(path: str | os.PathLike[str]) -> tuple[ImageList, Identities]:
    """Reads DATA.labelpath: the table and its (N,) int32 identity indices (any integers)."""
    table = read_table(path, "identity index")
    whole = (np.abs(table.values) < 2**31) & (np.round(table.values) == table.values)
    if not whole.all():
        row = int(np.flatnonzero(~whole)[0])
        raise UserError(
            f"{path}:{row + 1}: identity index {table.values[row]:g} is not a 32-bit integer"
        )
    return table, table.values.astype(np.int32)


def _parse(
    path: Path, block: bytes, rows_before: int, value: str | None
) -> tuple[Rows, npt.NDArray[np.int32], Values]:
    """Line starts, path sizes and second-column numbers of whole lines."""
    try:
        block.decode("utf-8")
        place, why = block.find(b"\0"), "holds a zero byte; a list is text, one `<path>` a line"
    except UnicodeDecodeError as error:
        place, why = error.start, "is not UTF-8 text; write the list again"
    if place >= 0:
        line = rows_before + block.count(b"\n", 0, place) + 1
        raise UserError(f"{path}:{line}: {why}")
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    ends = ends - (data[np.maximum(ends - 1, 0)] == _RETURN)  # written on Windows
    tabs = np.append(np.flatnonzero(data == _TAB), [len(data), len(data)])
    first = np.searchsorted(tabs, starts)
    path_ends = np.minimum(tabs[first], ends)  # a tab of a later line is beyond the end
    if np.any(path_ends <= starts):
        line = rows_before + int(np.flatnonzero(path_ends <= starts)[0]) + 1
        raise UserError(f"{path}:{line}: has no path; expected `<path> TAB <{value or 'value'}>`")
    numbers = np.empty(0)
    if value is not None:
        value_ends = np.minimum(tabs[first + 1], ends)
        numbers = _numbers(path, data, path_ends + 1, value_ends, rows_before, value)
    return starts.astype(np.int64), (path_ends - starts).astype(np.int32), numbers


def _numbers(
    path: Path,
    data: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    rows_before: int,
    value: str,
) -> Values:
    widths = ends - begins
    width = int(widths.max())
    if widths.min() > 0 and width <= _WIDEST:
        columns = np.arange(width)
        picked = data[np.minimum(begins[:, None] + columns, len(data) - 1)]
        text = np.where(columns < widths[:, None], picked, 0).astype(np.uint8)
        if not (text == _UNDERSCORE).any():  # Python reads 1_000 as a number
            with suppress(ValueError):
                return text.view(f"S{width}").ravel().astype(np.float64)
    spans = enumerate(zip(begins.tolist(), ends.tolist(), strict=True), rows_before + 1)
    line = next(line for line, (begin, end) in spans if not _is_number(data[begin:end].tobytes()))
    raise UserError(f"{path}:{line}: expected `<path> TAB <{value}>`, a number after the TAB")


def _is_number(text: bytes) -> bool:
    try:
        plain_number(text.decode())
    except ValueError:
        return False
    return len(text) <= _WIDEST


def last_parts(path: str, count: int = 2) -> str:
    """The last `count` parts of a path: `a/b/c.jpg` -> `b/c.jpg`."""
    return "/".join(path.rsplit("/", count)[-count:])


def refuse_repeats(table: ImageList) -> None:
    """Raises UserError on a path listed twice: an image would be its own mate."""
    if len(again := repeated_rows(table)[1]):
        row = int(again[0])
        raise UserError(f"{table.file}:{row + 1}: {table.path(row)} is listed twice; list it once")


def repeated_rows(table: ImageList) -> tuple[Rows, Rows]:
    """Rows whose path is listed again, and the rows that repeat them, of one length."""
    order, keys = _sorted_keys(table)
    same = keys[1:] == keys[:-1]
    return order[:-1][same], order[1:][same]


def join(left: ImageList, right: ImageList) -> Rows:
    """For every record of `left`, the row of `right` with the same path, or -1.

    `./a` is taken as `a`. Where no path at all matches, the last two parts of the paths are
    compared instead, if those are unique in both tables.

    Raises:
        UserError: `right` holds a path twice.
    """
    order, others = _sorted_keys(right)
    if np.any(others[1:] == others[:-1]):
        refuse_repeats(right)
    rows = _find(_keys(left), order, others)
    if np.all(rows < 0):
        short, (order, others) = _keys(left, short=True), _sorted_keys(right, short=True)
        if len(np.unique(short)) == len(short) and not np.any(others[1:] == others[:-1]):
            rows = _find(short, order, others)
    return rows


def _find(keys: Rows, order: Rows, others: Rows) -> Rows:
    """For each key the row of the same one among others, which are sorted; else -1."""
    if not len(others):
        return np.full(len(keys), -1, np.int64)
    # Keys in ascending order walk through `others` once; at random, each would miss the cache.
    ascending = np.argsort(keys)
    at = np.minimum(np.searchsorted(others, keys[ascending]), len(others) - 1)
    rows = np.empty(len(keys), np.int64)
    rows[ascending] = np.where(others[at] == keys[ascending], order[at], -1)
    return rows


def place_in_group(groups: npt.NDArray[np.integer]) -> Rows:
    """(N,) numbers -> (N,) for each, how many equal ones come before it."""
    order = np.argsort(groups, kind="stable")
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
    return places


def _keys(table: ImageList, short: bool = False) -> Rows:
    """64-bit hashes of paths, or of their last two parts; they hold within one process only."""
    plain: Iterable[bytes | str] = map(methodcaller("removeprefix", b"./"), table.raw_paths())
    if short:
        plain = (last_parts(path).removeprefix("./") for path in table.paths())
    return np.fromiter(map(hash, plain), np.int64, len(table))


def _sorted_keys(table: ImageList, short: bool = False) -> tuple[Rows, Rows]:
    """The rows of a table in the order of their keys, and the keys in this order."""
    keys = _keys(table, short)
    order = np.argsort(keys, kind="stable")
    return order, keys[order]
