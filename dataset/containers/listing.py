"""Lists of what containers hold: InsightFace .rec files, WebDataset tars, .bin sets of pairs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.cli import is_count
from dataset.containers.base import is_container, open_container, split_member
from dataset.containers.pair_bin import PairBin, identities_of, read_pair_bin
from dataset.containers.rec import RecordFile
from dataset.containers.rec_format import Damaged
from dataset.left_out import BAD_NAMES, Skipped, fits_a_line
from dataset.lists import read_table, refuse_repeats
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import replacing
from sdd_fiqa.storage import File

PAIRS = "pairs.txt"

_MOST_SHARDS = 1_000_000  # that braces may name
_EXACT = 1 << 24  # float32 counts to here


def containers_of(data_root: str) -> list[str]:
    """The containers that a data root names: a file, a pattern, a folder with tars directly in it.

    Braces stand for several names, as WebDataset has it: shards/{000..099}.tar. Empty: it is a
    folder of images.

    Raises:
        UserError: a pattern that matches nothing, containers of several kinds, or a compressed tar.
    """
    if data_root.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise UserError(f"{data_root}: cannot be read at random; unpack it to a .tar")
    if os.path.isdir(data_root):
        try:
            found = [(entry.name, entry.is_dir()) for entry in os.scandir(data_root)]
        except OSError:
            return []  # whoever walks through the folder reports it
        # Where there are folders, they hold the identities.
        if any(is_dir for _, is_dir in found):
            return []
        return sorted(
            f"{data_root.rstrip('/')}/{name}" for name, _ in found if name.endswith(".tar")
        )
    if os.path.exists(data_root):
        return [data_root] if is_container(data_root) else []
    shards: list[str] = []
    for pattern in _braces(data_root):
        matches = sorted(glob.glob(pattern))
        if not matches and is_container(pattern):
            raise UserError(f"{pattern}: no such file")
        shards += matches
    if any(not name.endswith(".tar") for name in shards):
        raise UserError(f"{data_root}: only tars are taken several at a time")
    return shards


def container_images(container: str, skipped: Skipped) -> Iterator[str]:
    """The paths of the images in a container, in its order, without a look at identities.

    Damaged records are among them, so that whoever reads them reports them.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        if container.endswith(".rec"):
            records = open_container(container)
            assert isinstance(records, RecordFile)
            _note_damages(container, records, skipped)
            for key, _ in records.images():
                yield f"{container}#{key}"
        elif container.endswith(".tar"):
            yield from _tar_images(container, skipped)
        else:
            pairs = read_pair_bin(container)
            yield from map(pairs.image_path, range(len(pairs.images)))
    except UnreadableImage as error:
        raise UserError(f"{container}: cannot be read ({error})") from error


def identified_members(
    containers: list[str], image_list: Path | None, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    """The images of containers of one kind as (path, identity), in order.

    Args:
        containers: as `containers_of` gives them.
        image_list: of a .rec, only these: lines of its `<file>.rec#<key>`.
        skipped: takes damaged records and samples without an identity.

    Raises:
        UserError: a container that cannot be opened or holds no image.
    """
    for container in containers:
        empty = True
        try:
            if image_list is not None:
                found = _listed_records(container, image_list, skipped)
            elif container.endswith(".rec"):
                found = _records(container, skipped)
            elif container.endswith(".tar"):
                found = _samples(container, skipped)
            else:
                found = _paired(container)
            for pair in found:
                empty = False
                yield pair
        except UnreadableImage as error:
            raise UserError(f"{container}: cannot be read ({error})") from error
        if empty:
            why = "; ".join(skipped.lines()) or "it holds none"
            raise UserError(f"{container}: no image with an identity found ({why})")


def write_pairs(container: str, path: Path) -> int:
    """Writes the pairs of a .bin, `<path> TAB <path> TAB 0|1`, and returns how many."""
    pairs = read_pair_bin(container)
    with replacing(path) as file:
        for first, second, same in pairs.named_pairs():
            file.write(f"{first}\t{second}\t{int(same)}\n")
    return len(pairs.same)


def _records(container: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    records = open_container(container)
    assert isinstance(records, RecordFile)
    _note_damages(container, records, skipped)
    images = 0
    for key, record in records.images():
        images += 1
        if isinstance(record, Damaged):
            skipped.problem("damaged records", f"{container}: {record}")
            continue
        try:
            yield f"{container}#{key}", str(record.identity)
        except UnreadableImage as error:
            skipped.problem("records without an identity", f"{container}: {error}")
    announced = records.announced_images()
    if announced is not None and announced < _EXACT and announced != images:
        skipped.problem(
            "files whose first record announces another number of images",
            f"{container}: {announced} announced, {images} found",
        )


def _note_damages(container: str, records: RecordFile, skipped: Skipped) -> None:
    """What the scan for a missing index found damaged, and the index therefore does not name."""
    for offset, what in records.damages.items():
        skipped.problem("damaged places", f"{container}: offset {offset}: {what}")


def _listed_records(
    container: str, image_list: Path, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    if not container.endswith(".rec"):
        raise UserError(
            f"--image-list-file goes with a folder or a .rec file, not with {container}"
        )
    records = open_container(container)
    assert isinstance(records, RecordFile)
    listed = read_table(image_list)
    refuse_repeats(listed)
    for line in listed.paths():
        parts = split_member(line)
        if parts is None or parts[0] != container or not is_count(parts[1]):
            skipped.problem("lines that do not name a record of the file", line)
            continue
        try:
            yield line, str(records.record(int(parts[1])).identity)
        except UnreadableImage as error:
            skipped.problem("damaged records", f"{container}: {error}")


def _samples(container: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    from dataset.containers.tar import samples

    for sample in samples(container):
        if isinstance(sample, str):
            skipped.problem("damaged places", f"{container}: {sample}")
            continue
        path = f"{container}#{sample.image}"
        if not fits_a_line(path):
            skipped.problem(BAD_NAMES, path)
        elif sample.identity is None:
            skipped.problem(sample.trouble, path)
        else:
            yield path, sample.identity


def _paired(container: str) -> Iterator[tuple[str, str]]:
    pairs: PairBin = read_pair_bin(container)
    for image, identity in enumerate(identities_of(pairs).tolist()):
        yield pairs.image_path(image), str(identity)


def _tar_images(container: str, skipped: Skipped) -> Iterator[str]:
    from dataset.containers.tar import is_image_member, members

    for member in members(File(container)):
        if isinstance(member, str):
            skipped.problem("damaged places", f"{container}: {member}")
        elif is_image_member(member.name):
            if fits_a_line(path := f"{container}#{member.name}"):
                yield path
            else:
                skipped.problem(BAD_NAMES, path)


def _braces(pattern: str) -> Iterator[str]:
    """shards/{00..02}.tar -> shards/00.tar, shards/01.tar, shards/02.tar; {a,b} likewise."""
    before, brace, rest = pattern.partition("{")
    inside, closing, after = rest.partition("}")
    if not (brace and closing):
        yield pattern
        return
    first, dots, last = inside.partition("..")
    choices: Iterable[str]
    if dots and is_count(first) and is_count(last):
        if int(last) - int(first) >= _MOST_SHARDS:
            raise UserError(f"{pattern}: names more than {_MOST_SHARDS:,} files")
        choices = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
    else:
        choices = inside.split(",")
    for choice in choices:
        yield from _braces(f"{before}{choice}{after}")
