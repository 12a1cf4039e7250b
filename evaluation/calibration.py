"""What a model's scores of held-out faces mean: percentiles, thresholds, errors.

train.py writes the calibration of every model that it trains with --val-identities above 0. For a
model without one (a published checkpoint), or for faces like your own, score a few thousand faces
and write the calibration next to the checkpoint:

    python eval.py own_faces/ --model model.pth --out scores.csv
    python -m evaluation.calibration --scores scores.csv --model model.pth

With --feats and --image-list (DATA.labelpath) it also says which error remains at each threshold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.cli import EXIT_DONE, run_script
from dataset.embeddings import open_embeddings
from dataset.lists import read_labelpath
from dataset.scores import open_scores, read_scores
from evaluation.edc.areas import refusal
from evaluation.edc.curves import Curve, Rules, evaluate
from evaluation.edc.pairs import AnyFloats, all_pairs
from models.pretrained import PRETRAINED
from sdd_fiqa.calibration import DECIMALS
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, sha256_of, write_json

DISCARD_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
_MIN_FACES = 101  # with fewer, percentiles would be interpolated


def main(
    *,
    scores: Path,
    model: Path,
    feats: Path | None = None,
    image_list: Path | None = None,
    fmr: float = 1e-3,
) -> int:
    """Makes the calibration of a model from its scores of faces, and stores it next to the model.

    Args:
        scores: a scores.csv by this model, of faces that it was not trained on.
        model: the checkpoint; the calibration in its .json is written or replaced.
        feats: embeddings of the faces, (N, D) .npy, for the FNMR that remains at each threshold.
        image_list: the DATA.labelpath that they were made from.
        fmr: the false match rate of that FNMR.
    """
    if not 0 < fmr < 1:
        raise UserError(f"--fmr {fmr:g}: must be between 0 and 1")
    if (feats is None) != (image_list is None):
        raise UserError("--feats, --image-list: name both, or neither")
    if model.suffix.lower() == ".onnx":
        raise UserError(
            f"{model}: calibrate the checkpoint that it was made from, then export it again"
        )
    if (shipped := PRETRAINED.get(str(model))) is not None:
        raise UserError(
            f"--model {model}: is part of the project; copy {shipped} and its .json, and calibrate "
            "the copy"
        )
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    values = open_scores(scores).values
    values = values[np.isfinite(values)]
    if len(values) < _MIN_FACES:
        raise UserError(
            f"{scores}: has {len(values)} scored faces; at least {_MIN_FACES} are needed"
        )
    beside, digest = model.with_suffix(".json"), sha256_of(model)
    about = read_json(beside) if beside.exists() else {"sha256": digest}
    if not isinstance(about, dict) or about.get("sha256") != digest:
        raise UserError(f"{beside}: describes another file than {model}; remove it first")
    curve = None
    if feats is not None and image_list is not None:
        curve = _curve_of(scores, feats, image_list, fmr)
    write_json(beside, {**about, "calibration": calibration(values, curve)})
    print(f"{beside}: calibration on {len(values)} faces")
    return EXIT_DONE


def _curve_of(scores: Path, feats: Path, image_list: Path, fmr: float) -> Curve:
    table, identities = read_labelpath(image_list)
    file, _ = open_embeddings(feats, table)
    values = read_scores(scores, table).values
    features = file.read(0, len(table)).astype(np.float32)
    return held_out_curve(values, features, identities, fmr, "--fmr", "take more faces")


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
    identities: npt.NDArray[np.integer],
    fmr: float,
    flag: str = "--val-fmr",
    remedy: str = "hold out more identities",
) -> Curve:
    """Error against discard of (V,) scores on all pairs of (V, D) embeddings.

    Images are discarded and the threshold is recomputed, as in the paper; NaN scores are left out.

    Args:
        scores: of the faces.
        features: their embeddings.
        identities: (V,) who is on each.
        fmr: the false match rate.
        flag: the flag that sets it, for the messages.
        remedy: what gives more pairs, for the messages.

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


if __name__ == "__main__":
    run_script(main)
