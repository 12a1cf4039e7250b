"""Text files that name images: verification lists, and lists of images to leave out."""

from __future__ import annotations

import csv
from collections.abc import Callable
from os.path import splitext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.cli import is_count
from dataset.lists import ImageList, last_parts
from evaluation.edc.pairs import Mask, Rows
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import reading, sha256_of
from sdd_fiqa.number import count_of

_FOLDS = 10
_HEADS = ("path", "image", "file", "filename", "file_name", "name", "img", "image_path")


class PairList(NamedTuple):
    """P pairs in rows of an image list: (P,) first, (P,) second, (P,) True where same person."""

    first: Rows
    second: Rows
    same: Mask


def read_names(path: Path, images: ImageList) -> Mask:
    """(N,) True for the images that a text file names, one a line; see `rows_of_names`.

    Raises:
        UserError: missing, empty, or a name that is not in the list.
    """
    names = [(line, name.partition("\t")[0]) for line, name in read_lines(path)]
    rows = rows_of_names(path, {name for _, name in names}, images)
    named = np.zeros(len(images), np.bool_)
    for line, name in names:
        if name not in rows:
            raise UserError(f"{path}:{line}: {name} is not in {images.file}; take the line out")
        named[rows[name]] = True
    return named


def read_pairs(path: Path, images: ImageList) -> tuple[PairList, int]:
    """Reads a verification list: LFW's pairs.txt, CPLFW's, lines `a b 0|1` or `0|1 a b`, or a .bin.

    Returns:
        The pairs, and how many were left out because an image is not in the list.

    Raises:
        UserError: missing, another form, the list itself, or no pair whose images are in it.
    """
    from dataset.containers import is_container
    from dataset.containers.listing import container_pairs

    if is_container(str(path)):
        held = container_pairs(str(path))
        if not held:
            raise UserError(f"{path}: holds no pairs")
        name = path.name  # without its folder: the list may be made in another one
        pairs = [(f"{name}#{first}", f"{name}#{second}", same) for first, second, same in held]
    elif path.is_file() and sha256_of(path) == images.sha256:
        raise UserError(f"{path}: is the list of identities, not of pairs; leave --pairs out")
    else:
        pairs = _text_pairs(path)
    rows = rows_of_names(path, {name for pair in pairs for name in pair[:2]}, images)
    known = [
        (rows[first], rows[second], same)
        for first, second, same in pairs
        if first in rows and second in rows
    ]
    first, second, same = np.array(known, np.int32).reshape(-1, 3).T
    return PairList(first, second, same == 1), len(pairs) - len(known)


def _text_pairs(path: Path) -> list[tuple[str, str, bool]]:
    lines = read_lines(path)
    header = lines[0][1].split()
    counts = all(map(is_count, header)) and len(header) <= 2
    lfw = [(number, _lfw_fields(line)) for number, line in lines]
    if counts or any(len(one) == 4 and is_count(one[1]) and is_count(one[3]) for _, one in lfw):
        counts = counts or not any(map(is_count, lfw[0][1]))  # or a line of words
        return [_lfw_pair(path, number, fields) for number, fields in lfw[counts:]]
    if len(_split(lines[0][1], 2)) == 2:
        return _two_line_pairs(path, lines)
    found = []
    for number, line in lines:
        fields = _split(line, 3)
        if len(fields) == 3 and fields[2] in ("0", "1"):
            found.append((fields[0], fields[1], fields[2] == "1"))
        elif len(fields) == 3 and fields[0] in ("0", "1"):
            found.append((fields[1], fields[2], fields[0] == "1"))
        elif number > lines[0][0] or not _is_header(line, fields):
            raise UserError(
                f"{path}:{number}: expected `image image 0|1` or `0|1 image image` (between TABs or"
                " commas where names hold spaces); 1 is one person"
            )
    return found


def _is_header(line: str, fields: list[str]) -> bool:
    numbers = any(field.lstrip("-").isdigit() for field in fields)
    return len(fields) == 3 and not numbers and not set("./") & set(line)


def _two_line_pairs(path: Path, lines: list[tuple[int, str]]) -> list[tuple[str, str, bool]]:
    """CPLFW's form: two lines `image 0|1` are a pair; CALFW has a fold's number in place of 1."""
    fields = [(number, _split(line, 2)) for number, line in lines]
    for number, one in fields:
        if len(one) != 2 or not (is_count(one[1]) and int(one[1]) <= _FOLDS):
            raise UserError(
                f"{path}:{number}: expected `image image 0|1`, or `image 0|1` on two lines a pair"
                " (as in CPLFW's list); 1 is one person"
            )
    if len(fields) % 2:
        raise UserError(
            f"{path}: has {count_of(len(fields), 'line')} `image 0|1`; two lines make a pair"
        )
    found = []
    pairs = zip(fields[::2], fields[1::2], strict=True)
    for (_, (first, label)), (number, (second, other)) in pairs:
        if label != other:
            raise UserError(f"{path}:{number}: the two lines of a pair must have the same label")
        found.append((first, second, label != "0"))
    return found


def read_fields(path: Path, form: str) -> list[tuple[int, list[str]]]:
    """The lines of a text file, each as its number and its fields; names may hold spaces.

    A first line that begins with a word of _HEADS is a header. `form` names the fields of a line.

    Raises:
        UserError: as read_lines, no line below the header, or another number of fields.
    """
    count = len(form.split())
    found = [(number, _split(line, count)) for number, line in read_lines(path)]
    if found[0][1][0].lower() in _HEADS:
        del found[0]
    if not found:
        raise UserError(f"{path}: has a header line alone; add lines `{form}`")
    for number, fields in found:
        if len(fields) != count or not all(fields):
            raise UserError(f"{path}:{number}: expected `{form}`, between TABs or commas")
    return found


def _split(line: str, count: int) -> list[str]:
    """The fields of a line: at TABs, else at semicolons, commas or spaces, the first that fit.

    Between semicolons and commas, a field may be in quotes.
    """
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    for separator in ";,":
        fields = line.split(separator)
        if '"' in line:
            fields = next(csv.reader([line], delimiter=separator))
        if len(fields) == count:
            return [field.strip() for field in fields]
    return line.split()


def rows_of_names(file: Path, names: set[str], images: ImageList) -> dict[str, int]:
    """The rows of images that a file names in one of five ways; names of no row are left out.

    A name is the path, its last two parts, these without suffix, the file's name, or that without
    suffix. The first way in which any name matches is used for all of them.

    Raises:
        UserError: a name that matches two images, or none that matches one.
    """
    ways: tuple[Callable[[str], str], ...] = (
        lambda path: path,
        last_parts,
        lambda path: splitext(last_parts(path))[0],
        lambda path: last_parts(path, 1),
        lambda path: splitext(last_parts(path, 1))[0],
    )
    for way in ways:
        rows: dict[str, int] = {}
        for row, path in enumerate(images.paths()):
            name = way(path)
            if name in names:
                if name in rows:
                    raise UserError(f"{images.file}: {name} matches two images, also {path}")
                rows[name] = row
        if rows:
            return rows
    raise UserError(f"{file}: none of its images is in {images.file}, for example {min(names)}")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number.

    Raises:
        UserError: missing, empty, or not UTF-8.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    numbered = enumerate(text.split("\n"), 1)
    lines = [(number, line.rstrip("\r")) for number, line in numbered if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty")
    return lines


def _lfw_fields(line: str) -> list[str]:
    """The fields between TABs, semicolons, commas or spaces, the first that there are."""
    separator = next((one for one in "\t;," if one in line), None)
    return [field.strip() for field in line.rstrip("\t;, ").split(separator)]


def _lfw_pair(path: Path, number: int, fields: list[str]) -> tuple[str, str, bool]:
    """`name i j` is one person, `name i other j` two; an image is <name>/<name>_%04d."""
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
