"""Each stage, killed three times and run again, leaves the files of an undisturbed run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tests" / "support" / "killed_chain.py"


def test_killed_stages_end_as_undisturbed_ones(
    tmp_path: Path, make_faces: Callable[[Path], Path], weights: dict[str, Path]
) -> None:
    make_faces(tmp_path / "faces")
    done = subprocess.run(
        [sys.executable, str(TOOL), str(tmp_path), str(weights["recognition"]), "--kills", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("equal") == 5
