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
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.lists import whole_lines
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import reading, replacing

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
_BLOCK = 1 << 22

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


def plain_images(
    block: bytes, places: Iterable[tuple[int, int]]
) -> list[npt.NDArray[np.uint8] | None]:
    """The images of the records between pairs of places in a block, as parts of the block.

    None for a record that is not whole, has several labels or a label that is not finite, or is
    damaged: `content_at` and `parse` handle these.
    """
    content = np.frombuffer(block, np.uint8)
    images: list[npt.NDArray[np.uint8] | None] = []
    for begin, end in places:
        image = None
        if 0 <= begin < end - IMAGE_AT and end <= len(block):
            magic, length, flag, label = _unpack_plain(block, begin)
            stop = begin + WORDS.size + length  # beyond any end where it is a part of a record
            if magic == MAGIC and flag == 0 and label - label == 0 and stop + -length % 4 == end:
                image = content[begin + IMAGE_AT : stop]
        images.append(image)
    return images


def content_at(stream: IO[bytes], offset: int, size: int) -> tuple[bytes, int]:
    """The content of the record at `offset`, its parts put together, and where it ends.

    The stream is at this record, and may end with it. `size` is that of the whole file.

    Raises:
        Damaged: there is no whole record, or what follows in the stream is not another one.
    """
    parts: list[bytes] = []
    end = offset
    while True:
        words = stream.read(WORDS.size)
        if len(words) < WORDS.size:
            raise Damaged(f"is cut off, by another record or the end of the file at {size}")
        magic, word = WORDS.unpack(words)
        kind, length = word >> 29, word & MAX_PART
        if magic != MAGIC:
            raise Damaged(f"no record begins there (magic number {magic:#010x})")
        if kind not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
            raise Damaged("is a part of a record whose other parts are missing")
        end += WORDS.size + length
        if end > size:
            raise Damaged(f"its length, {length} bytes, goes beyond the end of the file")
        parts.append(stream.read(length))
        if len(parts[-1]) < length:
            raise Damaged("its length reaches into the next record")
        end += len(stream.read(-length % 4))
        if kind in (WHOLE, LAST):
            break
    if stream.read(len(MARK)) not in (b"", MARK):
        raise Damaged(f"its length leads to {end}, where no record begins")
    return MARK.join(parts), end


def parse(key: int | None, offset: int, content: bytes) -> Record:
    """The record in a content; without a key, its own id is its key.

    Raises:
        Damaged: a header or labels that cannot be.
    """
    if len(content) < HEADER.size:
        raise Damaged(f"has {len(content)} bytes, fewer than a header's {HEADER.size}")
    flag, label, own, _ = HEADER.unpack_from(content)
    labels, begin = (label,), HEADER.size
    if flag > 0:
        begin += 4 * flag
        if begin > len(content):
            raise Damaged(f"announces {flag} labels, more than it has bytes for")
        labels = struct.unpack_from(f"<{flag}f", content, HEADER.size)
    if not all(map(math.isfinite, labels)):
        raise Damaged("has a label that is not a finite number")
    return Record(own if key is None else key, offset, labels, content[begin:])


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
    if not parts:
        raise UserError(f"{path}: is empty; delete it to have it rebuilt from the .rec")
    keys, offsets = np.concatenate(parts).T.copy()
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
        rows = zip(keys.data, offsets.data, strict=True)  # a Python number at a time
        file.writelines(f"{key}\t{offset}\n" for key, offset in rows)


def _index_rows(path: Path, block: bytes, lines: int) -> Keys:
    """(n, 2) key and offset of whole lines."""
    block = block.replace(b"\r\n", b"\n")
    count = block.count(b"\n")
    if block.translate(None, b"0123456789") == b"\t\n" * count:
        numbers = np.fromstring(block.decode("ascii"), np.int64, sep=" ")
        if len(numbers) == 2 * count:
            return numbers.reshape(-1, 2)
    for line, fields in enumerate(block.split(b"\n"), lines + 1):
        if not re.fullmatch(rb"[0-9]+\t[0-9]+", fields):
            raise UserError(
                f"{path}:{line}: expected `key TAB offset`, two whole numbers; delete "
                "the file to have it rebuilt from the .rec"
            )
    raise AssertionError("each line is right, but all of them are not")
