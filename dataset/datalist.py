"""Finds images below a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset.lists import LABEL, LABELPATH, ImageList, read_table, refuse_repeats
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing
from sdd_fiqa.images import IMAGE_SUFFIXES

BAD_NAMES = "names with a TAB, a line break or no UTF-8 (rename them)"
_SHOWN = 5  # names given of each trouble


@dataclass
class Skipped:
    """What a search did not take, counted by kind.

    Attributes:
        expected: {".txt files": 3, "hidden files": 1, ...}; nothing wrong with these.
        problems: {"folders that cannot be read": 2, ...}; these the user should look at.
        examples: the first few paths of each trouble.
    """

    expected: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def other_file(self, name: str) -> None:
        """Counts one file that is no image, by its suffix."""
        suffix = os.path.splitext(name)[1].lower()
        self.expected[f"{suffix} files" if suffix else "files without a suffix"] += 1

    def problem(self, kind: str, path: str) -> None:
        """Notes one path that should have been taken."""
        self.problems[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(path)

    def lines(self) -> list[str]:
        """For people, a line a kind."""
        lines = [f"left out: {count} {kind}" for kind, count in sorted(self.expected.items())]
        for kind, count in sorted(self.problems.items()):
            more = ", ..." if count > _SHOWN else ""
            shown = ", ".join(map(ascii, self.examples[kind]))
            lines.append(f"left out: {count} {kind}: {shown}{more}")
        return lines


def walk_images(root: str, skipped: Skipped) -> Iterator[str]:
    """The images below `root`: `root/...`, files before folders, names in code-point order.

    Links to folders are followed, but not back into a folder that is being walked. Hidden files
    and folders, other kinds of files, dead links, unreadable folders and names that a list cannot
    hold go to `skipped`.
    """
    above: list[tuple[int, int]] = []  # folders being walked, to see a link that leads back
    # An explicit stack: (folder, or None when a folder is done with).
    stack: list[str | None] = [root]
    while stack:
        folder = stack.pop()
        if folder is None:
            above.pop()
            continue
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            status = os.stat(folder)
        except OSError:
            skipped.problem("folders that cannot be read", folder)
            continue
        if (status.st_dev, status.st_ino) in above:
            skipped.expected["links that lead back to a folder above them"] += 1
            continue
        above.append((status.st_dev, status.st_ino))
        stack.append(None)
        folders = []
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                skipped.expected["hidden folders" if _is_folder(entry) else "hidden files"] += 1
            elif _is_folder(entry):
                folders.append(path)
            elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                skipped.other_file(entry.name)
            elif not _is_file(entry):
                skipped.problem("links to nothing, and other things that are no file", path)
            elif fits_a_line(path):
                yield path
            else:
                skipped.problem(BAD_NAMES, path)
        stack.extend(reversed(folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def fits_a_line(path: str) -> bool:
    """Whether a path can stand in a list: no TAB, no line break, and UTF-8."""
    if "\t" in path or "\n" in path or "\r" in path:
        return False
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)


@dataclass
class ListCounts:
    """What `write_lists` wrote and left out."""

    images: int
    identities: int
    skipped: Skipped


def write_lists(
    images: Iterator[str],
    root: str,
    out_dir: Path,
    id_key_index: int,
    min_images_per_id: int,
    skipped: Skipped,
) -> ListCounts:
    """Writes DATA.label and DATA.labelpath for images below `root`.

    Identities are numbered from 0 in the order of their first image.

    Args:
        images: their paths, `root/...`.
        root: the folder, as typed, without a `/` at its end.
        out_dir: where the two files go; both are replaced whole.
        id_key_index: which part of the path below the root is the identity (-2: the folder of the
            image; 0: the first part).
        min_images_per_id: identities with fewer images are left out.
        skipped: takes what is left out here too.

    Raises:
        UserError: nothing is left to list; says whether the folder is empty, has no identity
            folders, or has too few images an identity.
    """
    identified = _identified(images, root, id_key_index, skipped)
    return write_identified(identified, root, out_dir, min_images_per_id, skipped)


def write_identified(
    images: Iterator[tuple[str, str]],
    root: str,
    out_dir: Path,
    min_images_per_id: int,
    skipped: Skipped,
) -> ListCounts:
    """As `write_lists`, for pairs of a path, which begins with `root`, and an identity's name."""
    numbers: dict[str, int] = {}
    per_identity: list[int] = []
    bar = tqdm(images, desc="list images", unit=" images", unit_scale=True, mininterval=0.5)
    draft = out_dir / f"{LABELPATH}.draft"
    listed = 0
    try:
        with replacing(draft) as file, bar:
            for path, identity in bar:
                number = numbers.setdefault(identity, len(numbers))
                if number == len(per_identity):
                    per_identity.append(0)
                per_identity[number] += 1
                file.write(f"{path}\t{number}\n")
                listed += 1
        if not listed:
            raise UserError(_nothing(root, skipped))
        counts = np.array(per_identity, np.int64)
        kept = counts >= min_images_per_id
        small = int((~kept).sum())
        if not kept.any():
            raise UserError(
                f"{root}: no identity has {min_images_per_id} images (the largest has "
                f"{counts.max()}); lower --min-images-per-id"
            )
        if small:
            kind = f"identities with fewer than {min_images_per_id} images"
            skipped.expected[kind] += small
        _finish(draft, root, out_dir, kept)
        return ListCounts(int(counts[kept].sum()), int(kept.sum()), skipped)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def listed_images(image_list: Path, root: str, skipped: Skipped) -> Iterator[str]:
    """The images that a list names, as `root/...`, in its order.

    A line is a path below `root`, or begins with `root/` already; columns after a TAB are ignored.
    Names that are no file go to `skipped`.
    """
    listed = read_table(image_list)
    refuse_repeats(listed)
    for line in listed.paths():
        path = line if line.startswith(root + "/") else f"{root}/{line.lstrip('/')}"
        if os.path.isfile(path):
            yield path
        else:
            skipped.problem("listed files that do not exist", path)


def _identified(
    images: Iterator[str], root: str, id_key_index: int, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    """Images with the part of their path below `root` that names their identity."""
    for path in images:
        parts = path[len(root) + 1 :].split("/")
        position = id_key_index if id_key_index < 0 else id_key_index - len(parts)
        if -len(parts) <= position < -1:
            yield path, parts[position]
        else:
            skipped.expected["images outside an identity folder"] += 1


def _finish(draft: Path, root: str, out_dir: Path, kept: npt.NDArray[np.bool_]) -> None:
    """From the draft, without the identities that are not kept, the two files."""
    numbers = (np.cumsum(kept) - 1).tolist()
    keep = kept.tolist()
    with (
        open(draft, encoding="utf-8", newline="\n") as lines,
        replacing(out_dir / LABELPATH) as labelpath,
        replacing(out_dir / LABEL) as label,
    ):
        for line in lines:
            path, _, number = line.rstrip("\n").rpartition("\t")
            if keep[int(number)]:
                labelpath.write(f"{path}\t{numbers[int(number)]}\n")
                below = path[len(root) :] if root else f"/{path}"
                label.write(f"{below}\n")


def _nothing(root: str, skipped: Skipped) -> str:
    outside = skipped.expected["images outside an identity folder"]
    if outside:
        return (
            f"{root}: has {outside} images but none in an identity folder; put each person's "
            "images into a folder of their own, or set --id-key-index"
        )
    found = "; ".join(skipped.lines()) or "it is empty"
    return f"{root}: no images found ({found}); expected {root}/<identity>/<image>"


def table_of(paths: Iterator[str], file: Path) -> ImageList:
    """Writes paths to a list file and opens it as a table; None of them is kept in memory."""
    with replacing(file) as lines:
        for path in paths:
            lines.write(f"{path}\n")
    return read_table(file)
