"""Lists that are not what train.py expects, and what its errors and notes tell the user to do."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    *("--backbone", "MFN", "--device", "cpu", "--precision", "fp32", "--num-workers", "1"),
    *("--fit-head", "--epochs", "0", "--val-identities", "0.3", "--batch-size", "8"),
]
LABELS = "annotations/quality_pseudo_labels.txt"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 identities x 4 faces whose brightness is their label, as the label step leaves them."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    rows: dict[str, list[str]] = {"quality_pseudo_labels": [], "DATA": [], "w_distances": []}
    for identity in range(6):
        (folder / f"faces/p{identity}").mkdir(parents=True)
        for number in range(4):
            label = float(rng.uniform(5, 95))
            face = rng.normal(label * 2, 20, (112, 112, 3)).clip(0, 255).astype(np.uint8)
            path = f"faces/p{identity}/{number}.png"
            cv2.imwrite(str(folder / path), face)
            rows["quality_pseudo_labels"].append(f"{path}\t{label:.4f}\n")
            rows["DATA"].append(f"{path}\t{identity}\n")
            rows["w_distances"].append(f"{path}\t{label / 100:.4f}\t0.5\t0.1\t0.0\n")
    for name, lines in rows.items():
        suffix = "labelpath" if name == "DATA" else "txt"
        (folder / f"annotations/{name}.{suffix}").write_text("".join(lines))
    return folder


def relabel(project: Path, name: str, change: Callable[[float], float]) -> str:
    lines = (project / LABELS).read_text().splitlines()
    pairs = [line.split("\t") for line in lines]
    text = "".join(f"{path}\t{change(float(label)):.6g}\n" for path, label in pairs)
    (project / "annotations" / name).write_text(text)
    return f"annotations/{name}"


def fails(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused list."""
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_labels_of_this_project_train_and_the_last_line_scores(
    project: Path, run_script: Run
) -> None:
    done = run_script("train.py", *QUICK, "--checkpoints-name", "good", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "note: annotations" not in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("best network: checkpoints/good/best.pth; it scores a list or a folder")
    command = shlex.split(last.rpartition(": ")[2])
    assert command[0] in ("python", sys.executable)
    scored = run_script(*command[1:], "--device", "cpu", cwd=project)
    assert scored.returncode == 0, scored.stderr
    held_out = (project / "checkpoints/good/held_out.txt").read_text().splitlines()
    assert len((project / "scores.csv").read_text().splitlines()) == 1 + len(held_out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DATA.labelpath", "holds identities, not labels"),
        ("w_distances.txt", r":1: has 5 columns, expected two.*w_distances.txt \(W1 distances\)"),
        ("unlabelled.txt", ":1: expected `<path> TAB <label>`, a number after the TAB"),
        ("constant.txt", "every label is 50, so there is nothing to learn"),
        ("above.txt", r"above.txt:\d+: label \d+ is outside 0..100"),
    ],
)
def test_other_lists_are_refused_and_the_labels_are_named(
    name: str, message: str, project: Path, run_script: Run
) -> None:
    relabel(project, "constant.txt", lambda _: 50)
    (project / "annotations/unlabelled.txt").write_text("faces/p0/0.png\tis damaged\n")
    relabel(project, "above.txt", lambda label: round(label) + 60)
    done = run_script("train.py", *QUICK, "--img-list", f"annotations/{name}", cwd=project)
    assert re.search(message, fails(done)), done.stderr
    assert done.stderr.endswith(f"; use --img-list {LABELS}\n")  # which trains: the test above


def test_labels_up_to_one_are_refused_with_the_command_that_scales_them(
    project: Path, run_script: Run
) -> None:
    small = relabel(project, "small.txt", lambda label: label / 100)
    done = run_script("train.py", *QUICK, "--img-list", small, cwd=project)
    found = re.search(
        r"its labels span 0\.\d+\.\.0\.\d+, expected 0\.\.100; multiply them by 100: "
        r"(?P<command>.*), then use (?P<flag>.*)\n",
        fails(done),
    )
    assert found is not None, done.stderr
    subprocess.run(found["command"], shell=True, cwd=project, check=True)
    labels = np.loadtxt(project / "labels_100.txt", usecols=1, delimiter="\t")
    assert np.allclose(labels, np.loadtxt(project / LABELS, usecols=1, delimiter="\t"), atol=1e-2)
    flags = [*found["flag"].split(), "--checkpoints-name", "scaled"]
    assert run_script("train.py", *QUICK, *flags, cwd=project).returncode == 0


def test_marks_that_people_gave_pass_with_a_note(project: Path, run_script: Run) -> None:
    marks = relabel(project, "marks.txt", lambda label: 1 + label // 20)
    flags = ["--img-list", marks, "--checkpoints-name", "marks"]
    done = run_script("train.py", *QUICK, *flags, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "note: annotations/marks.txt: its labels span only 1..5 of 0..100" in done.stderr


def test_a_network_that_has_learned_nothing_is_noted(project: Path, run_script: Run) -> None:
    """One step of a large rate leaves a network that gives the same score everywhere."""
    flags = ["--epochs", "1", "--lr", "1e-9", "--balanced", "--no-fit-head"]
    done = run_script("train.py", *QUICK, *flags, "--checkpoints-name", "dull", cwd=project)
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "train with more --epochs or a higher --lr" in notes[0], done.stderr


def test_paths_that_lead_nowhere_name_the_folder_to_run_in(project: Path, run_script: Run) -> None:
    elsewhere = project / "sub folder"
    elsewhere.mkdir(exist_ok=True)
    flags = ["--img-list", f"../{LABELS}", "--checkpoints-name", "there"]
    done = run_script("train.py", *QUICK, *flags, cwd=elsewhere)
    found = re.search(r"run the command there: cd (.*) \(and (--img-list .*)\)\n", fails(done))
    assert found is not None, done.stderr
    (there,) = shlex.split(found[1])
    more = [*shlex.split(found[2]), "--checkpoints-name", "there"]
    assert run_script("train.py", *QUICK, *more, cwd=Path(there)).returncode == 0
    (project / "lost.txt").write_text("nowhere/p0/1.png\t10\nnowhere/p1/1.png\t90\n")
    done = run_script("train.py", *QUICK, "--img-list", "lost.txt", cwd=project)
    assert "lost.txt: none of its images exists, for example nowhere/p0/1.png" in fails(done)


def test_local_train_runs_where_the_user_is(project: Path, tmp_path: Path) -> None:
    """Also from an edited copy whose paths are strings, without a warning."""
    copy = tmp_path / "a copy"
    for name in ("common", "dataset", "evaluation", "models", "sdd_fiqa", "training"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).symlink_to(ROOT / name)
    for name in ("train.py", "eval.py", "local_train.sh"):
        shutil.copy(ROOT / name, copy)
    config = (ROOT / "train_config.py").read_text()
    for old, new in (
        ('Path("annotations/quality_pseudo_labels.txt")', f'"{LABELS}"'),
        ('Path("checkpoints")', '"mine"'),
        ("feats: Path | None = None", 'feats: Path | None = "none.npy"'),
    ):
        assert old in config
        config = config.replace(old, new)
    (copy / "train_config.py").write_text(config)
    (copy / ".venv/bin").mkdir(parents=True)
    (copy / ".venv/bin/python").write_text(f'#!/bin/sh\necho found\nexec {sys.executable} "$@"\n')
    (copy / ".venv/bin/python").chmod(0o755)
    command = ["bash", str(copy / "local_train.sh"), *QUICK, "--val-identities", "0"]
    env = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(copy)}
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout
    assert "found" in done.stdout
    assert "mine/sdd_fiqa/best.pth" in done.stdout.splitlines()[-1]
    assert (project / "mine/sdd_fiqa/best.pth").exists()
    (log,) = (project / "logs").iterdir()
    assert "mine/sdd_fiqa: trained 0 epochs" in log.read_text()
    settings = (project / "mine/sdd_fiqa/config.json").read_text()
    assert '"feats": "none.npy"' in settings
