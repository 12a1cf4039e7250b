"""Finds the images that a person names: files, folders, patterns, containers, list files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dataset.containers import is_container, split_member
from dataset.containers.listing import container_images
from dataset.left_out import VIDEO, Skipped, why_unread
from dataset.path_lists import listed_paths, refuse_missing
from dataset.video import first_bytes
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import IMAGE_SUFFIXES, format_of


def find_images(inputs: Sequence[str], skipped: Skipped) -> Iterator[str]:
    """The images that some inputs name, in the order typed.

    Args:
        inputs: image files; folders, searched below; patterns with `*`, `?` or `[`, of images,
            folders and containers; .rec, .tar and .bin files, and single members of them,
            `train.rec#17`; list files (`listed_paths`).
        skipped: takes what is not an image; says which pictures and videos are yielded too.

    Raises:
        UserError: an input that does not exist or matches nothing, or no image in all of them.
    """
    found = False
    for path in _each(inputs, skipped):
        found = True
        yield path
    if not found:
        shown = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
        why = "; ".join(skipped.lines()) or "it is empty"
        raise UserError(f"{shown}: no images found ({why})")


def walk_images(root: str, skipped: Skipped) -> Iterator[str]:
    """The images below `root`: `root/...`, files before folders, names in code-point order.

    Links to folders are followed, but not back into a folder that is being walked. Hidden files
    and folders, other kinds of files, dead links, unreadable folders and names that a list cannot
    hold go to `skipped`.
    """
    # Each folder with the device and inode of those above it, to see a link that leads back.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            status = os.stat(folder)
        except OSError:
            skipped.problem("folders that cannot be read", folder)
            continue
        if (status.st_dev, status.st_ino) in above:
            skipped.expected["links that lead back to a folder above them"] += 1
            continue
        above |= {(status.st_dev, status.st_ino)}
        folders = []
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                skipped.expected["hidden folders" if _is(entry.is_dir) else "hidden files"] += 1
            elif _is(entry.is_dir):
                folders.append((path, above))
            elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                yield from skipped.other_file(path)
            elif not _is(entry.is_file):
                skipped.problem("links to nothing, and other things that are no file", path)
            else:
                yield from skipped.fitting(path)
        stack.extend(reversed(folders))


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself, or to where we may not look
        return False


def _each(inputs: Sequence[str], skipped: Skipped) -> Iterator[str]:
    for name in inputs:
        if os.path.isdir(name):
            yield from walk_images(name.rstrip("/") or "/", skipped)
        elif os.path.isfile(name):
            yield from _of_file(name, skipped, len(inputs) == 1, may_be_list=True)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise UserError(f"{name}: matches no file")
            walked: set[Path] = set()
            for match in matches:
                if not walked.isdisjoint(Path(match).parents):  # ** also matches inside folders
                    continue
                if os.path.isdir(match):
                    walked.add(Path(match))
                    yield from walk_images(match.rstrip("/"), skipped)
                else:
                    yield from _of_file(match, skipped)
        elif (parts := split_member(name)) is not None and os.path.isfile(parts[0]):
            yield name
        else:
            raise UserError(f"{name}: {_why_not(name)}")


def _why_not(name: str) -> str:
    """Why something is neither a file nor a folder."""
    if "://" in name:
        return "is a stream or an address; save it as a file first"
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "no such file or folder"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "is a pipe, a socket or a device; name a file or a folder"


def names_one_image(inputs: Sequence[str], videos: bool) -> bool:
    """Whether all that is named is one image: a file, or the member of a container.

    A video that cannot be read is as an image; it holds many where `videos` are wanted.
    """
    if len(inputs) != 1:
        return False
    name = inputs[0]
    if not os.path.isfile(name):
        return not glob.has_magic(name) and split_member(name) is not None
    if is_container(name):
        return False
    return _looks_like_image(name) or why_unread(name) not in {None, VIDEO if videos else None}


def _of_file(
    name: str, skipped: Skipped, alone: bool = False, may_be_list: bool = False
) -> Iterator[str]:
    if is_container(name):
        yield from container_images(name, skipped)
    elif _looks_like_image(name):
        yield from skipped.fitting(name)
    elif may_be_list and why_unread(name) is None:
        yield from _of_list(name, skipped, alone)
    else:
        yield from skipped.other_file(name)


def _of_list(name: str, skipped: Skipped, alone: bool) -> Iterator[str]:
    """The paths of a list; without a path of an image, a file goes to `skipped` or is refused."""
    try:
        is_list = any(map(_may_be_image, listed_paths(name)))
    except UserError:
        if alone:
            raise
        is_list = False
    if is_list:
        refuse_missing(Path(name), listed_paths(name), "the list as", Path(name))
        yield from listed_paths(name)
    elif alone:
        raise UserError(
            f"{name}: is neither an image nor a list of images: no line of it names a file; a list "
            "holds one path a line, as seen from the current folder"
        )
    else:  # of a shell's `photos/*`
        skipped.problem("files that are neither images nor lists of images", name)


def _may_be_image(path: str) -> bool:
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES:
        return True
    return split_member(path) is not None or os.path.isfile(path)


def _looks_like_image(name: str) -> bool:
    """By its suffix, else by its first bytes."""
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return True
    return os.path.isfile(name) and format_of(first_bytes(name) or b"") is not None
