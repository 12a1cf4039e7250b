"""Files of scores, in the forms that people have, read into the rows of an image list."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.lists import ImageList, join, read_table, repeated_rows
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import reading, scratch_folder
from sdd_fiqa.number import count_of, plain_number

_OTHER_NUMBER = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)?\s*%?")  # 0,85 or 85 %
_IDENTITIES = 0.9  # as large a share of values equal to the identities are no scores
_LEAST_NUMBERS = 16  # after a path: as many are an embedding, fewer are columns


@dataclass(frozen=True)
class ScoreForm:
    """How a file of scores is read.

    Attributes:
        score_column: the column's name; in a file without a header, its number, from 1.
        path_column: as score_column.
        lower_is_better: scores are negated, so that higher is better.
    """

    score_column: str = "score"
    path_column: str = "path"
    lower_is_better: bool = False


@dataclass(frozen=True)
class ListScores:
    """Scores that were read from a file, in the rows of an image list.

    Attributes:
        values: (N,) float64, higher is better; NaN where the file has no score for the image.
        missing: images of the list that the file does not name.
        empty: images that it names without a score.
        strangers: records of the file that are not in the list.
        form: how the file was read, in words.
    """

    values: npt.NDArray[np.float64]
    missing: int
    empty: int
    strangers: int
    form: str


_USUAL = ScoreForm()


def read_scores(path: Path, table: ImageList, form: ScoreForm = _USUAL) -> ListScores:
    """Reads the scores of a list of images, joined by path as `dataset.lists.join` does.

    A path that is listed twice with the same score (to .001) is taken once.

    Raises:
        UserError: as `open_scores`; a path listed twice with different scores; or no path of the
            list named.
    """
    scored, words = open_scores(path, form)
    scored = _without_repeats(scored)
    rows = join(table, scored)
    found = rows >= 0
    if not found.any():
        raise UserError(
            f"{path}: none of its paths is in {table.file}, for example"
            f" {scored.path(0)}; the paths, or their last two parts, must agree"
        )
    values = np.where(found, scored.values[rows], np.nan)
    if len(table.values) and np.mean(values[found] == np.round(table.values[found])) > _IDENTITIES:
        raise UserError(f"{path}: holds the identities of {table.file}, not scores")
    named = int(found.sum())
    empty = int(np.isnan(values[found]).sum())
    return ListScores(values, len(table) - named, empty, len(scored) - named, words)


def open_scores(path: Path, form: ScoreForm = _USUAL) -> tuple[ImageList, str]:
    """Reads a file of scores in any of these forms.

    - CSV with a header line that names the columns (RFC 4180; also between `;` or TABs);
    - the same without a header: the path comes first, then the score;
    - `path score`, or `path v1 v2 ...` with at least 16 numbers, an embedding: its norm.

    In a scores.csv of --all-faces, a photo with one face is that face; others are left out.

    Returns:
        The paths, and the scores as `values`: NaN where a CSV has none. Then how the file was read,
        in words.

    Raises:
        UserError: missing, another form, or a score that is not a finite number.
    """
    if path.is_fifo():
        raise UserError(f"{path}: is a pipe, and is read more than once; name a file")
    several: set[str] = set()  # photos with several faces
    with (
        reading(path),
        open(path, encoding="utf-8-sig", newline="") as file,
        scratch_folder() as folder,
    ):
        layout = _layout(path, file.readline().strip("\r\n "), form)
        words = layout.words
        if layout == _Layout("\t"):
            scored = read_table(path, "score")
            if len(bad := np.flatnonzero(~np.isfinite(scored.values))):
                raise UserError(
                    f"{path}:{bad[0] + 1}: the score is not a finite number; leave the line out"
                )
        else:  # written as `path TAB score`, which is read
            file.seek(0)
            records = _records(path, file, layout)
            if "box_x" in layout.header:
                records = _single_faces(records, several)
            with open(folder / "scores.txt", "w", encoding="utf-8", newline="\n") as text:
                text.writelines(f"{name}\t{score}\n" for name, score in records)
                if not text.tell():
                    raise UserError(f"{path}: holds no score; it has a header line alone")
            scored = replace(read_table(folder / "scores.txt", "score"), file=path)
        if several:
            scored = scored.subset(np.array([name not in several for name in scored.paths()]))
            words += f"; left out: {count_of(len(several), 'photo')} with several faces"
        if not len(scored):
            raise UserError(f"{path}: all its photos have several faces; score aligned faces")
    if form.lower_is_better:
        return replace(scored, values=-scored.values), words + "; lower is better"
    return scored, words


class _Layout(NamedTuple):
    """Where paths and scores are: the separator (a space for any), columns from 0, and more.

    `header`: its names, empty without one; `columns`: of a line between spaces, the first of which
    may hold spaces; `numbers`: how many an embedding has, 0 for none.
    """

    separator: str
    path_at: int = 0
    score_at: int = 1
    header: tuple[str, ...] = ()
    columns: int = 2
    numbers: int = 0

    @property
    def words(self) -> str:
        kinds = {"\t": "TAB-separated", ";": "`;`-separated", ",": "CSV", " ": "space-separated"}
        if self.numbers:
            what = f"embeddings of {self.numbers} numbers: the score is the norm"
        elif self.header:
            what = f"with the columns {self.header[self.path_at]} and {self.header[self.score_at]}"
        else:
            what = f"without a header: path in column {self.path_at + 1}, "
            what += f"score in column {self.score_at + 1}"
        return f"{kinds[self.separator]} {what}"


def _layout(path: Path, first: str, form: ScoreForm) -> _Layout:
    """The form of a file, from its first line; UserError where none fits."""
    if not first:
        return _Layout("\t")  # the reader of tables says that it is empty
    wanted = form.path_column, form.score_column
    for separator in "\t;, ":
        if separator in first:
            fields = _split(path, first, separator)
            layout = _columns(separator, fields, wanted)
            if layout is not None:
                if form.score_column == "score" and not (layout.header or layout.numbers):
                    _refuse_several(path, fields, layout)
                return layout
    separator = next((one for one in "\t;," if one in first), " ")
    names = ", ".join(_split(path, first, separator)[:12])
    raise UserError(
        f"{path}:1: expected `path TAB score`, or a header that names the columns {wanted[0]} and "
        f"{wanted[1]}; it has: {names} (--path-column and --score-column name others; without a "
        "header, by their numbers)"
    )


def _refuse_several(path: Path, fields: list[str], layout: _Layout) -> None:
    """Refuses a first line with several numbers after a path, any of which may be the score."""
    numbers = [at for at, one in enumerate(fields) if at != layout.path_at and _is_finite(one)]
    before = fields[: numbers[0]] if numbers else []
    if layout.separator == " " and not (before and "." in before[-1]):  # a name that holds numbers
        return
    if len(numbers) > 1:
        shown = " or ".join(f"{at + 1} (here {fields[at]})" for at in numbers[:5])
        raise UserError(
            f"{path}:1: has several numbers and no header: name the columns path and score in a "
            f"header line, or add --score-column {shown}"
        )


def _columns(separator: str, fields: list[str], wanted: tuple[str, str]) -> _Layout | None:
    """The form of a first line that is split at a separator; None where it does not fit."""
    fields = [field.strip() for field in fields]
    if set(wanted) <= set(fields):
        path_at, score_at = map(fields.index, wanted)
        return _Layout(separator, path_at, score_at, tuple(fields), len(fields))
    if wanted == ("path", "score"):
        numbers = len(list(takewhile(_is_finite, reversed(fields))))
        if numbers >= _LEAST_NUMBERS and (separator == " " or numbers == len(fields) - 1):
            return _Layout(separator, columns=numbers + 1, numbers=numbers)
        if separator == " ":
            return _Layout(" ") if numbers > 0 and len(fields) > 1 else None
    numbered = [{"path": "1", "score": "2"}.get(name, name) for name in wanted]
    if not all(map(str.isdecimal, numbered)):
        return None
    path_at, score_at = (int(number) - 1 for number in numbered)
    if not 0 <= min(path_at, score_at) <= max(path_at, score_at) < len(fields):
        return None
    score = fields[score_at]
    none = "nan" if separator == "\t" else ""  # is refused between TABs, with its line
    if not (_is_finite(score) or _OTHER_NUMBER.fullmatch(score) or score.lower() == none):
        return None
    return _Layout(separator, path_at, score_at, (), len(fields) if separator == " " else 2)


def _records(path: Path, file: IO[str], layout: _Layout) -> Iterator[tuple[str, str]]:
    """Paths and scores; nan where a CSV has no score."""
    least = max(layout.path_at, layout.score_at) + 1
    rows = _rows(path, file, layout.separator, layout.columns)
    if layout.header:
        next(rows)
    for number, fields in rows:
        where = f"{path}:{number}"
        exact = layout.header or layout.numbers
        fits = len(fields) == layout.columns if exact else len(fields) >= least
        if not fits or not all(map(_is_finite, fields[1 : 1 + layout.numbers])):
            columns = count_of(len(fields), "column")
            raise UserError(f"{where}: is not as line 1 (here {columns}): {layout.words}")
        name = fields[layout.path_at].strip(" ")
        if not name or set(name) & set("\t\n\r"):
            raise UserError(f"{where}: has no path that fits a line")
        if layout.numbers:
            yield name, repr(math.hypot(*map(float, fields[1:])))
            continue
        score = fields[layout.score_at].strip()
        if score and not _is_finite(score):
            remedy = "leave it empty where there is none"
            if _OTHER_NUMBER.fullmatch(score):
                remedy = f"write {score.rstrip('% ').replace(',', '.')}"
            raise UserError(f"{where}: score {score} is not a finite number; {remedy}")
        yield name, score or "nan"


def _single_faces(
    records: Iterator[tuple[str, str]], several: set[str]
) -> Iterator[tuple[str, str]]:
    """Of --all-faces: photo#1 is the face of a photo; those with another one go to `several`."""
    for name, score in records:
        photo, _, face = name.rpartition("#")
        if not (photo and face.isdigit()):
            yield name, score
        elif face == "1":
            yield photo, score
        else:
            several.add(photo)


def _split(path: Path, line: str, separator: str) -> list[str]:
    """The fields of a first line."""
    return next(_rows(path, [line], separator), (1, []))[1]


def _rows(
    path: Path, lines: Iterable[str], separator: str, columns: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """The numbers and the fields of lines that are not blank; `columns` of those between spaces."""
    if separator in "\t ":
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if text.strip():
                tabs = separator == "\t"
                yield number, text.split("\t") if tabs else text.rsplit(None, columns - 1)
        return
    records = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for record in filter(None, records):
            yield records.line_num, record
    except csv.Error as error:
        raise UserError(f"{path}:{records.line_num}: is not CSV ({error})") from error


def _without_repeats(scored: ImageList) -> ImageList:
    """Each path once.

    Raises:
        UserError: a path with scores that differ by more than .001 (where they span less than 1,
            by more than a thousandth of that).
    """
    first, again = repeated_rows(scored)
    values = scored.values
    known = values[np.isfinite(values)]
    margin = 0.001 * min(1.0, float(np.ptp(known)) if len(known) else 0.0)
    one, other = values[first], values[again]
    equal = (np.abs(one - other) <= margin) | (np.isnan(one) & np.isnan(other))
    if not equal.all():
        at = int(np.flatnonzero(~equal)[0])
        raise UserError(
            f"{scored.file}: {scored.path(int(again[at]))} is listed twice, with the scores"
            f" {one[at]:g} and {other[at]:g}; keep one"
        )
    kept = np.ones(len(scored), np.bool_)
    kept[again] = False
    return scored.subset(kept)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(plain_number(text))
    except ValueError:
        return False
