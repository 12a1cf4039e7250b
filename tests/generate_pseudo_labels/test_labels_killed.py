"""Killed at any moment, the label step leaves old files or new ones, never half of one."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[..., subprocess.CompletedProcess[str]]

# Runs the script with kill -9 just before the n-th file takes its name: all written, none in place.
DYING = """
import os, signal, sys
left, seed = map(int, sys.argv[1:])
real = os.replace
def replace(*names):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*names)
os.replace = replace
from generate_pseudo_labels import distributions_plot
from generate_pseudo_labels.gen_pseudo_labels import LabelSettings, main
from sdd_fiqa.files import replacing
def draw_picture(path, *_):  # the drawing itself takes a second
    with replacing(path) as file:
        file.write("a picture")
distributions_plot.draw_picture = draw_picture
sys.exit(main(settings=LabelSettings(seed=seed)))
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Of each file that the step names; what is hidden has not taken its name."""
    files = (folder / "annotations").glob("[!.]*.*")
    return {file.name: file.read_bytes() for file in files if file.name != "distributions.png"}


def test_a_kill_leaves_whole_files(tmp_path: Path, run_script: Run) -> None:
    (tmp_path / "dying.py").write_text(DYING)

    def run(survives: int, seed: int) -> int:
        done = run_script(tmp_path / "dying.py", survives, seed, cwd=tmp_path)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

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

    assert run(0, seed=0) == -signal.SIGKILL
    assert sorted(contents(tmp_path)) == ["DATA.labelpath"]
    assert run(99, seed=1) == 0
    new = contents(tmp_path)
    assert run(99, seed=0) == 0
    old = contents(tmp_path)
    assert len(old) >= 6 and old["quality_pseudo_labels.txt"] != new["quality_pseudo_labels.txt"]
    for survives in range(99):
        ended = run(survives, seed=1)
        found = contents(tmp_path)
        assert found.keys() == old.keys()
        assert all(found[name] in (old[name], new[name]) for name in old)
        if ended == 0:
            break
    assert survives >= 5 and found == new
