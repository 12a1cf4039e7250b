"""What a score means: its percentile among the calibration faces, and whether it is accepted.

`evaluation.calibration` makes the calibration of a model. This file reads it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of

DECIMALS = 4  # of a score in scores.csv, and of the thresholds it is compared with
_FEW = 5  # with fewer scores the median is not reliable

Scores = npt.NDArray[np.floating[Any]]
Calibration = Mapping[str, Any]


@dataclass(frozen=True)
class ScoreInterpretation:
    """What a run reports about its scores, from the calibration of the model.

    Attributes:
        calibration: the model's; None if it has none.
        percentile: whether each score gets its percentile.
        accept: the share of calibration faces to accept, or None.
    """

    calibration: Calibration | None
    percentile: bool
    accept: float | None

    @classmethod
    def of(
        cls, calibration: object, model: str, percentile: bool, accept: float | None
    ) -> ScoreInterpretation:
        """Checks the request before anything is scored.

        Raises:
            UserError: the share is outside (0, 1]; or a percentile or a share is asked for and the
                model's calibration is missing or damaged.
        """
        if accept is not None and not 0 < accept <= 1:
            raise UserError(f"--accept {accept}: must be above 0 and at most 1; 0.95 keeps 95 %")
        if percentile or accept is not None:
            return cls(usable(calibration, model), percentile, accept)
        try:
            return cls(usable(calibration, model) if calibration else None, percentile, accept)
        except UserError as error:  # it is not needed: no reason to stop
            logging.getLogger("sdd_fiqa").warning("%s", error)
            return cls(None, percentile, accept)

    @property
    def threshold(self) -> float | None:
        """The lowest score of an accepted face, or None."""
        if self.accept is None or self.calibration is None:
            return None
        return threshold_that_keeps(self.accept, self.calibration)

    def percentiles(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
        """Percentiles of (N,) scores, NaN where a score is not finite; None if not asked for."""
        if not self.percentile or self.calibration is None:
            return None
        finite = np.where(np.isfinite(values), values, np.float32(np.nan))
        return percentiles_of(finite, self.calibration)

    def accepted(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """1 where one of (N,) scores is accepted, 0 where not, NaN where a score is not finite.

        None if no share to accept was asked for.
        """
        if self.threshold is None:
            return None
        reached = reaches(values, self.threshold).astype(np.float32)
        return np.where(np.isfinite(values), reached, np.float32(np.nan))

    def sentence(self, values: npt.NDArray[np.float32]) -> str | None:
        """Human-readable: the threshold, and how many of (N,) scores reach it; or None."""
        if self.threshold is None:
            return None
        reached, scored = int(reaches(values, self.threshold).sum()), int(np.isfinite(values).sum())
        return (
            f"accept {self.accept:g}: threshold {self.threshold:g}; "
            f"reached by {reached} of {count_of(scored, 'scored face')}"
        )


def seem_unaligned(values: Scores, table: Calibration | None) -> bool:
    """Whether half of (N,) scores or more are below 99 % of the calibration faces.

    This is so for photos that are scored without alignment, and for faces of a very bad camera.
    """
    scored = values[np.isfinite(values)]
    if table is None or len(scored) < _FEW:
        return False
    return bool(np.median(percentiles_of(scored, table)) <= 1)


def percentiles_of(scores: Scores, table: Calibration) -> npt.NDArray[np.float64]:
    """The share of the calibration faces, in percent, with a score below each of (N,) scores.

    0 for a score below all of them, 100 for one above all of them, and NaN for NaN.
    """
    # If many faces have one score, it gets the middle of their percentiles.
    marks = np.asarray(table["percentiles"], np.float64)
    values = np.asarray(scores, np.float64)
    rising, first = np.unique(marks, return_index=True)
    last = len(marks) - 1 - np.unique(marks[::-1], return_index=True)[1]
    out: npt.NDArray[np.float64] = np.interp(values, rising, (first + last) / 2)
    out[values < marks[0]], out[values > marks[-1]] = 0.0, 100.0
    return np.where(np.isnan(values), np.nan, out)


def threshold_that_keeps(share: float, table: Calibration) -> float:
    """The score that a share of the calibration faces reach, interpolated between percentiles."""
    score = np.interp(100 * (1 - share), np.arange(101), table["percentiles"])
    return round(float(score), DECIMALS)


def reaches(scores: Scores, threshold: float) -> npt.NDArray[np.bool_]:
    """Whether each of (N,) scores, rounded as in scores.csv, is at least a threshold."""
    rounded = np.round(np.asarray(scores, np.float64), DECIMALS)
    above: npt.NDArray[np.bool_] = rounded >= threshold
    return above


def usable(table: Any, name: str) -> Calibration:
    """Checks the calibration of the model called `name`, and returns it.

    Raises:
        UserError: it is missing or damaged. The message says how to make one.
    """
    if table is None:
        raise UserError(
            f"{name}: has no calibration, which --percentile and --accept need; train.py makes one "
            "when --val-identities is above 0, and `python -m evaluation.calibration` from a "
            "scores.csv (docs/scores.md)"
        )
    try:
        if not isinstance(table, Mapping) or table.get("percentiles") is None:
            raise ValueError("calibration: `percentiles` must be 101 rising scores")
        check_calibration(table)
    except ValueError as error:
        raise UserError(
            f"{name}: its calibration is damaged ({error}); make it again with "
            "`python -m evaluation.calibration` (docs/scores.md)"
        ) from error
    return table


def check_calibration(calibration: Mapping[str, Any]) -> None:
    """Checks the form of a calibration, as `evaluation.report.contents.Report` describes it.

    Raises:
        ValueError: the message names the entry, the rule and the value.
    """
    thresholds = calibration.get("thresholds")
    if not isinstance(thresholds, Sequence) or isinstance(thresholds, str):
        raise ValueError(f"calibration: `thresholds` must be a list, got {thresholds!r}")
    for entry in thresholds:
        if not (
            isinstance(entry, Mapping)
            and _is_number(entry.get("score"))
            and _is_number(entry.get("discard"))
            and 0 <= entry["discard"] <= 1
            and (entry.get("fnmr") is None or _is_number(entry["fnmr"]))
        ):
            raise ValueError(
                "calibration: a threshold must be {discard: share in 0..1, score: number, "
                f"fnmr: number (optional)}}, got {entry!r}"
            )
    percentiles = calibration.get("percentiles")
    if percentiles is not None and (
        not isinstance(percentiles, Sequence)
        or len(percentiles) != 101
        or not all(_is_number(number) for number in percentiles)
        or any(low > high for low, high in pairwise(percentiles))
    ):
        raise ValueError("calibration: `percentiles` must be 101 rising scores")
    for name in ("faces", "fmr"):
        if calibration.get(name) is not None and not _is_number(calibration[name]):
            raise ValueError(f"calibration: `{name}` must be a number, got {calibration[name]!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
