"""Finds the images that a person names: files, folders, patterns, containers, list files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset.containers import is_container, split_member
from dataset.containers.listing import container_images
from dataset.left_out import BAD_NAMES, Skipped, fits_a_line
from dataset.lists import ImageList, read_table
from dataset.video import VIDEO_SUFFIXES, is_video
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing
from sdd_fiqa.images import IMAGE_SUFFIXES, is_image


def find_images(inputs: Sequence[str], skipped: Skipped, videos: bool = False) -> Iterator[str]:
    """The images that some inputs name, in the order typed.

    Args:
        inputs: image files; folders, searched below; patterns with `*`, `?` or `[`, of images,
            folders and containers; .rec, .tar and .bin files, and single members of them,
            `train.rec#17`; list files, one path a line (columns after a TAB are ignored).
        skipped: takes what is not an image.
        videos: whether videos are wanted too.

    Raises:
        UserError: an input that does not exist or matches nothing, or no image in all of them.
    """
    found = False
    for path in _each(inputs, skipped, videos):
        found = True
        yield path
    if not found:
        shown = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
        why = "; ".join(skipped.lines()) or "it is empty"
        raise UserError(f"{shown}: no images found ({why})")


def walk_images(root: str, skipped: Skipped, videos: bool = False) -> Iterator[str]:
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
            elif (suffix := os.path.splitext(entry.name)[1].lower()) not in IMAGE_SUFFIXES:
                if suffix in VIDEO_SUFFIXES and is_video(path):
                    yield from _video(path, skipped, videos)
                else:
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


def table_of(paths: Iterator[str], file: Path) -> ImageList:
    """Writes paths to a list file and opens it as a table; None of them is kept in memory."""
    with replacing(file) as lines:
        for path in paths:
            lines.write(f"{path}\n")
    return read_table(file)


def _each(inputs: Sequence[str], skipped: Skipped, videos: bool) -> Iterator[str]:
    for name in inputs:
        if os.path.isdir(name):
            yield from walk_images(name.rstrip("/") or "/", skipped, videos)
        elif os.path.isfile(name):
            yield from _of_file(name, skipped, videos)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise UserError(f"{name}: matches no file")
            walked: set[str] = set()
            for match in matches:
                if _is_below(match.rstrip("/"), walked):  # ** also matches inside folders
                    continue
                if os.path.isdir(match):
                    walked.add(match.rstrip("/"))
                    yield from walk_images(match.rstrip("/"), skipped, videos)
                elif is_container(match) or _looks_like_image(match) or is_video(match):
                    yield from _of_file(match, skipped, videos)
                else:
                    skipped.other_file(match)
        elif (parts := split_member(name)) is not None and os.path.isfile(parts[0]):
            yield name
        else:
            raise UserError(f"{name}: {_why_not(name)}")


def _is_below(path: str, folders: set[str]) -> bool:
    """Whether a path is below one of some folders."""
    while folders and (path := os.path.dirname(path)):
        if path in folders:
            return True
        if path == "/":
            break
    return False


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


def _video(name: str, skipped: Skipped, wanted: bool) -> Iterator[str]:
    if not wanted:
        skipped.problem("videos (eval.py scores them with --frames-per-second 2)", name)
    elif fits_a_line(name):
        yield name
    else:
        skipped.problem(BAD_NAMES, name)


def _of_file(name: str, skipped: Skipped, videos: bool) -> Iterator[str]:
    if is_container(name):
        yield from container_images(name, skipped)
    elif is_video(name):
        yield from _video(name, skipped, videos)
    elif not _looks_like_image(name):
        if _holds_zero_bytes(name):
            raise UserError(f"{name}: is not a readable image or text list (a video? HEIC?)")
        yield from read_table(name).paths()
    elif fits_a_line(name):
        yield name
    else:
        skipped.problem(BAD_NAMES, name)


def _holds_zero_bytes(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return b"\0" in file.read(4096)
    except OSError:
        return False  # read_table says why


def _looks_like_image(name: str) -> bool:
    """By its suffix, else by its first bytes."""
    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
        return True
    return os.path.isfile(name) and is_image(name)
