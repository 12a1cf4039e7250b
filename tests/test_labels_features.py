"""One .npy an image: the known generator's usage line works with this script's name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd):
    script = ROOT / "generate_pseudo_labels" / "gen_pseudo_labels.py"
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def layout(tmp_path):
    """40 people x 5 in shuffled order, absolute paths <root>/<person>/feature/<name>.jpg."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 64))
    paths = []
    for person in range(40):
        for number in range(5):
            path = tmp_path / "images" / f"person {person}" / "feature" / f"{number}.é.jpg"
            npy = tmp_path / "features" / f"person {person}" / "feature" / f"{number}.é.npy"
            npy.parent.mkdir(parents=True, exist_ok=True)
            np.save(npy, 9 * (centres[person] + 0.8 * rng.standard_normal(64)))
            paths.append(str(path))
    rng.shuffle(paths)
    (tmp_path / "list.txt").write_text("\n".join(paths) + "\n", encoding="utf-8")
    return tmp_path, paths


USAGE = (
    *("--image-list-file", "list.txt"),
    *("--score-dst", "scores", "--id-key-index", "-3", "--feature-root", "features"),
    *("--process-num", "10", "--fix-num", "24"),
)


def labels_of(folder):
    lines = (folder / "scores" / "quality_pseudo_labels.txt").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in lines.splitlines())


@pytest.mark.parametrize("load", ["True", "False"])
def test_the_usage_line(layout, load):
    folder, paths = layout
    done = run(*USAGE, "--image-root", folder / "images", "--load-feature", load, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "200 of 200 images of 40 identities labelled" in done.stdout
    assert list(labels_of(folder)) == paths
    made = folder / "scores" / "feats_npy" / "Embedding_Features.npy"
    assert made.exists() == (load == "False")
    if load == "False":
        kept = labels_of(folder)  # the folder is what annotations/ is: it can be used again
        assert run("--out-dir", "scores", cwd=folder).returncode == 0
        assert labels_of(folder) == kept
        assert json.loads(made.with_suffix(".json").read_text())["rows_done"] == 200


def test_memory_or_file_makes_no_difference(layout):
    folder, _ = layout
    both = []
    for load in ("True", "False"):
        run(*USAGE, "--image-root", folder / "images", "--load-feature", load, cwd=folder)
        both.append(np.array(list(labels_of(folder).values()), float))
    assert np.abs(both[0] - both[1]).max() < 0.2  # float16 rows in the file


@pytest.mark.parametrize("load", ["True", "False"])
def test_missing_and_damaged_files_are_counted_and_listed(layout, load):
    folder, _ = layout
    (folder / "features" / "person 3" / "feature" / "1.é.npy").unlink()
    (folder / "features" / "person 4" / "feature" / "2.é.npy").write_text("hello")
    np.save(folder / "features" / "person 5" / "feature" / "0.é.npy", np.zeros(64))
    done = run(*USAGE, "--image-root", folder / "images", "--load-feature", load, cwd=folder)
    assert done.returncode == 3, done.stderr
    assert "1 unreadable: its .npy is missing" in done.stdout
    listed = (folder / "scores" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line.split("person ")[1] for line in listed) == [
        "3/feature/1.é.jpg\tunreadable: its .npy is missing",
        "4/feature/2.é.jpg\tunreadable: its .npy cannot be read",
        "5/feature/0.é.jpg\tunreadable: its embedding is zero or not finite",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (("--image-root", "elsewhere"), "list.txt:1"),
        (("--id-key-index", "-30"), "has no part -30 to name its identity"),
        (("--feature-root", "nowhere"), "--feature-root nowhere: no such folder"),
        (("--image-list-file", "none.txt"), "none.txt: cannot be read"),
    ],
)
def test_bad_input_is_one_line(layout, change, message):
    folder, _ = layout
    done = run(*USAGE, "--image-root", folder / "images", *change, cwd=folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    message = "is not below --image-root" if message == "list.txt:1" else message
    assert message in done.stderr


def test_flags_that_need_each_other(layout):
    folder, _ = layout
    done = run("--image-list-file", "list.txt", cwd=folder)
    assert done.returncode == 1 and "--image-list-file: goes with --feature-root" in done.stderr
    done = run("--feature-root", "features", cwd=folder)
    assert done.returncode == 1 and "needs --image-list-file and --score-dst" in done.stderr


def test_embeddings_of_two_lengths_and_none_at_all(layout):
    folder, _ = layout
    odd = folder / "features" / "person 7" / "feature" / "2.é.npy"
    np.save(odd, np.ones(32))
    done = run(*USAGE, "--image-root", folder / "images", cwd=folder)
    assert done.returncode == 1 and "2.é.npy: holds 32 numbers" in done.stderr
    done = run(*USAGE, "--image-root", folder, cwd=folder)
    assert done.returncode == 1 and "none of its 200 images has a .npy" in done.stderr
