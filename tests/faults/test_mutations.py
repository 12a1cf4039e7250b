"""200 damaged files of each format: read, or refused in one line, in 5 s and 4 GiB each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FORMATS = (
    *("list", "scores.csv", "npy", "json", "journal", "part", "rec", "idx", "bin", "tar", "pth"),
    *("ckpt", "onnx", "jpg", "png", "webp", "bmp", "ppm", "tiff", "gif", "avif", "jp2"),
)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_read_or_refused(
    kind: str, tmp_path: Path, run_script: Callable[..., Any]
) -> None:
    done = run_script("tests/support/mutated_files.py", kind, "--count", "200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(f"{kind}: 200 inputs, ")
