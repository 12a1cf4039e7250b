"""scores.csv, written and read: `path,score,status` and optional columns after them (RFC 4180)."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dataset.lists import ImageList, join, read_table
from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.errors import UserError

OK = "ok"
NOT_SCORED = "not scored: interrupted"


class NumberColumn(Sequence[str]):
    """Numbers as the text of a CSV column, made as they are asked for; empty where NaN."""

    def __init__(self, values: npt.NDArray[np.floating[Any]], decimals: int) -> None:
        """(N,) values, and how many decimals are written."""
        self._values, self._decimals = values, decimals

    def __len__(self) -> int:
        """N."""
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        """The text of one row."""
        value = self._values[row]
        return "" if np.isnan(value) else f"{value:.{self._decimals}f}"


@dataclass
class Scores:
    """The scores of N images and why some have none.

    Attributes:
        values: (N,) float32, the network's own output; NaN where there is none.
        reasons: {row: why it has no score}.
    """

    values: npt.NDArray[np.float32]
    reasons: dict[int, str] = field(default_factory=dict)

    @classmethod
    def none(cls, count: int) -> Scores:
        """N images, none scored yet."""
        return cls(np.full(count, np.nan, np.float32))

    def status(self, row: int) -> str:
        """`ok`, or why there is no score."""
        if np.isnan(self.values[row]):
            return self.reasons.get(row, NOT_SCORED)
        return OK


def calibrated_columns(
    meaning: ScoreInterpretation, values: npt.NDArray[np.float32]
) -> list[tuple[str, NumberColumn]]:
    """The columns percentile and accept (1 or 0) of (N,) scores; those that were asked for."""
    arrays = {
        "percentile": (meaning.percentiles(values), 1),
        "accept": (meaning.accepted(values), 0),
    }
    return [
        (name, NumberColumn(array, decimals))
        for name, (array, decimals) in arrays.items()
        if array is not None
    ]


def write_scores(
    file: IO[str],
    paths: Iterable[str],
    scores: Scores,
    columns: Sequence[tuple[str, Sequence[Any]]] = (),
) -> None:
    """Writes the header line and a row an image, in the order of `paths`.

    Args:
        file: open for text.
        paths: N paths.
        scores: their scores; empty where there is none.
        columns: names and N values of optional columns.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "score", "status", *(name for name, _ in columns)])
    for row, path in enumerate(paths):
        value = scores.values[row]
        text = "" if np.isnan(value) else f"{value:.4f}"
        more = [values[row] for _, values in columns]
        writer.writerow([path, text, scores.status(row), *more])


@dataclass(frozen=True)
class ListScores:
    """Scores that were read from a file, in the rows of an image list.

    Attributes:
        values: (N,) float64, NaN where the file has no score for the image.
        missing: images of the list that the file does not name.
        empty: images that it names without a score.
        strangers: records of the file that are not in the list.
    """

    values: npt.NDArray[np.float64]
    missing: int
    empty: int
    strangers: int


def read_scores(path: Path, table: ImageList) -> ListScores:
    """Reads the scores of a list of images, joined by path as `dataset.lists.join` does.

    Raises:
        UserError: as `open_scores`; a path listed twice; or no path of the list named.
    """
    scored = open_scores(path)
    try:
        rows = join(table, scored)
    except UserError as error:
        if "\t" in _first_line(path):
            raise
        # The line is that of the text which was made from the file.
        what = str(error).removeprefix(f"{path}:").partition(": ")[2]
        raise UserError(f"{path}: {what}") from error
    found = rows >= 0
    if not found.any():
        raise UserError(
            f"{path}: none of its {len(scored):,} paths is in {table.file}; the paths, or their"
            " last two parts, must agree"
        )
    values = np.where(found, scored.values[rows], np.nan)
    missing = int(np.count_nonzero(~found))
    empty = int(np.count_nonzero(np.isnan(values))) - missing
    return ListScores(values, missing, empty, len(scored) - int(np.count_nonzero(found)))


def open_scores(path: Path) -> ImageList:
    """Reads `path,score[,...]` (RFC 4180, one header line), `path TAB score` or `path score`.

    Returns:
        The paths, and the scores as `values`: NaN where a CSV has none.

    Raises:
        UserError: missing, another form, or a score that is not a finite number.
    """
    first = _first_line(path)
    if not first or "\t" in first:
        scored = read_table(path, "score")
        if len(bad := np.flatnonzero(~np.isfinite(scored.values))):
            raise UserError(
                f"{path}:{bad[0] + 1}: the score is not a finite number; leave the line out"
            )
        return scored
    records = _csv_records if "," in first else _spaced_records
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scores.txt"
        try:
            with (
                open(path, encoding="utf-8-sig", newline="") as file,
                open(source, "w", encoding="utf-8", newline="\n") as text,
            ):
                text.writelines(f"{name}\t{score}\n" for name, score in records(path, file))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 text") from error
        if source.stat().st_size == 0:
            raise UserError(f"{path}: holds no score; it has a header line alone")
        return replace(read_table(source, "score"), file=path)


def _first_line(path: Path) -> str:
    if path.is_fifo():
        raise UserError(f"{path}: is a pipe, and is read more than once; name a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.readline().strip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error


def _spaced_records(path: Path, file: IO[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        name, _, score = line.strip().rpartition(" ")
        if not name or not _is_finite(score):
            raise UserError(f"{path}:{number}: expected `path TAB score`, a finite number")
        yield name.rstrip(), score


def _csv_records(path: Path, file: IO[str]) -> Iterator[tuple[str, str]]:
    """The columns path and score; nan where there is no score."""
    records = csv.reader(file, strict=True)
    try:
        header = next(records)
        if "path" not in header or "score" not in header:
            raise UserError(f"{path}:1: the header must name the columns path and score")
        path_at, score_at = header.index("path"), header.index("score")
        for record in filter(None, records):
            where = f"{path}:{records.line_num}"
            if len(record) != len(header):
                raise UserError(f"{where}: {len(record)} columns, the header has {len(header)}")
            name, score = record[path_at], record[score_at].strip()
            if not name or "\t" in name or "\n" in name or "\r" in name:
                raise UserError(f"{where}: has no path that fits a line")
            if score and not _is_finite(score):
                raise UserError(
                    f"{where}: score {score} is not a finite number; leave it empty where there is"
                    " none"
                )
            yield name, score or "nan"
    except csv.Error as error:
        raise UserError(f"{path}:{records.line_num}: is not CSV ({error})") from error


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
