"""200 damaged files of each format: read, or refused in one line, in 5 s and 4 GiB each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tests" / "support" / "mutated_files.py"
FORMATS = (
    *("list", "scores.csv", "npy", "json", "journal", "part", "rec", "idx", "bin", "tar", "pth"),
    *("ckpt", "onnx", "jpg", "png", "webp", "bmp", "ppm", "tiff", "gif", "avif", "jp2"),
)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), kind, "--count", "200"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{kind}: 200 inputs, ")
