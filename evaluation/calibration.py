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

import numpy as np

from common.cli import EXIT_DONE, run_script
from dataset.embeddings import open_embeddings
from dataset.lists import read_labelpath
from dataset.score_files import open_scores, read_scores
from evaluation.held_out import calibration, held_out_curve
from models.pretrained import PRETRAINED
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, sha256_of, write_json
from sdd_fiqa.number import count_of

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
    values = open_scores(scores)[0].values
    values = values[np.isfinite(values)]
    if len(values) < _MIN_FACES:
        raise UserError(
            f"{scores}: has {count_of(len(values), 'scored face')}; {_MIN_FACES} are needed"
        )
    beside, digest = model.with_suffix(".json"), sha256_of(model)
    about = read_json(beside) if beside.exists() else {"sha256": digest}
    if not isinstance(about, dict) or about.get("sha256") != digest:
        raise UserError(f"{beside}: describes another file than {model}; remove it first")
    curve = None
    if feats is not None and image_list is not None:
        table, identities = read_labelpath(image_list)
        features = open_embeddings(feats, table).read(0, len(table)).astype(np.float32)
        listed = read_scores(scores, table).values
        curve = held_out_curve(listed, features, identities, fmr, "--fmr", "take more faces")
    write_json(beside, {**about, "calibration": calibration(values, curve)})
    print(f"{beside}: calibration on {count_of(len(values), 'face')}")
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
