"""The lists that people write: one path a line, or the scores.csv of an earlier run."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from dataset.containers import is_container, split_member
from dataset.left_out import fits_a_line
from dataset.lists import ImageList, refuse_repeats, table_of
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import reading, scratch_folder

_SOUGHT = 100  # missing images that are looked for in other folders
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_FACE = re.compile(r"(?:#t=[0-9.]+)?(?:#[0-9]+)?\Z")


def listed_paths(file: str | os.PathLike[str]) -> Iterator[str]:
    """The paths that a list names, in its order.

    A list is text, UTF-8 or UTF-16 with its mark, of one path a line. What follows a TAB is
    ignored, and so are blank lines and lines that begin with `#`, unless a file has that name. A
    scores.csv names the photos of its rows, each once.

    Raises:
        UserError: missing, unreadable, not text, or without a path; with the number of the line.
    """
    name = os.fspath(file)
    with reading(name, "check its name"), open(name, "rb") as source:
        lines = _text(name, source)
        first = next(lines, "")
        paths = _photos if _is_scores(first) else _plain
        found = False
        for path in paths(name, chain([first], lines)):
            found = True
            yield path
    if not found:
        raise UserError(f"{name}: is empty; a list holds one path a line")


def read_paths(file: Path) -> ImageList:
    """The paths that a list names, each once.

    Raises:
        UserError: as `listed_paths`; or a path is listed twice.
    """
    with scratch_folder() as folder:
        listed = replace(table_of(listed_paths(file), folder / "paths.txt"), file=file)
    refuse_repeats(listed)
    return listed


def refuse_missing(file: Path, paths: Iterable[str], flag: str, named: Path) -> None:
    """Raises UserError if no image of a list exists; says from which folder its paths lead to them.

    Paths are read up to the first that exists. `named` is the list, or the folder that holds it, as
    `flag` names it on the command line.
    """
    missing: list[str] = []
    for path in paths:
        if _exists(path):
            return
        if len(missing) < _SOUGHT:
            missing.append(path)
    for folder in Path(os.path.abspath(file)).parents:
        if any(_exists(folder / path) for path in missing):
            relative = shlex.quote(os.path.relpath(named, folder))
            raise UserError(
                f"{file}: its paths are relative to another folder; run the command there: "
                f"cd {shlex.quote(str(folder))} (and {flag} {relative})"
            )
    remedy = "run the command in the folder that the paths are relative to"
    if os.path.isabs(missing[0]):
        remedy = "write the list again"
    raise UserError(f"{file}: none of its images exists, for example {missing[0]}; {remedy}")


def _exists(path: str | Path) -> bool:
    """Whether the image exists, or the container that it is a member of (train.rec#17)."""
    name = os.fspath(path)
    ends = [len(name), *(place for place, letter in enumerate(name) if letter == "#")]
    return any(os.path.isfile(name[:end]) for end in ends)


def _text(name: str, source: io.BufferedReader) -> Iterator[str]:
    """The lines with their ends."""
    number = 0
    try:
        if source.peek(2)[:2] in _UTF16_MARKS:
            yield from io.TextIOWrapper(source, "utf-16", newline="")
            return
        for number, raw in enumerate(source):
            line = raw.decode("utf-8-sig" if number == 0 else "utf-8")
            if "\0" in line:
                raise UserError(
                    f"{name}: is not a readable image or text list (line {number + 1} holds a "
                    "zero byte)"
                )
            yield line
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}:{number + 1}: is not UTF-8 text; a list is text, one path a line"
        ) from error


def _is_scores(first: str) -> bool:
    header = next(csv.reader([first]), []) if first.startswith("path,") else []
    return "path" in header and "score" in header


def _plain(name: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        path = line.rstrip("\r\n").partition("\t")[0]
        if not line.strip() or (line.startswith("#") and not os.path.isfile(path)):
            continue
        if not path:
            raise UserError(f"{name}:{number}: has no path; a list holds one path a line")
        yield path


def _photos(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Of the rows of a scores.csv; those of one photo come one after the other."""
    records = csv.reader(lines, strict=True)
    column = next(records).index("path")
    before = None
    try:
        for record in filter(None, records):
            path = record[column] if column < len(record) else ""
            if not path or not fits_a_line(path):
                raise UserError(f"{name}:{records.line_num}: has no path that fits a line")
            photo = _without_face(path)
            if photo != before:
                yield photo
            before = photo
    except csv.Error as error:
        raise UserError(f"{name}:{records.line_num}: is not CSV ({error})") from error


def _without_face(path: str) -> str:
    """`a.jpg#2` -> `a.jpg`, unless a file has that name or it is the member of a container."""
    photo = _FACE.sub("", path)
    if photo == path or os.path.isfile(path) or is_container(photo):
        return path
    return photo if os.path.isfile(photo) or split_member(photo) else path
