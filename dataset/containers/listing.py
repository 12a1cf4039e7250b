"""Lists of what containers hold: their images, identities and pairs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.cli import is_count
from dataset.containers import is_container, open_container, split_member
from dataset.containers.base import Container
from dataset.left_out import Skipped
from dataset.path_lists import read_paths
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import reading, replacing

PAIRS = "pairs.txt"

_MOST_SHARDS = 1_000_000  # that braces may name
_SHARD = ".tar"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


def containers_of(data_root: str) -> list[str]:
    """The containers that a data root names: a file, a pattern, a folder with tars directly in it.

    Braces name several files, as in WebDataset: shards/{000..099}.tar. Empty for a folder of
    images.

    Raises:
        UserError: a pattern that matches nothing, containers of several kinds, or a compressed tar.
    """
    if data_root.endswith(_COMPRESSED) and not os.path.isdir(data_root):
        raise UserError(f"{data_root}: cannot be read at random; unpack it first")
    if os.path.isdir(data_root):
        folder = glob.escape(data_root.rstrip("/"))
        if glob.glob(f"{folder}/*/"):  # identity folders
            return []
        return sorted(glob.glob(f"{folder}/*{_SHARD}"))
    if os.path.exists(data_root):
        return [data_root] if is_container(data_root) else []
    shards: list[str] = []
    for pattern in _braces(data_root):
        matches = sorted(glob.glob(pattern))
        if not matches and is_container(pattern):
            raise UserError(f"{pattern}: no such file")
        shards += matches
    if not all(shard.endswith(_SHARD) for shard in shards):
        raise UserError(f"{data_root}: only tars are taken several at a time")
    return shards


def container_images(container: str, skipped: Skipped) -> Iterator[str]:
    """The paths of the images in a container, in its order; UserError if it cannot be opened."""
    with reading(container):
        for member in open_container(container).images(skipped):
            yield from skipped.fitting(f"{container}#{member}")


def identified_members(
    containers: list[str], image_list: Path | None, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    """The images of containers of one format as (path, identity), in order.

    With `image_list` only its lines `<container>#<member>`. `skipped` takes damaged images and
    those without an identity.

    Raises:
        UserError: a container that cannot be opened or holds no image.
    """
    for container in containers:
        empty = True
        with reading(container):
            opened = open_container(container)
            if image_list is None:
                found = opened.identified(skipped)
            elif not opened.single_identities:
                raise UserError(
                    f"--image-list-file goes with a folder or a .rec file, not with {container}"
                )
            else:
                found = _listed(opened, image_list, skipped)
            for member, identity in found:
                for path in skipped.fitting(f"{container}#{member}"):
                    empty = False
                    yield path, identity
        if empty:
            why = "; ".join(skipped.lines()) or "it holds none"
            raise UserError(f"{container}: no image with an identity found ({why})")


def container_pairs(container: str) -> list[tuple[str, str, bool]]:
    """The pairs of a verification set as `Container.pairs`; UserError if it cannot be opened."""
    with reading(container):
        return list(open_container(container).pairs())


def write_pairs(container: str, path: Path) -> int:
    """Writes the pairs of a container, `<path> TAB <path> TAB 0|1`; returns how many.

    Nothing is written where it has none.
    """
    if pairs := container_pairs(container):
        with replacing(path) as file:
            for first, second, same in pairs:
                file.write(f"{container}#{first}\t{container}#{second}\t{int(same)}\n")
    return len(pairs)


def _listed(container: Container, image_list: Path, skipped: Skipped) -> Iterator[tuple[str, str]]:
    for line in read_paths(image_list).paths():
        parts = split_member(line)
        if parts is None or parts[0] != container.path:
            skipped.problem("lines that do not name a record of the file", line)
            continue
        try:
            yield parts[1], container.identity(parts[1])
        except UnreadableImage as error:
            skipped.problem("damaged records", f"{container.path}: {error}")


def _braces(pattern: str) -> Iterator[str]:
    """shards/{00..02}.tar -> shards/00.tar, shards/01.tar, shards/02.tar; {a,b} likewise."""
    match = re.fullmatch(r"([^{]*)\{([^}]*)\}(.*)", pattern, re.DOTALL)
    if match is None:
        yield pattern
        return
    before, inside, after = match.groups()
    first, _, last = inside.partition("..")
    choices: Iterable[str] = inside.split(",")
    if is_count(first) and is_count(last):
        if int(last) - int(first) >= _MOST_SHARDS:
            raise UserError(f"{pattern}: names more than {_MOST_SHARDS:,} files")
        choices = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    for choice in choices:
        yield from _braces(f"{before}{choice}{after}")
