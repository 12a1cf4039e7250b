"""Writes a checkpoint as one ONNX file that takes uint8 RGB faces and gives scores.

    python export_onnx.py --model checkpoints/sdd_fiqa/best.pth --out sdd_fiqa.onnx
    python export_onnx.py --model checkpoints/sdd_fiqa/best.pth --out small.onnx --int8-faces faces/
    python export_onnx.py --model small --out sdd_fiqa/small.onnx --half
    python eval.py faces/ --model sdd_fiqa.onnx

docs/onnx.md shows how to use the file with onnxruntime and with OpenCV.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.cli import EXIT_DONE, note, run_script
from dataset.find import find_images
from dataset.images import read_face
from dataset.left_out import Skipped
from evaluation.held_out import held_out_measures
from models.backbones import Backbone
from models.checkpoints import load_network
from models.onnx_export import onnx_bytes, quantised, with_half_weights
from models.pretrained import find_model
from models.quality import load_quality_model
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import replacing, sha256_of
from sdd_fiqa.number import count_of
from sdd_fiqa.onnx_runner import OnnxRunner, is_onnx

MAX_DIFFERENCE = 0.01  # points of 0..100, against torch in float32
MAX_HALF_DIFFERENCE = 0.05  # of float16 weights
MIN_SPEARMAN = 0.999  # of int8, against float32
FEWEST_FACES, MOST_FACES = 100, 1000  # for int8
_SCORED = 8  # faces a run


def main(
    *,
    model: str,
    out: Path,
    backbone: Backbone | None = None,
    half: bool = False,
    int8_faces: str | None = None,
) -> int:
    """Writes a quality model as ONNX, with its normalisation, calibration and origin inside.

    Args:
        model: a checkpoint of train.py or in the published format, or the name of a shipped model.
        out: the .onnx file to write.
        backbone: its architecture; found from the file when not given.
        half: store the weights in float16, for half the size; they are computed in float32.
        int8_faces: write the convolutions in int8, with the help of these aligned faces (a folder,
            pattern or list of some hundreds, not those you test on): half set the ranges, half
            check that faces keep their order.
    """
    if not is_onnx(out):
        raise UserError(f"--out {out}: must end in .onnx")
    if half and int8_faces is not None:
        raise UserError("--half and --int8-faces exclude each other; choose one of them")
    path = find_model(model)
    name, network, about = load_network(path, recognition=False, backbone=backbone)
    properties = {
        "model": name,
        "source": path.name,
        "sha256": about.get("sha256") or sha256_of(path),  # of the checkpoint
        "input": "uint8 RGB, (N, 112, 112, 3), aligned to the 5-point template, 0..255",
        "output": "quality, (N,) float32, on the label scale 0..100, not clamped",
        "calibration": about.get("calibration"),
    }
    content = onnx_bytes(network, properties)
    limit = MAX_DIFFERENCE
    if half:
        content, limit = with_half_weights(content), MAX_HALF_DIFFERENCE
    difference = compare(path, content, backbone, limit)
    checked = f"largest difference to torch {difference:.2g} points"
    if int8_faces is not None:
        content, checked = in_int8(content, int8_faces)
    with replacing(out, "wb") as file:
        file.write(content)
    print(f"{out}: {name}, {len(content) / 1e6:.1f} MB; {checked}")
    return EXIT_DONE


def compare(model: Path, content: bytes, backbone: str | None, limit: float) -> float:
    """The largest difference between the scores of a checkpoint and of its export, on noise.

    Raises:
        UserError: they differ by more than `limit` (of a score of 100).
    """
    rng = np.random.default_rng(0)
    contrast = np.linspace(0.05, 1, 8)[:, None, None, None]
    faces = (128 + contrast * rng.uniform(-128, 127, (8, 112, 112, 3))).astype(np.uint8)
    by_torch = load_quality_model(model, backbone, "cpu", "fp32")(faces)
    by_onnx = scores_of(content, faces)
    difference = float(np.abs(by_torch - by_onnx).max())
    if not difference <= limit * max(1.0, float(np.abs(by_torch).max()) / 100):
        raise UserError(
            f"{model}: the scores of its export differ by {difference:.3g} points, so it was not "
            "written; report this with the versions of torch and onnxruntime"
        )
    return difference


def in_int8(content: bytes, inputs: str) -> tuple[bytes, str]:
    """The export in int8, and a line that compares its scores with float32.

    Raises:
        UserError: too few faces, or their order changes: Spearman below MIN_SPEARMAN.
    """
    faces = read_faces(inputs)
    note(f"int8: ranges from {count_of(len(faces[::2]), 'face')}; a minute or two")
    small = quantised(content, faces[::2])
    exact, rough = scores_of(content, faces[1::2]), scores_of(small, faces[1::2])
    rank = held_out_measures(rough, exact)
    largest = float(np.abs(exact - rough).max())
    checked = (
        f"int8 against float32 on {count_of(len(exact), 'face')}: Spearman {rank['spearman']:.5f}, "
    )
    checked += f"largest difference {largest:.2g} points"
    if not rank["spearman"] >= MIN_SPEARMAN:
        raise UserError(
            f"{checked}; int8 needs a Spearman of {MIN_SPEARMAN}: leave out --int8-faces"
        )
    return small, checked


def read_faces(inputs: str) -> npt.NDArray[np.uint8]:
    """Up to MOST_FACES readable faces, evenly spaced over what `inputs` names: (N, 112, 112, 3)."""
    paths = list(find_images([inputs], Skipped()))
    faces = []
    for row in np.linspace(0, len(paths) - 1, min(len(paths), MOST_FACES)).astype(int).tolist():
        with suppress(UnreadableImage):
            faces.append(read_face(paths[row]))
    if len(faces) < FEWEST_FACES:
        raise UserError(
            f"--int8-faces {inputs}: has {count_of(len(faces), 'readable face')}; {FEWEST_FACES} "
            "are needed"
        )
    return np.stack(faces)


def scores_of(content: bytes, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The scores that an ONNX file of these bytes gives."""
    runner = OnnxRunner("the export", "cpu", content=content)
    return runner.begin(faces, _SCORED, runner.run)()


if __name__ == "__main__":
    run_script(main)
