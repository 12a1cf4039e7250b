"""Packs listed images into one .rec: one large file instead of millions of small ones."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from dataset.containers import close_container, read_bytes
from dataset.containers.rec_format import (
    HEADER,
    MAX_IDENTITIES,
    WORDS,
    frame,
    index_path,
    write_index,
)
from dataset.left_out import Skipped
from dataset.lists import read_labelpath
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import replacing


def pack_images(labelpath: Path, target: Path, skipped: Skipped) -> int:
    """Writes the images of a list, byte for byte, into a .rec as InsightFace lays it out.

    Record 0 announces the others. Images follow from key 1, those of one identity together, in the
    order of the identities' numbers. After them a record for each identity holds the first key of
    its images and the key after the last. Images that cannot be read go to `skipped`.

    Returns:
        How many images were packed.

    Raises:
        UserError: no image can be read, or a label cannot hold an identity.
    """
    table, identities = read_labelpath(labelpath)
    for identity in (identities.min(), identities.max()):
        if not 0 <= identity < MAX_IDENTITIES:
            raise UserError(
                f"{labelpath}: identities must be 0 to {MAX_IDENTITIES - 1} to fit a record's "
                f"label, got {identity}"
            )
    order = np.argsort(identities, kind="stable")
    firsts: list[int] = []  # the key of the first image of each identity
    before = -1
    listed = zip(order.tolist(), table.paths_at(order), strict=True)
    with write_records(target) as records:
        records.add((0.0, 0.0))
        for row, path in tqdm(listed, desc="pack", unit=" images", total=len(order)):
            try:
                content = read_bytes(path)
                if not content:
                    raise UnreadableImage("is empty (0 bytes)")
            except UnreadableImage as error:
                skipped.problem("images that cannot be packed", f"{path}: {error}")
                continue
            key = records.add((float(identities[row]),), content)
            if identities[row] != before:
                before = identities[row]
                firsts.append(key)
        end = len(records.keys)
        if not firsts:
            raise UserError(f"{labelpath}: none of its images can be read")
        for first, stop in pairwise([*firsts, end]):
            records.add((float(first), float(stop)))
        records.replace_first((float(end), float(end + len(firsts))))
    close_container(str(target))
    return end - 1


@contextmanager
def write_records(path: str | os.PathLike[str]) -> Iterator[RecordWriter]:
    """Writes a .rec and its .idx, whole or not at all.

    with write_records("train.rec") as records:
        records.add((7.0,), image_bytes)
    """
    index = index_path(path)
    with replacing(path, "wb") as file:
        records = RecordWriter(file)
        yield records
        index.unlink(missing_ok=True)  # it names records of the old file
    keys, offsets = np.array(records.keys, np.int64), np.array(records.offsets, np.int64)
    write_index(index, keys, offsets)


class RecordWriter:
    """Writes the records of a .rec one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.keys, self.offsets = array("q"), array("q")
        self._size = 0

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

    def replace_first(self, labels: tuple[float, ...]) -> None:
        """Writes other labels, as many, into the first record."""
        assert len(labels) > 1
        self._file.seek(WORDS.size + HEADER.size)
        self._file.write(_floats(labels))
        self._file.seek(self._size)


def _floats(labels: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(labels)}f", *labels)
