"""Scoring with what requirements-score.txt installs: without torch, scipy and matplotlib."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models import load_quality_model
from models.pretrained import PRETRAINED

ROOT = Path(__file__).resolve().parents[2]
EXTRACT = Path("generate_pseudo_labels") / "extract_embedding" / "extract_feats.py"
# Python imports it before the script.
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "scipy", "matplotlib", "tensorboard", "onnx"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, Blocked())
"""


def test_eval_scores_and_reports_without_torch(
    tmp_path: Path,
    make_faces: Callable[[Path], Path],
    make_face: Callable[[int, int], npt.NDArray[np.uint8]],
) -> None:
    make_faces(tmp_path / "faces")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(BLOCK)

    def evaluate(*arguments: str, script: str = "eval.py") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'hook'}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = evaluate("faces", "--report", "report.html", "--accept", "0.95", "--percentile")
    assert done.returncode == 0, done.stderr
    assert "Scored by <strong>small</strong>" in (tmp_path / "report.html").read_text()
    lines = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    scores = {line.split(",")[0]: float(line.split(",")[1]) for line in lines}
    face = make_face(2, 1)  # a PNG
    checkpoint = load_quality_model(PRETRAINED["small"], device="cpu", precision="fp32")
    assert scores["faces/id2/1.png"] == pytest.approx(checkpoint(face[None])[0], abs=0.05)
    done = evaluate("faces", "--model", str(PRETRAINED["small"]))
    assert done.returncode == 1, done.stderr
    assert (
        "a checkpoint needs torch (torch is not here)" in done.stderr
        and "requirements.txt" in done.stderr
    )
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "DATA.labelpath").write_text("faces/id2/1.png\t0\n")
    done = evaluate("--weights", str(PRETRAINED["small"]), script=str(EXTRACT))
    assert done.returncode == 1 and done.stderr == (
        "error: this needs torch, which is not installed: pip install -r requirements.txt\n"
    )
