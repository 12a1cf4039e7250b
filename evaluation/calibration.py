"""What the scores of held-out faces say about a model: how well it follows, what a score means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DISCARD_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)

Scores = npt.NDArray[np.floating[Any]]


def held_out_measures(scores: Scores, labels: Scores) -> dict[str, float]:
    """MAE and Spearman's rank correlation between (V,) scores and (V,) labels; NaN scores drop out.

    Constant scores or labels have no rank correlation: 0 is returned.
    """
    from scipy.stats import rankdata

    good = np.isfinite(scores)
    x, y = rankdata(scores[good]), rankdata(labels[good])
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return {
        "mae": float(np.abs(scores[good] - labels[good]).mean()) if good.any() else 100.0,
        "spearman": 0.0 if constant else float(np.corrcoef(x, y)[0, 1]),
    }


def calibration(scores: Scores) -> dict[str, Any] | None:
    """The table that turns a score into a percentile of held-out faces.

    Args:
        scores: (V,), NaN where unreadable.

    Returns:
        {"faces": V, "percentiles": 101 scores, at 0, 1, .. 100 % of the faces, "thresholds":
        [{"discard": share, "score": the score below which that share lies}]}; None without faces.
    """
    good = scores[np.isfinite(scores)]
    if not len(good):
        return None
    marks = np.percentile(good.astype(np.float64), np.arange(101))
    percentiles = [round(float(mark), 4) for mark in marks]
    thresholds = [
        {"discard": share, "score": percentiles[round(100 * share)]} for share in DISCARD_SHARES
    ]
    return {"faces": len(good), "percentiles": percentiles, "thresholds": thresholds}
