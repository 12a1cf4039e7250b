"""The bytes of a .rec file and of its .idx: where records begin and end, and what is in them.

A .rec file is a sequence of records. Each begins with two little-endian words: the magic number,
and a word of a length (lower 29 bits) and a kind (upper 3 bits). Kind 0 is a whole record. Content
that holds the magic number itself is cut there into parts: the first, middle and last ones have
the kinds 1, 2, 3, and the magic number between them is left out. Content is padded to 4 bytes. It
begins with flag (uint32), label (float32), id and id2 (uint64). A flag above 0 is the number of
float32 labels that follow and replace the label. Then come the bytes of an image file. The .idx is
text, `key TAB offset`, one record a line. (dmlc-core, recordio.h; mxnet, recordio.py.)
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.lists import whole_lines
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import reading, replacing
from sdd_fiqa.storage import File

MAGIC = 0xCED7230A
MARK = struct.pack("<I", MAGIC)
_MARK = re.compile(re.escape(MARK))
MAX_IDENTITIES = 1 << 24  # labels are float32, which counts to here
MAX_PART = (1 << 29) - 1  # the length has 29 bits
WHOLE, FIRST, MIDDLE, LAST = range(4)

WORDS = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
IMAGE_AT = WORDS.size + HEADER.size  # where the image of an ordinary record begins
_unpack_plain = struct.Struct("<IIIf").unpack_from  # the two words and the header's beginning
_WINDOW = _BLOCK = 1 << 22
_GUESS = 1 << 16  # read at once where the length is not known yet
_TAB, _NEWLINE = 9, 10

Keys = npt.NDArray[np.int64]


class Record(NamedTuple):
    """One record.

    Attributes:
        key: its name in the .idx.
        offset: where it begins in the .rec, in bytes.
        labels: one number (the identity of an image), or several.
        image: the bytes of an image file; empty in the records that describe the others.
    """

    key: int
    offset: int
    labels: tuple[float, ...]
    image: bytes

    @property
    def identity(self) -> int:
        """The identity: the first label.

        Raises:
            UnreadableImage: it is not a whole number from 0 on.
        """
        label = self.labels[0]
        if not (label >= 0 and label == math.floor(label)):
            raise UnreadableImage(
                f"record {self.key} at offset {self.offset}: its label, {label:g}, is not an "
                "identity, a whole number from 0 on"
            )
        return int(label)


class Damaged(UnreadableImage):
    """A record that breaks the format; the message says which and at what offset."""


def scan(file: File) -> Iterator[Record | tuple[int, str]]:
    """The records of a .rec in its order, found without an index; their keys are their ids.

    The length of a damaged record cannot be trusted, so it ends the scan: the last item is then its
    place and what is wrong with it.
    """
    read = Window(file).read
    offset = 0
    while offset < file.size:
        try:
            content, end = content_at(read, offset, offset + _GUESS, file.size)
            check_end(read, end, file.size)
            record = parse(-1, offset, content)
        except Damaged as damage:
            yield offset, str(damage)
            return
        yield record._replace(key=HEADER.unpack_from(content)[2])
        offset = end


def frame(content: bytes) -> bytes:
    """The bytes of a record: cut wherever the magic number is at a multiple of 4.

    Raises:
        ValueError: a part of 2**29 bytes or more.
    """
    cuts = [match.start() for match in _MARK.finditer(content) if match.start() % 4 == 0]
    starts, ends = [0, *(cut + len(MARK) for cut in cuts)], [*cuts, len(content)]
    kinds = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    framed = []
    for kind, start, end in zip(kinds, starts, ends, strict=True):
        if end - start > MAX_PART:
            raise ValueError(f"a record of {len(content)} bytes is too long for the format")
        words = WORDS.pack(MAGIC, kind << 29 | end - start)
        framed += [words, content[start:end], bytes((start - end) % 4)]
    return b"".join(framed)


class Window:
    """Small reads in rising order, served from large blocks of a file."""

    def __init__(self, file: File) -> None:
        self.file, self.start, self.block = file, 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """As `File.read`."""
        at = offset - self.start
        if at < 0 or at + size > len(self.block):
            if size > _WINDOW:
                return self.file.read(offset, size)
            self.start, self.block, at = offset, self.file.read(offset, _WINDOW), 0
        return self.block[at : at + size]


def plain_images(
    block: bytes, bounds: Sequence[int], rows: Sequence[int]
) -> list[npt.NDArray[np.uint8] | None]:
    """The images of some records, as parts of the block that holds them.

    None for a record that is not whole, has several labels or a label that is not finite, or is
    damaged: `content_at` and `parse` handle these. The block begins with the first of these
    records; `bounds` says where each record of the file begins, and where the last one ends.
    """
    content, size = np.frombuffer(block, np.uint8), len(block)
    first = bounds[rows[0]]
    images: list[npt.NDArray[np.uint8] | None] = []
    for row in rows:
        begin, end = bounds[row] - first, bounds[row + 1] - first
        image = None
        if 0 <= begin < end - IMAGE_AT and end <= size:
            magic, length, flag, label = _unpack_plain(block, begin)
            stop = begin + 8 + length  # beyond any end where it is a part of a record
            if magic == MAGIC and flag == 0 and label - label == 0 and stop + -length % 4 == end:
                image = content[begin + IMAGE_AT : stop]
        images.append(image)
    return images


def content_at(
    read: Callable[[int, int], bytes], offset: int, following: int, size: int
) -> tuple[bytes, int]:
    """The content of the record at `offset`, its parts put together, and where it ends.

    `following` is a guess of where it ends; a good one saves a read. `size` is that of the file.

    Raises:
        Damaged: there is no whole record.
    """
    if not 0 <= offset <= size - WORDS.size:
        raise Damaged(f"is outside the file, which has {size} bytes")
    guess = following - offset
    block = read(offset, min(guess if WORDS.size <= guess <= MAX_PART else _GUESS, size - offset))
    parts: list[bytes] = []
    at = 0
    while True:
        if len(block) < at + WORDS.size:
            block += read(offset + len(block), max(WORDS.size, at + WORDS.size - len(block)))
            if len(block) < at + WORDS.size:
                raise Damaged("is cut off by the end of the file")
        magic, word = WORDS.unpack_from(block, at)
        kind, length = word >> 29, word & MAX_PART
        if magic != MAGIC:
            raise Damaged(f"no record begins there (magic number {magic:#010x})")
        if kind not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
            raise Damaged("is a part of a record whose other parts are missing")
        begin, end = at + WORDS.size, at + WORDS.size + length
        if offset + end > size:
            raise Damaged(f"its length, {length} bytes, goes beyond the end of the file")
        if end > len(block):
            block += read(offset + len(block), end + (-length % 4) - len(block))
        if len(block) < end:
            raise Damaged("is cut off by the end of the file")
        parts.append(block[begin:end])
        at = end + (-length % 4)
        if kind in (WHOLE, LAST):
            return MARK.join(parts), min(offset + at, size)


def check_end(read: Callable[[int, int], bytes], end: int, size: int) -> None:
    """Checks that a record which ends at `end` is followed by another, or by the end of the file.

    Raises:
        Damaged: it is not, so its length must be wrong.
    """
    if end < size and read(end, len(MARK)) != MARK:
        raise Damaged(f"its length leads to {end}, where no record begins")


def parse(key: int, offset: int, content: bytes) -> Record:
    """The record in a content.

    Raises:
        Damaged: a header or labels that cannot be.
    """
    if len(content) < HEADER.size:
        raise Damaged(f"has {len(content)} bytes, fewer than a header's {HEADER.size}")
    flag, label, _, _ = HEADER.unpack_from(content)
    labels, begin = (label,), HEADER.size
    if flag > 0:
        begin += 4 * flag
        if begin > len(content):
            raise Damaged(f"announces {flag} labels, more than it has bytes for")
        labels = struct.unpack_from(f"<{flag}f", content, HEADER.size)
    if not all(map(math.isfinite, labels)):
        raise Damaged("has a label that is not a finite number")
    return Record(key, offset, labels, content[begin:])


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
    with reading(path), open(path, "rb") as file:
        for block in whole_lines(file, _BLOCK):
            parts.append(_index_rows(path, block, lines))
            lines += len(parts[-1])
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
