"""Packs listed images into one container: one large file instead of millions of small ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.containers import close_container, format_of, read_bytes
from dataset.left_out import Skipped
from dataset.lists import read_labelpath
from sdd_fiqa.errors import UnreadableImage, UserError


def pack_images(labelpath: Path, target: Path, skipped: Skipped) -> int:
    """Writes the images of a list, byte for byte, into a container.

    Images of one identity are together; identities are in the order of their numbers.

    Args:
        labelpath: the list, `<path> TAB <identity index>`.
        target: the container, of a format that can be written; replaced whole.
        skipped: takes images that cannot be read.

    Returns:
        How many images were packed.

    Raises:
        UserError: no image can be read, or the format cannot hold an identity.
    """
    container = format_of(target)
    assert container is not None and container.writable
    count = container.write(target, _contents(labelpath, skipped))
    close_container(str(target))
    return count


def _contents(labelpath: Path, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    table, identities = read_labelpath(labelpath)
    order = np.argsort(identities, kind="stable")
    packed = 0
    with tqdm(total=len(order), desc="pack", unit=" images") as bar:
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
            packed += 1
            yield int(identities[row]), content
    if not packed:
        raise UserError(f"{labelpath}: none of its {len(order)} images can be read")
