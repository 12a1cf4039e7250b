"""Killed at any moment, the label step leaves old files or new ones, never half of one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

# Runs the script with kill -9 just before the n-th file takes its name: all written, none in place.
DYING = """
import os, signal, sys
left = int(sys.argv[1])
real = os.replace
def replace(*names):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*names)
os.replace = replace
from generate_pseudo_labels.gen_pseudo_labels import LabelSettings, main
sys.exit(main(settings=LabelSettings(seed=int(sys.argv[2]))))
"""


def run(folder: Path, survives: int, seed: int) -> int:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(survives), str(seed)],
        cwd=folder,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def contents(folder: Path) -> dict[str, bytes]:
    """Of each file that the step names; what is hidden has not taken its name."""
    files = (folder / "annotations").glob("[!.]*.*")
    return {file.name: file.read_bytes() for file in files if file.name != "distributions.png"}


def test_a_kill_leaves_whole_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(30), 12)
    notes = tmp_path / "annotations"
    (notes / "feats_npy").mkdir(parents=True)
    np.save(
        notes / "feats_npy/Embedding_Features.npy",
        (rng.normal(size=(30, 16))[y] + rng.normal(size=(len(y), 16))).astype(np.float16),
    )
    lines = "".join(f"f/{c}/{i}.jpg\t{c}\n" for i, c in enumerate(y))
    (notes / "DATA.labelpath").write_text(lines)

    assert run(tmp_path, 0, seed=0) == -signal.SIGKILL
    assert sorted(contents(tmp_path)) == ["DATA.labelpath"]
    assert run(tmp_path, 99, seed=1) == 0
    new = contents(tmp_path)
    assert run(tmp_path, 99, seed=0) == 0
    old = contents(tmp_path)
    assert len(old) >= 6 and old["quality_pseudo_labels.txt"] != new["quality_pseudo_labels.txt"]
    for survives in range(99):
        ended = run(tmp_path, survives, seed=1)
        found = contents(tmp_path)
        assert found.keys() == old.keys()
        assert all(found[name] in (old[name], new[name]) for name in old)
        if ended == 0:
            break
    assert survives >= 5 and found == new
