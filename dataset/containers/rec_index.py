"""The .idx of a .rec file: `key TAB offset`, one record a line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.lists import whole_lines
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing

_BLOCK = 1 << 22
_TAB, _NEWLINE = 9, 10

Keys = npt.NDArray[np.int64]


def index_path(path: str | os.PathLike[str]) -> Path:
    """The .idx that belongs to a .rec."""
    return Path(path).with_suffix(".idx")


def read_index(path: Path) -> tuple[Keys, Keys]:
    """Reads a .idx: keys, ascending, and offsets, (N,) int64 each.

    Raises:
        UserError: unreadable, or not lines of `key TAB offset`, or a key twice.
    """
    parts = []
    lines = 0
    try:
        with open(path, "rb") as file:
            for block in whole_lines(file, _BLOCK):
                parts.append(_index_rows(path, block, lines))
                lines += len(parts[-1])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    rows = np.concatenate(parts) if parts else np.empty((0, 2), np.int64)
    if not len(rows):
        raise UserError(f"{path}: is empty; delete it to have it rebuilt from the .rec")
    keys, offsets = rows[:, 0].copy(), rows[:, 1].copy()
    if np.any(keys[1:] <= keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise UserError(
                f"{path}: names record {keys[twice[0]]} twice; delete it to have it rebuilt"
            )
    return keys, offsets


def write_index(path: Path, keys: Keys, offsets: Keys) -> None:
    """Writes a .idx: (N,) keys and offsets."""
    with replacing(path) as file:
        for start in range(0, len(keys), 1 << 16):
            some = slice(start, start + (1 << 16))
            rows = zip(keys[some].tolist(), offsets[some].tolist(), strict=True)
            file.write("".join([f"{key}\t{offset}\n" for key, offset in rows]))


def _index_rows(path: Path, block: bytes, lines: int) -> Keys:
    """(n, 2) key and offset of whole lines."""
    text = np.frombuffer(block, np.uint8)
    ends, tabs = np.flatnonzero(text == _NEWLINE), np.flatnonzero(text == _TAB)
    if not block.translate(None, b"0123456789\t\r\n") and len(tabs) == len(ends):
        numbers = np.fromstring(block.decode("ascii"), np.int64, sep=" ")
        if len(numbers) == 2 * len(ends) and np.all(tabs < ends) and np.all(tabs[1:] > ends[:-1]):
            return numbers.reshape(-1, 2)
    for line, fields in enumerate(block.split(b"\n")):
        if not re.fullmatch(rb"[0-9]+\t[0-9]+\r?", fields):
            raise UserError(
                f"{path}:{lines + line + 1}: expected `key TAB offset`, two whole numbers; delete "
                "the file to have it rebuilt from the .rec"
            )
    raise AssertionError("each line is right, but all of them are not")
