"""InsightFace data sets, `train.rec` with `train.idx`, read without mxnet.

The .idx names the records: `key TAB offset`. In InsightFace's files record 0 holds no image but two
labels: images are the keys 1 to label[0] - 1, and the keys from there to label[1] - 1 hold, for
each identity, the first key of its images and the key after the last. Those numbers are float32,
so beyond 2**24 they are rounded: identities are taken from the images' own labels.
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.command_line import UserError, note
from dataset.files import replacing
from dataset.record_format import (
    HEADER,
    MAX_PART,
    WORDS,
    Damaged,
    Record,
    Window,
    check_end,
    content_at,
    frame,
    parse,
    plain_image,
    scan,
)
from dataset.record_index import Keys, index_path, read_index, write_index
from dataset.storage import File, UnreadableImage

_AHEAD = 1 << 15  # bytes: stays in the cache, and a loader takes some 16 images in a row


class _Ahead:
    """What a thread has read beyond what it was asked for, and what it would read next."""

    __slots__ = ("block", "following", "start", "stop")

    def __init__(self) -> None:
        self.start, self.stop, self.block, self.following = 0, 0, b"", -1


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.state = _Ahead()


class RecordFile:
    """A .rec file, read at random or in its order, by any number of threads.

    Attributes:
        keys: (N,) int64, ascending.
        offsets: (N,) int64, where each record begins.
        damages: what was found damaged while the index was rebuilt: {offset: what}.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens it with its .idx; where that is missing, it is rebuilt by one scan, and kept.

        Raises:
            UserError: the .idx is not one, or there is no record in the file.
            UnreadableImage: the file cannot be read.
        """
        self.file = File(path)
        self.damages: dict[int, str] = {}
        index = index_path(path)
        if index.exists():
            self.keys, self.offsets = read_index(index)
        else:
            self.keys, self.offsets = self._rebuild_index(index)
        self._ahead = _OfThread()
        self._offsets = memoryview(self.offsets.data)  # numpy takes longer to give one number
        count = len(self.keys)
        whole = int(self.keys[-1]) - int(self.keys[0]) == count - 1
        self._first_key = int(self.keys[0]) if whole else None

    def __len__(self) -> int:
        """The number of records, those that hold no image included."""
        return len(self.keys)

    def read(self, member: str) -> bytes:
        """The image of the record named `member`, a key as text.

        Raises:
            UnreadableImage: no such record, damaged, or without an image.
        """
        if not (member.isascii() and member.isdigit()):
            raise UnreadableImage(f"{member!r} is no record key, a whole number")
        row = self._row(int(member))
        if row + 1 < len(self._offsets):
            image = self._plain(self._offsets[row], self._offsets[row + 1])
            if image:
                return image
        record = self._at(row, self.file.read)  # every other case, and every damage
        if not record.image:
            raise UnreadableImage(f"record {record.key} at offset {record.offset} holds no image")
        return record.image

    def record(self, key: int) -> Record:
        """The record of a key.

        Raises:
            UnreadableImage: no such record, or damaged.
        """
        return self._at(self._row(key), self.file.read)

    def records(
        self, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, Record | Damaged]]:
        """Keys and records of rows `start` to `stop` in order, the file read in large blocks."""
        window = Window(self.file)
        for row in range(start, len(self) if stop is None else min(stop, len(self))):
            key = int(self.keys[row])
            try:
                yield key, self._at(row, window.read)
            except Damaged as damage:
                yield key, damage

    def images(self) -> Iterator[tuple[int, Record | Damaged]]:
        """As `records`, all but those that describe others."""
        for key, record in self.records():
            if isinstance(record, Damaged) or record.image:
                yield key, record

    def announced_images(self) -> int | None:
        """How many images record 0 announces; None where it is an ordinary record, or damaged."""
        with suppress(UnreadableImage):
            first = self.record(0)
            if not first.image and len(first.labels) > 1:
                return int(first.labels[0]) - 1
        return None

    def _plain(self, offset: int, following: int) -> bytes | None:
        """The image of an ordinary record; a thread that reads on in order reads ahead."""
        ahead = self._ahead.state
        start, goes_on = ahead.start, offset == ahead.following
        ahead.following = following
        if start <= offset and following <= ahead.stop:
            return plain_image(ahead.block, offset - start, following - start)
        size = following - offset
        if not 0 < size <= MAX_PART:
            return None
        if goes_on and size < _AHEAD:
            block = self.file.read(offset, _AHEAD)
            ahead.start, ahead.stop, ahead.block = offset, offset + len(block), block
            return plain_image(block, 0, size)
        return plain_image(self.file.read(offset, size), 0, size)

    def _row(self, key: int) -> int:
        if self._first_key is not None:
            row = key - self._first_key
            known = 0 <= row < len(self._offsets)
        else:
            row = int(np.searchsorted(self.keys, key))
            known = row < len(self.keys) and self.keys[row] == key
        if not known:
            raise UnreadableImage(f"the index has no record {key}")
        return row

    def _at(self, row: int, read: Callable[[int, int], bytes]) -> Record:
        key, offset = int(self.keys[row]), int(self.offsets[row])
        following = int(self.offsets[row + 1]) if row + 1 < len(self.offsets) else self.file.size
        try:
            content, end = content_at(read, offset, following, self.file.size)
            if offset < following < end:
                raise Damaged("its length reaches into the next record")
            if end != following:
                check_end(read, end, self.file.size)
            return parse(key, offset, content)
        except Damaged as damage:
            raise Damaged(f"record {key} at offset {offset}: {damage}") from damage

    def _rebuild_index(self, index: Path) -> tuple[Keys, Keys]:
        offsets, keys = array("q"), array("q")
        numbered = True  # do the ids count the records, as InsightFace's do?
        bar = tqdm(
            total=self.file.size,
            desc=f"find the records of {Path(self.file.path).name}",
            unit="B",
            unit_scale=True,
            delay=1,
        )
        for found in scan(self.file):
            place = found.offset if isinstance(found, Record) else found[0]
            if place - bar.n > 1 << 20:
                bar.update(place - bar.n)
            if isinstance(found, Record):
                key = keys[-1] + 1 if keys else 0
                if not self.damages:
                    numbered = numbered and found.number == key
                elif numbered and found.number > key:
                    key = found.number  # the scan cannot count what a damage swallowed; ids can
                keys.append(key)
                offsets.append(found.offset)
            else:
                self.damages[found[0]] = found[1]
        bar.close()
        if not keys:
            raise UserError(f"{self.file.path}: holds no record; is it an InsightFace .rec file?")
        arrays = np.array(keys, np.int64), np.array(offsets, np.int64)
        done = f"{index}: was missing; {len(keys)} records found by one scan"
        try:
            write_index(index, *arrays)
        except UserError:
            done += " (the folder cannot be written: every process will scan)"
        note(done)
        for offset, what in list(self.damages.items())[:5]:
            note(f"{self.file.path}: offset {offset}: {what}; skipped")
        return arrays


class RecordWriter:
    """Writes a .rec and its .idx, whole or not at all.

    with RecordWriter("train.rec") as records:
        records.add((7.0,), image_bytes)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Names the .rec file; the .idx goes beside it."""
        self.path = Path(path)
        self.keys, self.offsets = array("q"), array("q")
        self._size = 0

    def __enter__(self) -> RecordWriter:
        """Opens a temporary file beside the .rec."""
        self._replacing = replacing(self.path, "wb")
        self._file = self._replacing.__enter__()
        return self

    def add(self, labels: tuple[float, ...], image: bytes = b"", key: int | None = None) -> int:
        """Adds a record and returns its key: the number of records before it unless given."""
        key = len(self.keys) if key is None else key
        label, more = (labels[0], b"") if len(labels) == 1 else (0.0, _floats(labels))
        flag = 0 if len(labels) == 1 else len(labels)
        record = frame(HEADER.pack(flag, label, key, 0) + more + image)
        self._file.write(record)
        self.keys.append(key)
        self.offsets.append(self._size)
        self._size += len(record)
        return key

    def replace(self, position: int, labels: tuple[float, ...]) -> None:
        """Writes other labels, as many, into the record added at `position`."""
        assert len(labels) > 1
        self._file.seek(self.offsets[position] + WORDS.size + HEADER.size)
        self._file.write(_floats(labels))
        self._file.seek(self._size)

    def __exit__(self, *error: object) -> None:
        """Puts the files in place, the .idx first gone, then written last."""
        if error[0] is None:
            with suppress(FileNotFoundError):
                index_path(self.path).unlink()  # it would name records of the file before
        self._replacing.__exit__(*error)  # type: ignore[arg-type]
        if error[0] is None:
            keys, offsets = np.array(self.keys, np.int64), np.array(self.offsets, np.int64)
            write_index(index_path(self.path), keys, offsets)


def _floats(labels: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(labels)}f", *labels)
