"""examples/webcam.py, on a video file in the place of a camera."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import cv2

ROOT = Path(__file__).resolve().parents[2]


def test_webcam_prints_a_line_a_frame(tmp_path: Path) -> None:
    try:
        face = np.asarray(cv2.imread(str(fetch("orl") / "s1" / "1.pgm")))
        fetch("yunet")
    except UserError as error:
        pytest.skip(str(error))
    clip = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240)
    )
    for shown in (face, np.zeros_like(face)):
        clip.write(np.pad(shown, ((64, 64), (114, 114), (0, 0))))
    clip.release()
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "webcam.py"), "clip.avi"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"\d+ ms: [\d.]+( low)?", first), done.stderr
    assert re.fullmatch(r"\d+ ms: no face", second)
