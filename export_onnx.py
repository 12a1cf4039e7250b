"""Turns a checkpoint into one ONNX file that takes uint8 RGB faces and gives scores.

    python export_onnx.py --model checkpoints/sdd_fiqa/best.pth --out sdd_fiqa.onnx
    python eval.py faces/ --model sdd_fiqa.onnx

docs/onnx.md loads the file with onnxruntime and with OpenCV.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from dataset.command_line import EXIT_DONE, UserError, run_script
from dataset.files import replacing, sha256_of
from models.backbones import Backbone
from models.checkpoints import load_network, read_about
from models.onnx_export import OPSET, onnx_bytes
from models.onnx_files import is_onnx
from models.quality import load_quality_model

MAX_DIFFERENCE = 0.01  # points of 0..100, against torch in float32


def main(*, model: Path, out: Path, backbone: Backbone | None = None) -> int:
    """Writes a quality model as ONNX, with its normalisation, calibration and origin inside.

    Args:
        model: a checkpoint of train.py, or in the published format.
        out: the .onnx file to write.
        backbone: its architecture; found from the file when not given.
    """
    if not is_onnx(out):
        raise UserError(f"--out {out}: must end in .onnx")
    about = read_about(model)
    name, network = load_network(model, recognition=False, backbone=backbone)
    properties = {
        "model": name,
        "source": model.name,
        "sha256": about.get("sha256") or sha256_of(model),  # of the checkpoint
        "input": "uint8 RGB, (N, 112, 112, 3), aligned to the 5-point template, 0..255",
        "output": "quality, (N,) float32, on the label scale 0..100, not clamped",
        "calibration": about.get("calibration"),
    }
    content = onnx_bytes(network, properties)
    difference = compare(model, content, backbone)
    with replacing(out, "wb") as file:
        file.write(content)
    size = len(content) / 1e6
    print(
        f"{out}: {name}, {size:.1f} MB, opset {OPSET}; "
        f"largest difference to torch {difference:.2g} points"
    )
    return EXIT_DONE


def compare(model: Path, content: bytes, backbone: str | None) -> float:
    """The largest difference between a checkpoint and its export, on noise of every contrast.

    Raises:
        UserError: they differ by more than MAX_DIFFERENCE (of a score of 100).
    """
    rng = np.random.default_rng(0)
    contrast = np.linspace(0.05, 1, 8)[:, None, None, None]
    faces = (128 + contrast * rng.uniform(-128, 127, (8, 112, 112, 3))).astype(np.uint8)
    by_torch = load_quality_model(model, backbone, "cpu", "fp32")(faces)
    with tempfile.TemporaryDirectory(prefix="sdd-fiqa-") as folder:
        exported = Path(folder) / "exported.onnx"
        exported.write_bytes(content)
        by_onnx = load_quality_model(exported, backbone, "cpu")(faces)
    difference = float(np.abs(by_torch - by_onnx).max())
    if not difference <= MAX_DIFFERENCE * max(1.0, float(np.abs(by_torch).max()) / 100):
        raise UserError(
            f"{model}: its export scores differently, by {difference:.3g} points, and is not kept; "
            "report this with the versions of torch and onnxruntime"
        )
    return difference


if __name__ == "__main__":
    run_script(main)
