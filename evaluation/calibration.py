"""What the scores of held-out faces say about a model: how well it follows, what a score means.

train.py writes the calibration of every model that it trains with --val-identities above 0. For a
model without one (a published checkpoint), or for faces like your own, score some thousands of them
and write it beside the checkpoint:

    python eval.py own_faces/ --model model.pth --out scores.csv
    python -m evaluation.calibration --scores scores.csv --model model.pth
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.command_line import EXIT_DONE, UserError, run_script
from dataset.files import read_json, sha256_of, write_json
from evaluation.report_sections import check_calibration

DISCARD_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
DECIMALS = 4  # of a score in scores.csv, and of the thresholds it is compared with
_FEWEST = 101  # faces: below, percentiles would be made up between them

Scores = npt.NDArray[np.floating[Any]]
Calibration = Mapping[str, Any]


def main(*, scores: Path, model: Path) -> int:
    """Makes the calibration of a model from the scores it gave to faces, and stores it beside it.

    Args:
        scores: a scores.csv that the model wrote, of faces it was not trained on.
        model: the checkpoint; its .json is written, or the calibration in it replaced.
    """
    from evaluation.by_kind import read_scores

    if model.suffix.lower() == ".onnx":
        raise UserError(f"{model}: calibrate the checkpoint it came from, then export it again")
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    values = np.array([score for _, score in read_scores(scores)])
    if len(values) < _FEWEST:
        raise UserError(f"{scores}: has {len(values)} scored faces; {_FEWEST} are the least")
    beside, digest = model.with_suffix(".json"), sha256_of(model)
    about = read_json(beside) if beside.exists() else {"sha256": digest}
    if not isinstance(about, dict) or about.get("sha256") != digest:
        raise UserError(f"{beside}: describes another file than {model}; remove it first")
    write_json(beside, {**about, "calibration": calibration(values)})
    print(f"{beside}: calibration on {len(values)} faces")
    return EXIT_DONE


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


def calibration(
    scores: Scores, fnmr: Mapping[float, float] | None = None, fmr: float | None = None
) -> dict[str, Any] | None:
    """The table that turns a score into a percentile of held-out faces.

    Args:
        scores: (V,), NaN where unreadable.
        fnmr: for shares in DISCARD_SHARES, the FNMR among the faces left when that share of lowest
            scores is discarded; shares without one have none in the table.
        fmr: the FMR at which those were measured.

    Returns:
        {"faces": V, "percentiles": 101 scores, at 0, 1, .. 100 % of the faces, "thresholds":
        [{"discard": share, "score": the score below which that share lies, "fnmr": where given}],
        "fmr": where given}; None without faces.
    """
    good = scores[np.isfinite(scores)]
    if not len(good):
        return None
    marks = np.percentile(good.astype(np.float64), np.arange(101))
    percentiles = [round(float(mark), DECIMALS) for mark in marks]
    left = fnmr or {}
    thresholds = [
        {
            "discard": share,
            "score": percentiles[round(100 * share)],
            **({"fnmr": left[share]} if share in left else {}),
        }
        for share in DISCARD_SHARES
    ]
    table = {"faces": len(good), "percentiles": percentiles, "thresholds": thresholds}
    return table if fmr is None else {**table, "fmr": fmr}


def percentiles_of(scores: Scores, table: Calibration) -> npt.NDArray[np.float64]:
    """The share of the calibration faces, in percent, with a score below each of (N,) scores.

    0 at and below the lowest of them, 100 at and above the highest; NaN stays NaN.
    """
    # Where many faces share one score, the middle of their percentiles.
    marks = np.asarray(table["percentiles"], np.float64)
    values = np.asarray(scores, np.float64)
    rising, first = np.unique(marks, return_index=True)
    last = len(marks) - 1 - np.unique(marks[::-1], return_index=True)[1]
    out: npt.NDArray[np.float64] = np.interp(values, rising, (first + last) / 2)
    out[values < marks[0]], out[values > marks[-1]] = 0.0, 100.0
    return np.where(np.isnan(values), np.nan, out)


def threshold_that_keeps(share: float, table: Calibration) -> float:
    """The score that a share of the calibration faces reach; between percentiles, interpolated."""
    score = np.interp(100 * (1 - share), np.arange(101), table["percentiles"])
    return round(float(score), DECIMALS)


def reaches(scores: Scores, threshold: float) -> npt.NDArray[np.bool_]:
    """Whether each of (N,) scores, rounded as in scores.csv, is at least a threshold."""
    rounded = np.round(np.asarray(scores, np.float64), DECIMALS)
    above: npt.NDArray[np.bool_] = rounded >= threshold
    return above


def usable(table: Any, name: str) -> Calibration:
    """The calibration of the model called `name`.

    Raises:
        UserError: there is none, or it is damaged; the message says how to make one.
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


if __name__ == "__main__":
    run_script(main)
