"""Packs listed images into an InsightFace .rec: one large file for millions of small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.containers.base import close_container, read_bytes
from dataset.containers.rec import RecordWriter
from dataset.left_out import Skipped
from dataset.lists import read_labelpath
from sdd_fiqa.errors import UnreadableImage, UserError

_MOST_IDENTITIES = 1 << 24  # labels are float32


def pack_records(labelpath: Path, target: Path, skipped: Skipped) -> int:
    """Writes the images of a list, as they are, into a .rec with its .idx.

    As InsightFace lays it out: record 0 announces the others; images follow from key 1, those of
    one identity together, identities in the order of their numbers; after them a record an
    identity holds the first of its keys and the key after the last.

    Args:
        labelpath: the list, `<path> TAB <identity index>`.
        target: the .rec; replaced whole.
        skipped: takes images that cannot be read.

    Returns:
        How many images were packed.

    Raises:
        UserError: none could be read, or more identities than labels can count.
    """
    table, identities = read_labelpath(labelpath)
    if int(identities.max()) >= _MOST_IDENTITIES or int(identities.min()) < 0:
        raise UserError(
            f"{labelpath}: identities must be 0 to {_MOST_IDENTITIES - 1} to fit a record's label"
        )
    order = np.argsort(identities, kind="stable")
    ranges: list[tuple[int, int]] = []
    before = -1
    with (
        RecordWriter(target) as records,
        tqdm(total=len(order), desc="pack", unit=" images") as bar,
    ):
        records.add((0.0, 0.0))
        for row, path in zip(order.tolist(), table.paths_at(order), strict=True):
            bar.update()
            try:
                content = read_bytes(path)
            except UnreadableImage as error:
                skipped.problem("images that cannot be packed", f"{path}: {error}")
                continue
            if not content:
                skipped.problem("images that cannot be packed", f"{path}: is empty (0 bytes)")
                continue
            key = records.add((float(identities[row]),), content)
            if identities[row] != before:
                before = int(identities[row])
                ranges.append((key, key + 1))
            ranges[-1] = (ranges[-1][0], key + 1)
        if not ranges:
            raise UserError(f"{labelpath}: none of its {len(order)} images can be read")
        end = ranges[-1][1]
        for first, stop in ranges:
            records.add((float(first), float(stop)))
        records.replace(0, (float(end), float(end + len(ranges))))
    close_container(str(target))
    return end - 1
