"""What the scores of held-out faces say about a model: how well it follows, what a score means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.command_line import UserError
from evaluation.areas import refusal
from evaluation.edc import Curve, Rules, evaluate
from evaluation.pairs import all_pairs

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


def held_out_curve(
    scores: Scores, features: Scores, identities: npt.NDArray[np.integer[Any]], fmr: float
) -> Curve:
    """Error against discard of (V,) scores on all pairs of (V, D) embeddings.

    Images are discarded and the threshold is recomputed, as in the paper; NaN scores drop out.

    Raises:
        UserError: no pairs, too few to show that FMR at every share, or no genuine error.
    """
    good = np.isfinite(scores) & (np.linalg.norm(features, axis=1) > 0)
    source = all_pairs(features[good], identities[good].astype(np.int32))
    rules = Rules("recomputed", "images")
    try:
        curve = evaluate(source, {"": scores[good]}, [fmr], [rules])["", fmr, rules]
    except ValueError as error:
        raise UserError(f"the held-out faces: {error}; hold out more identities") from error
    if (why := refusal(curve)) is not None:
        raise UserError(f"the held-out faces: {why}; raise --val-fmr, or hold out more identities")
    if curve.errors[0] == 0:
        raise UserError(
            f"the held-out faces: have no genuine error at FMR {fmr:g}, so nothing to tell scores "
            "apart by; lower --val-fmr, or hold out more identities"
        )
    return curve


def calibration(scores: Scores, curve: Curve | None = None) -> dict[str, Any] | None:
    """The table that says what a model's scores mean.

    Args:
        scores: (V,) of held-out faces, NaN where unreadable.
        curve: their error against discard, for the FNMR that each threshold leaves.

    Returns:
        {"faces": V, "percentiles": 101 scores, at 0, 1, .. 100 % of the faces, "thresholds":
        [{"discard": share, "score": the score below which that share lies, "fnmr": what is left
        without it}], "fmr": of those}; the last two with a curve only. None without faces.
    """
    good = scores[np.isfinite(scores)]
    if not len(good):
        return None
    marks = np.percentile(good.astype(np.float64), np.arange(101))
    percentiles = [round(float(mark), 4) for mark in marks]
    thresholds = [
        {"discard": share, "score": percentiles[round(100 * share)]} for share in DISCARD_SHARES
    ]
    table: dict[str, Any] = {"faces": len(good), "percentiles": percentiles}
    if curve is not None:
        for entry in thresholds:
            point = int(np.abs(curve.shares - entry["discard"]).argmin())
            if np.isfinite(curve.fnmr[point]):
                entry["fnmr"] = float(curve.fnmr[point])
        table["fmr"] = curve.fmr
    return {**table, "thresholds": thresholds}
