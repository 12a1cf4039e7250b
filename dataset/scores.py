"""scores.csv as it is written: `path,score,status` and optional columns after them (RFC 4180)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.names import for_table

OK = "ok"
NOT_SCORED = "not scored: interrupted"


class NumberColumn(Sequence[str]):
    """Numbers as the text of a CSV column, made as they are asked for; empty where NaN."""

    def __init__(self, values: npt.NDArray[np.floating[Any]], decimals: int) -> None:
        """(N,) values, and how many decimals are written."""
        self._values, self._decimals = values, decimals

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
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
    columns = []
    if (percentiles := meaning.percentiles(values)) is not None:
        columns.append(("percentile", NumberColumn(percentiles, 1)))
    if (accepted := meaning.accepted(values)) is not None:
        columns.append(("accept", NumberColumn(accepted, 0)))
    return columns


def write_scores(
    file: IO[str],
    paths: Iterable[str],
    scores: Scores,
    columns: Sequence[tuple[str, Sequence[Any]]] = (),
) -> None:
    """Writes the header line and a row for each of N images: its score is empty if it has none.

    `columns` are names and N values of optional columns. A path that a spreadsheet would take for a
    formula gets `./` before it.
    """
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "score", "status", *(name for name, _ in columns)])
    for row, path in enumerate(paths):
        value = scores.values[row]
        text = "" if np.isnan(value) else f"{value:.4f}"
        more = [values[row] for _, values in columns]
        writer.writerow([for_table(path), text, scores.status(row), *more])
