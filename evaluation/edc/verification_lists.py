"""Images by name: verification lists, and lists of images to leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.cli import is_count
from dataset.containers import is_container
from dataset.containers.listing import container_pairs
from dataset.lists import ImageList, last_parts
from sdd_fiqa.errors import UserError

Rows = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def read_names(path: Path, table: ImageList) -> Mask:
    """(N,) True for the images that a text file names, one a line, as `rows_of_names` reads them.

    Raises:
        UserError: missing, empty, or a name that is not in the list.
    """
    names = [(line, name.partition("\t")[0]) for line, name in read_lines(path)]
    rows = rows_of_names({name for _, name in names}, table)
    named = np.zeros(len(table), np.bool_)
    for line, name in names:
        if name not in rows:
            raise UserError(f"{path}:{line}: {name} is not in {table.file}; take the line out")
        named[rows[name]] = True
    return named


def read_pairs(path: Path, table: ImageList) -> tuple[Rows, Rows, Mask, int]:
    """Reads a verification list: LFW's pairs.txt, lines `a b 0|1`, or a .bin with its images.

    Returns:
        (P,) rows of the first and of the second image, (P,) True where both show one person, and
        how many pairs were left out because an image is not in the list.

    Raises:
        UserError: missing, another form, or no pair whose images are in the list.
    """
    pairs = _container_pairs(path) if is_container(str(path)) else _text_pairs(path)
    rows = rows_of_names({name for pair in pairs for name in pair[:2]}, table)
    known = [pair for pair in pairs if pair[0] in rows and pair[1] in rows]
    if not known:
        raise UserError(f"{path}: none of its images is in {table.file}")
    first = np.array([rows[pair[0]] for pair in known], np.int32)
    second = np.array([rows[pair[1]] for pair in known], np.int32)
    same = np.array([pair[2] for pair in known], np.bool_)
    return first, second, same, len(pairs) - len(known)


def _container_pairs(path: Path) -> list[tuple[str, str, bool]]:
    """By the file's name and the member: the list may have found it from another folder."""
    pairs = container_pairs(str(path))
    if pairs is None:
        raise UserError(f"{path}: holds no pairs")
    return [
        (f"{path.name}#{first}", f"{path.name}#{second}", same) for first, second, same in pairs
    ]


def _text_pairs(path: Path) -> list[tuple[str, str, bool]]:
    lines = [(number, line.split("\t")) for number, line in read_lines(path)]
    first = lines[0][1]
    header = [*first[0].split(), *first[1:]]
    if all(map(is_count, header)) and len(first) <= 2:
        return [_lfw_pair(path, number, line) for number, line in lines[1:]]
    return [_named_pair(path, number, line) for number, line in lines]


def rows_of_names(names: Iterable[str], table: ImageList) -> dict[str, int]:
    """The rows of images named in one of five ways; names that fit no row are left out.

    A name is the path, its last two parts, these without suffix, the file's name, or that without
    suffix: the first way in which any name fits holds for all of them.

    Raises:
        UserError: a name that fits two images.
    """
    wanted = set(names)
    ways: tuple[Callable[[str], str], ...] = (
        lambda path: path,
        last_parts,
        lambda path: _without_suffix(last_parts(path)),
        lambda path: last_parts(path, 1),
        lambda path: _without_suffix(last_parts(path, 1)),
    )
    for way in ways:
        rows: dict[str, int] = {}
        for row, path in enumerate(table.paths()):
            name = way(path)
            if name in wanted:
                if name in rows:
                    raise UserError(f"{table.file}: {name} fits two images: {path} is the second")
                rows[name] = row
        if rows:
            return rows
    return {}


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number.

    Raises:
        UserError: missing, empty, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    lines = [
        (number, line.rstrip("\r"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"{path}: is empty")
    return lines


def _lfw_pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    """`name i j` is one person, `name i other j` two; images are <name>/<name>_%04d."""
    if len(fields) == 3 and is_count(fields[1]) and is_count(fields[2]):
        name, i, other, j = fields[0], fields[1], fields[0], fields[2]
    elif len(fields) == 4 and is_count(fields[1]) and is_count(fields[3]):
        name, i, other, j = fields
    else:
        raise UserError(
            f"{path}:{number}: expected `name TAB i TAB j` or `name TAB i TAB other TAB j`, as in"
            " LFW's pairs.txt"
        )
    images = (f"{name}/{name}_{int(i):04d}", f"{other}/{other}_{int(j):04d}")
    return (*images, len(fields) == 3)


def _named_pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    if len(fields) == 1:
        fields = fields[0].split()
    if len(fields) != 3 or fields[2].strip() not in ("0", "1"):
        raise UserError(
            f"{path}:{number}: expected `image image 0|1` (between TABs where names hold spaces);"
            " 1 is one person"
        )
    return fields[0], fields[1], fields[2].strip() == "1"


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and "/" not in suffix else name
