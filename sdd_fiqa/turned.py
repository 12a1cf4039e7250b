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
    """A score that hardly any upright face is below; -inf without a calibration."""
    return -np.inf if table is None else float(table["percentiles"][1])


def doubtful(landmarks: Points, scores: npt.ArrayLike, lowest: float) -> npt.NDArray[np.bool_]:
    """Whether photos may lie on their side, by their largest faces as seen in them: (N,).

    By (N, 5, 2) landmarks and (N,) scores; `lowest`: see `lowest_upright`.
    """
    odd: npt.NDArray[np.bool_] = (np.abs(rolls(landmarks)) > _ROLL) | (np.asarray(scores) < lowest)
    return odd


def leads(turned: Scores, upright: Scores | float) -> npt.NDArray[np.bool_]:
    """Whether faces of turned photos score so much higher that the turn is right: (N,).

    NaN where a turned photo shows no face. Where the photo as it is shows none, that counts as 0:
    the worst of the training faces.
    """
    ahead: npt.NDArray[np.bool_] = turned >= upright + _LEAD
    return ahead
