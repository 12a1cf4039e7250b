"""Files of scores, in the forms that people have, read into the rows of an image list."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import IO

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


def read_scores(path: Path, table: ImageList, form: ScoreForm | None = None) -> ListScores:
    """Reads the scores of a list of images, joined by path as `dataset.lists.join` does.

    A path that is listed twice with the same score (to .001) is taken once.

    Raises:
        UserError: as `open_scores`; a path listed twice with different scores; or no path of the
            list named.
    """
    scored, words = _open(path, form or ScoreForm())
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
    missing = int(np.count_nonzero(~found))
    empty = int(np.count_nonzero(np.isnan(values))) - missing
    strangers = len(scored) - int(np.count_nonzero(found))
    return ListScores(values, missing, empty, strangers, words)


def open_scores(path: Path, form: ScoreForm | None = None) -> ImageList:
    """Reads a file of scores in any of these forms.

    - CSV with a header line that names the columns (RFC 4180; also between `;` or TABs);
    - the same without a header: the path comes first, then the score;
    - `path score`, or `path v1 v2 ...` with at least 16 numbers, an embedding: its norm.

    In a scores.csv of --all-faces, a photo with one face is that face; others are left out.

    Returns:
        The paths, and the scores as `values`: NaN where a CSV has none.

    Raises:
        UserError: missing, another form, or a score that is not a finite number.
    """
    return _open(path, form or ScoreForm())[0]


@dataclass
class _Layout:
    """Where paths and scores are: the separator (a space for any), columns from 0, and more.

    `header`: its names, empty without one; `columns`: of a line between spaces, the first of which
    may hold spaces; `numbers`: how many an embedding has, 0 for none; `several`: photos left out,
    because they have several faces.
    """

    separator: str
    path_at: int = 0
    score_at: int = 1
    header: tuple[str, ...] = ()
    columns: int = 2
    numbers: int = 0
    several: set[str] = field(default_factory=set)

    @property
    def words(self) -> str:
        kind = {"\t": "TAB-separated", ";": "`;`-separated", ",": "CSV"}.get(self.separator)
        kind = kind or "space-separated"
        several = len(self.several)
        more = f"; left out: {count_of(several, 'photo')} with several faces" if several else ""
        if self.numbers:
            return f"{kind} embeddings of {self.numbers} numbers: the score is the norm{more}"
        if self.header:
            chosen = f"{self.header[self.path_at]} and {self.header[self.score_at]}"
            return f"{kind} with the columns {chosen}{more}"
        return (
            f"{kind} without a header: path in column {self.path_at + 1}, score in column "
            f"{self.score_at + 1}{more}"
        )


def _open(path: Path, form: ScoreForm) -> tuple[ImageList, str]:
    if path.is_fifo():
        raise UserError(f"{path}: is a pipe, and is read more than once; name a file")
    with (
        reading(path),
        open(path, encoding="utf-8-sig", newline="") as file,
        scratch_folder() as folder,
    ):
        layout = _layout(path, file.readline().strip("\r\n "), form)
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
                records = _single_faces(records, layout.several)
            with open(folder / "scores.txt", "w", encoding="utf-8", newline="\n") as text:
                text.writelines(f"{name}\t{score}\n" for name, score in records)
                if not text.tell():
                    raise UserError(f"{path}: holds no score; it has a header line alone")
            scored = replace(read_table(folder / "scores.txt", "score"), file=path)
            if layout.several:
                kept = [name not in layout.several for name in scored.paths()]
                scored = scored.subset(np.array(kept))
            if not len(scored):
                raise UserError(f"{path}: all its photos have several faces; score aligned faces")
    if form.lower_is_better:
        return replace(scored, values=-scored.values), layout.words + "; lower is better"
    return scored, layout.words


def _layout(path: Path, first: str, form: ScoreForm) -> _Layout:
    """The form of a file, from its first line; UserError where none fits."""
    if not first:
        return _Layout("\t")  # the reader of tables says that it is empty
    wanted = form.path_column, form.score_column
    for separator in (*"\t;,", " "):
        if separator in first:
            fields = _split(path, first, separator)
            layout = _columns(separator, fields, wanted)
            if layout is not None:
                if form.score_column == "score" and not (layout.header or layout.numbers):
                    _refuse_several(path, fields, layout)
                return layout
    if not set(first) & set("\t;,") and form == ScoreForm():
        raise UserError(f"{path}:1: expected `path TAB score`, a finite number")
    separator = next((one for one in "\t;," if one in first), " ")
    names = ", ".join(_split(path, first, separator)[:12])
    raise UserError(
        f"{path}:1: the header must name the columns {wanted[0]} and {wanted[1]}; it has: {names}"
        " (--path-column and --score-column name others; without a header, by their numbers)"
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
    if all(name in fields for name in wanted):
        path_at, score_at = map(fields.index, wanted)
        return _Layout(separator, path_at, score_at, tuple(fields), len(fields))
    if any(not name.isdigit() and name not in ("path", "score") for name in wanted):
        return None
    numbers, usual = list(takewhile(_is_finite, reversed(fields))), wanted == ("path", "score")
    if (
        usual
        and len(numbers) >= _LEAST_NUMBERS
        and (separator == " " or len(numbers) == len(fields) - 1)
    ):
        return _Layout(separator, columns=len(numbers) + 1, numbers=len(numbers))
    if usual and separator == " ":
        return _Layout(" ") if numbers and len(fields) > 1 else None
    path_at, score_at = (int(name) - 1 if name.isdigit() else i for i, name in enumerate(wanted))
    if not 0 <= min(path_at, score_at) <= max(path_at, score_at) < len(fields):
        return None
    score = fields[score_at]
    known = _is_finite(score) or (not score and separator != "\t")
    refused = _OTHER_NUMBER.fullmatch(score) or (separator == "\t" and score.lower() == "nan")
    columns = len(fields) if separator == " " else 2
    return _Layout(separator, path_at, score_at, (), columns) if known or refused else None


def _split(path: Path, line: str, separator: str) -> list[str]:
    if separator in "\t ":
        return line.split("\t") if separator == "\t" else line.split()
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise UserError(f"{path}:1: is not CSV ({error})") from error


def _records(path: Path, file: IO[str], layout: _Layout) -> Iterator[tuple[str, str]]:
    """Paths and scores; nan where a CSV has no score."""
    least = max(layout.path_at, layout.score_at, layout.numbers) + 1
    for number, fields in _rows(path, file, layout):
        where = f"{path}:{number}"
        if layout.header and len(fields) != len(layout.header):
            raise UserError(
                f"{where}: {count_of(len(fields), 'column')}, the header has {len(layout.header)}"
            )
        if len(fields) < least or (layout.numbers and len(fields) != least):
            raise UserError(f"{where}: is not as line 1: {layout.words}")
        name, score = fields[layout.path_at].strip(" "), fields[layout.score_at].strip()
        if not name or "\t" in name or "\n" in name or "\r" in name:
            raise UserError(f"{where}: has no path that fits a line")
        values = fields[1:] if layout.numbers else [score]
        if layout.numbers and not all(map(_is_finite, values)):
            raise UserError(
                f"{where}: expected a path and {layout.numbers} finite numbers, as in line 1"
            )
        if not (score or layout.separator == " ") and not layout.numbers:
            values, score = [], "nan"
        if not all(map(_is_finite, values)):
            remedy = "leave it empty where there is none"
            if _OTHER_NUMBER.fullmatch(score):
                remedy = f"write {score.rstrip('% ').replace(',', '.')}"
            raise UserError(f"{where}: score {score} is not a finite number; {remedy}")
        if layout.numbers:
            score = repr(math.hypot(*map(float, values)))
        yield name, score


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


def _rows(path: Path, file: IO[str], layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """The numbers and the fields of the lines that are not blank, without the header."""
    if layout.separator in "\t ":
        for number, line in enumerate(file, 1):
            text = line.rstrip("\r\n")
            if text.strip() and not (layout.header and number == 1):
                tabs = layout.separator == "\t"
                yield number, text.split("\t") if tabs else text.rsplit(None, layout.columns - 1)
        return
    records = csv.reader(file, delimiter=layout.separator, strict=True)
    try:
        if layout.header:
            next(records)
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
    if not len(again):
        return scored
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
