"""gen_pseudo_labels as a user runs it: the files it leaves, and what it says about bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataset.lists import read_table

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "generate_pseudo_labels" / "gen_pseudo_labels.py"


def run(*arguments, cwd, ranks=0):
    launch = [sys.executable]
    if ranks:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launch, SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def make(folder, sizes=(10,) * 12, name="a face é'\".jpg", seed=0, json_beside=True):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    f = rng.standard_normal((len(sizes), 32))[y] + 0.7 * rng.standard_normal((len(y), 32))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    out = folder / "annotations"
    (out / "feats_npy").mkdir(parents=True, exist_ok=True)
    lines = [f"faces/p{c}/{i} {name}\t{c}\n" for i, c in enumerate(y)]
    (out / "DATA.labelpath").write_text("".join(lines), encoding="utf-8")
    save(out, f.astype(np.float16), json_beside=json_beside)
    return out, f, y


def save(out, f, json_beside=True, **changes):
    np.save(out / "feats_npy" / "Embedding_Features.npy", f)
    table = read_table(out / "DATA.labelpath")
    about = {
        "format": 1,
        "list": {"path": "x", "sha256": table.sha256, "rows": len(table)},
        "rows_done": len(table),
        "unreadable": [],
        **changes,
    }
    beside = out / "feats_npy" / "Embedding_Features.json"
    beside.write_text(json.dumps(about)) if json_beside else beside.unlink(missing_ok=True)


def columns(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [row[0] for row in rows], np.array([[float(x) for x in row[1:]] for row in rows])


def test_the_files_it_leaves(tmp_path):
    out, f, y = make(tmp_path, sizes=(10,) * 12 + (1, 4))
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "124 of 125 images of 14 identities labelled" in done.stdout
    paths, labels = columns(out / "quality_pseudo_labels.txt")
    listed = read_table(out / "DATA.labelpath")
    assert paths == [path for path, c in zip(listed.paths(), y, strict=True) if c != 12]
    assert labels.min() >= 0 and labels.max() <= 100 and labels.max() > 80
    w_paths, w = columns(out / "w_distances.txt")
    assert w_paths == paths and w.shape == (124, 4)
    same = (y[:, None] == y) & ~np.eye(len(y), dtype=bool)
    pos = [(f @ f[i])[same[i]].mean() for i in np.flatnonzero(y != 12)]
    assert np.allclose(w[:, 1], pos, atol=2e-3)
    assert np.all(np.abs(w[:, 0] - (w[:, 1] - w[:, 2]) - 2 * w[:, 0] * w[:, 3]) < 1e-3)
    assert (out / "unlabelled.txt").read_text(encoding="utf-8") == (
        f"{listed.path(120)}\tthe only image of its identity\n"
    )
    info = json.loads((out / "distribution_info.json").read_text())
    assert info["labelled"] == 124 and sum(info["label_histogram"]) == 124
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_practitioners_recipe(tmp_path):
    out, _, _ = make(tmp_path, sizes=(10,) * 10 + (9, 5))
    done = run("--min-images-per-id", 10, "--drop-top-percent", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths, labels = columns(out / "quality_pseudo_labels.txt")
    assert len(paths) == 95
    reasons = [line.split("\t")[1] for line in (out / "unlabelled.txt").open(encoding="utf-8")]
    assert reasons.count("among the best 5 %\n") == 5
    assert reasons.count("its identity has fewer than 10 images\n") == 14
    # The rest is put on the scale again: its best come near the top.
    assert labels.max() > 90


def test_mislabelled_faces_are_listed_and_can_be_left_out(tmp_path):
    out, f, _ = make(tmp_path)
    f[[3, 57]] = f[[57, 3]]
    save(out, f.astype(np.float16))
    done = run(cwd=tmp_path)
    assert "2 images look mislabelled" in done.stdout
    flagged, _ = columns(out / "mislabelled.txt")
    assert [path.split(" ")[0] for path in flagged] == ["faces/p0/3", "faces/p5/57"]
    kept, _ = columns(out / "quality_pseudo_labels.txt")
    assert len(kept) == 120
    run("--exclude-mislabelled", cwd=tmp_path)
    kept, _ = columns(out / "quality_pseudo_labels.txt")
    assert len(kept) == 118 and not set(flagged) & set(kept)
    assert (out / "unlabelled.txt").read_text(encoding="utf-8").count("\tlooks mislabelled\n") == 2


def test_unreadable_images_are_left_out_and_say_so(tmp_path):
    out, f, _ = make(tmp_path)
    f[7] = 0
    save(out, f.astype(np.float16), unreadable=[{"row": 7, "path": "x", "reason": "is empty"}])
    done = run(cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert (out / "unlabelled.txt").read_text(encoding="utf-8").endswith("\tunreadable: is empty\n")
    assert len(columns(out / "quality_pseudo_labels.txt")[0]) == 119


def test_embeddings_from_elsewhere_are_taken_with_a_note(tmp_path):
    out, f, _ = make(tmp_path, json_beside=False)
    save(out, f * 7, json_beside=False)  # float64, not unit
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "could not be checked" in done.stderr
    assert len(columns(out / "quality_pseudo_labels.txt")[0]) == 120


@pytest.mark.parametrize("estimator, some", [("sampled", 2), ("exact", 3)])
def test_any_number_of_processes_and_threads_writes_the_same_files(tmp_path, estimator, some):
    out, _, _ = make(tmp_path, sizes=(3, 40, 2, 1, 9, 600, 5, 27) * 2)
    written = []
    for ranks, threads in ((0, 1), (0, 2), (some, 1)):
        done = run("--estimator", estimator, "--process-num", threads, cwd=tmp_path, ranks=ranks)
        assert done.returncode == 0, done.stderr
        names = ("quality_pseudo_labels.txt", "w_distances.txt", "distribution_info.json")
        written.append([(out / name).read_bytes() for name in names])
    assert written[1:] == written[:1] * 2


def truncated(out, f):
    file = out / "feats_npy" / "Embedding_Features.npy"
    file.write_bytes(file.read_bytes()[:-100])


def not_npy(out, f):
    (out / "feats_npy" / "Embedding_Features.npy").write_text("hello")


def one_dimension(out, f):
    np.save(out / "feats_npy" / "Embedding_Features.npy", f[:, 0])


def whole_numbers(out, f):
    np.save(out / "feats_npy" / "Embedding_Features.npy", (f * 100).astype(np.int64))


def by_column(out, f):
    np.save(out / "feats_npy" / "Embedding_Features.npy", np.asfortranarray(f))


def missing(out, f):
    (out / "feats_npy" / "Embedding_Features.npy").unlink()


def no_list(out, f):
    (out / "DATA.labelpath").unlink()


def bad_json(out, f):
    (out / "feats_npy" / "Embedding_Features.json").write_text("{}")


def edited(row, value):
    def change(out, f):
        f[row] = value
        save(out, f)

    return change


MENDS = {
    "truncated": (truncated, "Embedding_Features.npy: is truncated"),
    "no .npy": (not_npy, "is not a .npy file"),
    "one dimension": (one_dimension, "holds float64 of shape (120,)"),
    "whole numbers": (whole_numbers, "holds int64"),
    "by column": (by_column, "is stored by column"),
    "missing": (missing, "extract the embeddings first"),
    "no list": (no_list, "DATA.labelpath: cannot be read"),
    "empty json": (bad_json, "Embedding_Features.json: lacks 'list'"),
    "NaN": (edited(5, np.nan), "row 5 (faces/p0/5 a face é'\".jpg) is not finite"),
    "zero": (edited(119, 0), "row 119 (faces/p11/119 a face é'\".jpg) is zero"),
    "rows": (lambda out, f: save(out, f[:-1]), "has 119 rows, but"),
    "another list": (lambda out, f: save(out, f, list={"sha256": "0"}), "belongs to another list"),
    "unfinished": (lambda out, f: save(out, f, rows_done=60), "is unfinished, 60 of 120 rows"),
    "outside": (lambda out, f: save(out, f, unreadable=[{"row": 120, "path": "", "reason": ""}]),
                "names an unreadable row outside 0..119"),
}  # fmt: skip


@pytest.mark.parametrize("case", MENDS)
def test_bad_input_is_one_line_and_nothing_is_overwritten(tmp_path, case):
    out, f, _ = make(tmp_path)
    spoil, message = MENDS[case]
    (out / "quality_pseudo_labels.txt").write_text("mine")
    spoil(out, f)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run(cwd=tmp_path)
    lines = [
        line for line in done.stderr.replace("\r", "\n").splitlines() if "images/s" not in line
    ]
    assert done.returncode == 1 and done.stdout == ""
    assert [message in line for line in lines if line] == [True], done.stderr
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--fix-num", 111), "leaves 110 images of others, fewer than the 111 negatives asked for"),
        (("--fix-num", 0), "--fix-num 0: must be 1 or more"),
        (("--drop-top-percent", 100), "--drop-top-percent 100: must be at least 0 and below 100"),
        (("--min-images-per-id", 11), "no image is left to label"),
        (("--device", "gpu"), "--device gpu: is not one of auto, cpu, cuda"),
    ],
)
def test_flags_that_cannot_be_used(tmp_path, flags, message):
    out, _, _ = make(tmp_path)
    done = run(*flags, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (out / "quality_pseudo_labels.txt").exists()
