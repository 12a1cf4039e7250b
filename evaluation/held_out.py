"""What the scores of held-out faces say of a model: measures, a curve, its calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from evaluation.edc.areas import refusal
from evaluation.edc.curves import Curve, Rules, evaluate
from evaluation.edc.pairs import AnyFloats, AnyInts, all_pairs
from sdd_fiqa.calibration import DECIMALS
from sdd_fiqa.errors import UserError

DISCARD_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)


def held_out_measures(scores: AnyFloats, labels: AnyFloats) -> dict[str, float]:
    """MAE and Spearman's rank correlation of (V,) scores and (V,) labels; NaN scores are left out.

    The correlation of constant scores or labels is 0.
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
    scores: AnyFloats,
    features: AnyFloats,
    identities: AnyInts,
    fmr: float,
    flag: str = "--val-fmr",
    remedy: str = "hold out more identities",
) -> Curve:
    """Error against discard of (V,) scores on all pairs of (V, D) embeddings.

    Images are discarded and the threshold is recomputed, as in the paper; NaN scores are left out.
    For the messages: `flag` is the one that sets the FMR, and `remedy` gives more pairs.

    Raises:
        UserError: no pairs, too few for this FMR at some share, or no genuine error.
    """
    length = np.linalg.norm(features, axis=1)
    good = np.isfinite(scores) & np.isfinite(length) & (length > 0)
    source = all_pairs(features[good], identities[good].astype(np.int32))
    rules = Rules("recomputed", "images")
    try:
        curve = evaluate(source, {"": scores[good]}, [fmr], [rules])["", fmr, rules]
    except ValueError as error:
        raise UserError(f"held-out faces: {error}; {remedy}") from error
    if (why := refusal(curve)) is not None:
        raise UserError(f"held-out faces: {why} ({flag}), or {remedy}")
    if curve.errors[0] == 0:
        raise UserError(
            f"held-out faces: no genuine error at FMR {fmr:g}, so scores cannot be compared; "
            f"lower {flag}, or {remedy}"
        )
    return curve


def calibration(scores: AnyFloats, curve: Curve | None = None) -> dict[str, Any] | None:
    """The table that says what a model's scores mean.

    Args:
        scores: (V,) of held-out faces, NaN where unreadable.
        curve: their error against discard, for the FNMR that remains at each threshold.

    Returns:
        {"faces": V, "percentiles": 101 scores, at 0, 1, .. 100 % of the faces, "thresholds":
        [{"discard": share, "score": this share has a lower score, "fnmr": what remains without
        it}], "fmr": of these}; "fnmr" and "fmr" only with a curve. None without faces.
    """
    good = scores[np.isfinite(scores)]
    if not len(good):
        return None
    marks = np.percentile(good.astype(np.float64), np.arange(101))
    percentiles = [round(float(mark), DECIMALS) for mark in marks]
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
