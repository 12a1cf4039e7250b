"""What the evaluator reads: scores from anywhere, and embeddings (names.py reads the rest).

Everything is brought to the rows of one image list (DATA.labelpath). What does not fit is one line
that names the file, the rule and the remedy.
"""

from __future__ import annotations

import csv
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.embeddings import check_origin
from dataset.lists import ImageList, join, read_table
from sdd_fiqa.errors import UserError

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_BLOCK = 8192


@dataclass(frozen=True)
class Scores:
    """One scorer's scores on an image list.

    Attributes:
        values: (N,) float64, NaN where the file has no score for the image.
        missing: images of the list that the file does not name.
        empty: images that it names without a score.
        strangers: records of the file that are not in the list.
    """

    values: Values
    missing: int
    empty: int
    strangers: int


def read_scores(path: Path, table: ImageList) -> Scores:
    """Reads `path,score[,...]` (RFC 4180, one header line), `path TAB score` or `path score`.

    Joined by path, as dataset.lists.join does.

    Raises:
        UserError: missing, another form, a score that is not a finite number, a path listed twice,
            or no path of the list named.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = path
        first = _first_line(path)
        if "\t" not in first and first:
            source = Path(folder) / "scores.txt"
            convert = _csv_to_text if "," in first else _spaced_to_text
            convert(path, source)
            if source.stat().st_size == 0:
                raise UserError(f"{path}: holds no score; it has a header line alone")
        scored = read_table(source, "score")
        if source == path and not np.all(np.isfinite(scored.values)):
            row = int(np.flatnonzero(~np.isfinite(scored.values))[0])
            raise UserError(
                f"{path}:{row + 1}: the score is not a finite number; leave the line out"
            )
        try:
            rows = join(table, scored)
        except UserError as error:
            if source == path:
                raise
            name = str(error).removeprefix(f"{source}:").partition(": ")[2]
            raise UserError(f"{path}: {name}") from error
    found = rows >= 0
    if not found.any():
        raise UserError(
            f"{path}: none of its {len(scored):,} paths is in {table.file}; the paths, or their"
            " last two parts, must agree"
        )
    values = np.where(found, scored.values[rows], np.nan)
    missing = int(np.count_nonzero(~found))
    empty = int(np.count_nonzero(np.isnan(values))) - missing
    return Scores(values, missing, empty, len(scored) - int(np.count_nonzero(found)))


def read_features(path: Path, table: ImageList) -> tuple[npt.NDArray[np.floating], str | None]:
    """Opens (N, D) embeddings, row i = line i of the list, without reading them.

    Returns:
        The array, mapped from disk, and what could not be checked, in words (None: all was).

    Raises:
        UserError: not a .npy of floats, another number of rows than the list, or made from another
            list.
    """
    features = open_array(path)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise UserError(
            f"{path}: holds {features.dtype} {features.shape}; embeddings are floats, (N, D)"
        )
    origin = check_origin(path, features.shape, table.file, table.sha256, len(table))
    return features, origin.note or None


def read_norms(features: Path, table: ImageList) -> Values:
    """The norms before normalisation, from Embedding_Norms.npy beside the embeddings: (N,)."""
    path = features.with_name("Embedding_Norms.npy")
    if not path.exists():
        raise UserError(f"{path}: is missing; --reference norm reads it from beside --feats")
    norms = open_array(path)
    if not np.issubdtype(norms.dtype, np.floating):
        raise UserError(f"{path}: holds {norms.dtype}; norms are floats")
    if norms.shape != (len(table),):
        raise UserError(f"{path}: shape {norms.shape}, but {table.file} has {len(table):,} lines")
    return np.asarray(norms, np.float64)


def open_array(path: Path) -> npt.NDArray[Any]:
    """Maps a .npy file.

    Raises:
        UserError: missing, cut off, or not a .npy.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist") from error
    except Exception as error:  # a damaged header is parsed as Python: it raises many kinds
        raise UserError(f"{path}: is not a whole .npy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: holds several arrays (.npz); save the embeddings alone, as .npy")
    return array


def usable_rows(features: npt.NDArray[np.floating]) -> Mask:
    """(N,) False where a row is zero (an unreadable image) or not finite."""
    usable = np.empty(len(features), np.bool_)
    for start in range(0, len(features), _BLOCK):
        length = np.linalg.norm(np.asarray(features[start : start + _BLOCK], np.float32), axis=1)
        usable[start : start + _BLOCK] = np.isfinite(length) & (length > 0)
    return usable


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


def _spaced_to_text(path: Path, target: Path) -> None:
    """Writes lines `path score`, with a space between them, as `path TAB score`."""
    with (
        open(path, encoding="utf-8-sig") as file,
        open(target, "w", encoding="utf-8", newline="\n") as text,
    ):
        try:
            for number, line in enumerate(file, 1):
                name, _, score = line.strip().rpartition(" ")
                if not name or not _is_finite(score):
                    raise UserError(f"{path}:{number}: expected `path TAB score`, a finite number")
                text.write(f"{name.rstrip()}\t{score}\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 text") from error


def _csv_to_text(path: Path, target: Path) -> None:
    """Writes the path and score columns of a CSV as `path TAB score`, nan where it is empty."""
    with (
        open(path, encoding="utf-8-sig", newline="") as file,
        open(target, "w", encoding="utf-8", newline="\n") as text,
    ):
        records = csv.reader(file, strict=True)
        try:
            header = next(records)
            if "path" not in header or "score" not in header:
                raise UserError(f"{path}:1: the header must name the columns path and score")
            path_at, score_at = header.index("path"), header.index("score")
            for record in records:
                if not record:
                    continue
                where = f"{path}:{records.line_num}"
                if len(record) != len(header):
                    raise UserError(f"{where}: {len(record)} columns, the header has {len(header)}")
                name, score = record[path_at], record[score_at].strip()
                if not name or "\t" in name or "\n" in name or "\r" in name:
                    raise UserError(f"{where}: has no path that fits a line")
                if score and not _is_finite(score):
                    raise UserError(
                        f"{where}: score {score} is not a finite number; leave it empty where there"
                        " is none"
                    )
                text.write(f"{name}\t{score or 'nan'}\n")
        except csv.Error as error:
            raise UserError(f"{path}:{records.line_num}: is not CSV ({error})") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 text") from error


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
