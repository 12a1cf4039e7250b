"""Photos that lie on their side or upside down: which are doubtful, and which turn is taken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdd_fiqa.alignment import Points, rolls
from sdd_fiqa.calibration import Calibration

_ROLL = 60.0  # degrees: a face that is turned farther may be of a photo that lies on its side
_LEAD = 10.0  # points by which a face must score higher in the turned photo

Scores = npt.NDArray[np.float32]


def lowest_upright(table: Calibration | None) -> float:
    """A score that nearly all upright faces reach; -inf without a calibration."""
    return -np.inf if table is None else float(table["percentiles"][1])


def doubtful(landmarks: Points, scores: npt.ArrayLike, lowest: float) -> npt.NDArray[np.bool_]:
    """Whether each of N photos may lie on its side: its largest face is turned, or scores low.

    `landmarks` (N, 5, 2) and `scores` (N,) are of the largest faces; `lowest`: see
    `lowest_upright`.
    """
    odd: npt.NDArray[np.bool_] = (np.abs(rolls(landmarks)) > _ROLL) | (np.asarray(scores) < lowest)
    return odd


def leads(turned: Scores, upright: Scores | float) -> npt.NDArray[np.bool_]:
    """Whether each of N photos is right when turned: its face then scores much higher.

    A score is NaN where the turned photo shows no face. `upright` is 0, the score of the worst
    training faces, where the photo shows no face as it is.
    """
    ahead: npt.NDArray[np.bool_] = turned >= upright + _LEAD
    return ahead
