"""gen_pseudo_labels as a user runs it: the files it leaves, and what it says about bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from dataset.lists import read_table
from generate_pseudo_labels import LabelSettings, gen_datalist, gen_pseudo_labels, pseudo_labels
from generate_pseudo_labels import distributions_plot as picture
from generate_pseudo_labels.distributions_plot import draw_picture
from generate_pseudo_labels.label_files import LabelInput, read_input
from sdd_fiqa.errors import UserError

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Floats = npt.NDArray[np.float64]
Spoil = Callable[[Path, Floats], None]


@pytest.fixture
def run(run_script: Run, tmp_path: Path) -> Run:
    """Runs the script in the test's folder, in a process of its own."""
    return partial(run_script, "generate_pseudo_labels/gen_pseudo_labels.py", cwd=tmp_path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, for calls of `main` in it: the same without Python's start."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(
    folder: Path, sizes: tuple[int, ...] = (10,) * 12, json_beside: bool = True
) -> tuple[Path, Floats, npt.NDArray[np.int64]]:
    """Writes a list and its embeddings. Returns their folder, the embeddings, the identities."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(sizes)), sizes)
    f = rng.standard_normal((len(sizes), 32))[y] + 0.7 * rng.standard_normal((len(y), 32))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    out = folder / "annotations"
    (out / "feats_npy").mkdir(parents=True, exist_ok=True)
    lines = [f"faces/p{c}/{i} a face é'\".jpg\t{c}\n" for i, c in enumerate(y)]
    (out / "DATA.labelpath").write_text("".join(lines), encoding="utf-8")
    save(out, f.astype(np.float16), json_beside=json_beside)
    return out, f, y


def save(out: Path, f: npt.NDArray[Any], json_beside: bool = True, **changes: object) -> None:
    (out / "feats_npy").mkdir(exist_ok=True)
    np.save(out / "feats_npy" / "Embedding_Features.npy", f)
    table = read_table(out / "DATA.labelpath")
    about: dict[str, object] = {
        "format": 1,
        "list": {"path": "x", "sha256": table.sha256, "rows": len(table)},
        "rows_done": len(table),
        "unreadable": [],
        **changes,
    }
    beside = out / "feats_npy" / "Embedding_Features.json"
    beside.write_text(json.dumps(about)) if json_beside else beside.unlink(missing_ok=True)


def call(process_num: int = 0, device: str = "auto", **settings: Any) -> int:
    """The command as a call of `main`."""
    return gen_pseudo_labels.main(
        process_num=process_num, device=device, settings=LabelSettings(**settings)
    )


def columns(path: Path) -> tuple[list[str], Floats]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [row[0] for row in rows], np.array([[float(x) for x in row[1:]] for row in rows])


def test_the_files_it_leaves(run: Run, tmp_path: Path) -> None:
    out, f, y = make(tmp_path, sizes=(10,) * 12 + (1, 4))
    done = run()
    assert done.returncode == 0, done.stderr
    assert "124 of 125 images of 14 identities labelled" in done.stdout
    paths, labels = columns(out / "quality_pseudo_labels.txt")
    listed = read_table(out / "DATA.labelpath")
    assert paths == [path for path, c in zip(listed.paths(), y, strict=True) if c != 12]
    assert labels.min() >= 0 and labels.max() <= 100 and labels.max() > 80
    in_memory = pseudo_labels(f.astype(np.float16), y)
    assert np.array_equal(np.isnan(in_memory), y == 12)
    assert np.allclose(in_memory[y != 12], labels[:, 0], atol=1e-3)
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
    assert info["left_out"] == {"the only image of its identity": 1}
    assert not list(tmp_path.rglob("*.tmp"))


def test_labels_of_arrays_follow_the_settings_and_refuse_other_shapes() -> None:
    f, y = np.random.default_rng(0).standard_normal((60, 8)), np.repeat(list("abcdef"), 10)
    settings = LabelSettings(fix_num=3, min_images_per_id=11)
    with pytest.raises(ValueError, match="no image is left to label"):
        pseudo_labels(f, y, settings)
    dropped = pseudo_labels(f, y, replace(settings, min_images_per_id=2, drop_top_percent=10))
    assert np.isnan(dropped).sum() == 6
    shuffled = np.random.default_rng(1).permutation(60)
    for wrong in ((f[:5], y), (f[0], y), (f.astype(int), y)):
        with pytest.raises(ValueError, match=r"expected \(N, D\) floats and \(N,\) identities"):
            pseudo_labels(*wrong)
    exact = replace(settings, estimator="exact", min_images_per_id=2)
    assert np.allclose(
        pseudo_labels(f[shuffled], y[shuffled], exact),
        pseudo_labels(f, y, exact)[shuffled],
        atol=1e-3,
    )


def test_the_practitioners_recipe(here: Path) -> None:
    out, _, _ = make(here, sizes=(10,) * 10 + (9, 5))
    assert call(min_images_per_id=10, drop_top_percent=5) == 0
    paths, labels = columns(out / "quality_pseudo_labels.txt")
    assert len(paths) == 95
    reasons = [line.split("\t")[1] for line in (out / "unlabelled.txt").open(encoding="utf-8")]
    assert reasons.count("among the best 5 %\n") == 5
    assert reasons.count("its identity has fewer than 10 images\n") == 14
    # The rest is put on the scale again: its best come near the top.
    assert labels.max() > 90


def test_mislabelled_faces_are_listed_and_can_be_left_out(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, f, _ = make(here)
    f[[3, 57]] = f[[57, 3]]
    save(out, f.astype(np.float16))
    assert gen_pseudo_labels.main() == 0
    assert "look mislabelled: 2 images" in capsys.readouterr().out
    flagged, _ = columns(out / "mislabelled.txt")
    assert [path.split(" ")[0] for path in flagged] == ["faces/p0/3", "faces/p5/57"]
    kept, _ = columns(out / "quality_pseudo_labels.txt")
    assert len(kept) == 120
    assert call(exclude_mislabelled=True) == 0
    kept, _ = columns(out / "quality_pseudo_labels.txt")
    assert len(kept) == 118 and not set(flagged) & set(kept)
    assert (out / "unlabelled.txt").read_text(encoding="utf-8").count("\tlooks mislabelled\n") == 2


def test_unreadable_images_are_left_out_and_say_so(here: Path) -> None:
    out, f, _ = make(here)
    f[7] = 0
    save(out, f.astype(np.float16), unreadable=[{"row": 7, "path": "x", "reason": "is empty"}])
    assert gen_pseudo_labels.main() == 3
    assert (out / "unlabelled.txt").read_text(encoding="utf-8").endswith("\tunreadable: is empty\n")
    assert len(columns(out / "quality_pseudo_labels.txt")[0]) == 119


def test_embeddings_from_elsewhere_are_taken_with_a_note(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, f, _ = make(here, json_beside=False)
    save(out, f * 7, json_beside=False)  # float64, not unit
    assert gen_pseudo_labels.main() == 0
    assert "could not be checked" in capsys.readouterr().err
    assert len(columns(out / "quality_pseudo_labels.txt")[0]) == 120


@pytest.mark.parametrize("estimator, many", [("sampled", 2), ("exact", 3)])
def test_any_number_of_processes_and_threads_writes_the_same_files(
    run: Run, here: Path, estimator: Literal["sampled", "exact"], many: int
) -> None:
    out, _, _ = make(here, sizes=(3, 40, 2, 1, 9, 300, 5, 27) * 2)
    files = [
        out / name
        for name in ("quality_pseudo_labels.txt", "w_distances.txt", "distribution_info.json")
    ]
    assert call(process_num=1, estimator=estimator) == 0
    alone = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    done = run("--estimator", estimator, "--process-num", 2, processes=many)
    assert done.returncode == 0, done.stderr
    assert [file.read_bytes() for file in files] == alone


SPY = """
import os, runpy, sys
class Spy:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("numpy with", os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Spy())
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["gen_pseudo_labels", "gen_ers_scores"])
def test_products_have_one_thread_whatever_the_number_of_cores(script: str) -> None:
    """The library reads its number of threads once, as numpy is imported."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SPY, str(root / f"generate_pseudo_labels/{script}.py")],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = [line for line in done.stdout.splitlines() if line.startswith("numpy with")]
    assert set(seen) == {"numpy with 1"}


def truncated(out: Path, f: Floats) -> None:
    file = out / "feats_npy" / "Embedding_Features.npy"
    file.write_bytes(file.read_bytes()[:-100])


def not_npy(out: Path, f: Floats) -> None:
    (out / "feats_npy" / "Embedding_Features.npy").write_text("hello")


def one_dimension(out: Path, f: Floats) -> None:
    np.save(out / "feats_npy" / "Embedding_Features.npy", f[:, 0])


def whole_numbers(out: Path, f: Floats) -> None:
    np.save(out / "feats_npy" / "Embedding_Features.npy", (f * 100).astype(np.int64))


def by_column(out: Path, f: Floats) -> None:
    np.save(out / "feats_npy" / "Embedding_Features.npy", np.asfortranarray(f))


def damaged_header(out: Path, f: Floats) -> None:
    file = out / "feats_npy" / "Embedding_Features.npy"
    file.write_bytes(file.read_bytes().replace(b"}", b"{", 1))


def listed_twice(out: Path, f: Floats) -> None:
    lines = (out / "DATA.labelpath").read_text().splitlines(keepends=True)
    (out / "DATA.labelpath").write_text("".join([*lines[:-1], lines[0]]))


def missing(out: Path, f: Floats) -> None:
    (out / "feats_npy" / "Embedding_Features.npy").unlink()


def no_list(out: Path, f: Floats) -> None:
    (out / "DATA.labelpath").unlink()


def bad_json(out: Path, f: Floats) -> None:
    (out / "feats_npy" / "Embedding_Features.json").write_text("{}")


def edited(row: int, value: float) -> Spoil:
    def change(out: Path, f: Floats) -> None:
        f[row] = value
        save(out, f)

    return change


MENDS: dict[str, tuple[Spoil, str]] = {
    "truncated": (truncated, "Embedding_Features.npy: is truncated"),
    "no .npy": (not_npy, "is not a .npy file"),
    "header": (damaged_header, "is not a .npy file"),
    "twice": (listed_twice, "is listed twice; list it once"),
    "other numbers": (lambda out, f: save(out, f, dimension=7), "extract_feats writes beside"),
    "one dimension": (one_dimension, "holds float64 of shape (120,)"),
    "whole numbers": (whole_numbers, "holds int64"),
    "by column": (by_column, "is stored by column"),
    "missing": (missing, "extract the embeddings first"),
    "no list": (no_list, "DATA.labelpath: does not exist"),
    "empty json": (bad_json, "Embedding_Features.json: is not what extract_feats writes"),
    "NaN": (edited(5, np.nan), "row 5 (faces/p0/5 a face é'\".jpg) is not finite"),
    "zero": (edited(119, 0), "row 119 (faces/p11/119 a face é'\".jpg) is zero"),
    "rows": (lambda out, f: save(out, f[:-1]), "has 119 rows, but"),
    "another list": (lambda out, f: save(out, f, list={"sha256": "0"}), "belongs to another list"),
    "unfinished": (lambda out, f: save(out, f, rows_done=60), "is unfinished, 60 of 120 rows"),
    "outside": (lambda out, f: save(out, f, unreadable=[{"row": 120, "path": "", "reason": ""}]),
                "extract_feats writes beside these"),
}  # fmt: skip


@pytest.mark.parametrize("case", MENDS)
def test_bad_input_is_one_line_and_nothing_is_overwritten(
    here: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, f, _ = make(here)
    spoil, message = MENDS[case]
    (out / "quality_pseudo_labels.txt").write_text("mine")
    spoil(out, f)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        gen_pseudo_labels.main()
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
    assert before == {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}


def test_an_error_below_the_bar_is_one_line_and_exit_code_1(run: Run, tmp_path: Path) -> None:
    out, f, _ = make(tmp_path)
    edited(5, np.nan)(out, f)  # found while the bar is being drawn
    done = run()
    assert done.returncode == 1 and done.stdout == ""
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line]
    assert "row 5 (faces/p0/5 a face é'\".jpg) is not finite" in lines[-1]
    assert lines[-1].startswith("error: ")
    assert all("images/s" in line for line in lines[:-1]), done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"fix_num": 111}, "leaves 110 images of others, fewer than the 111 negatives asked for"),
        ({"fix_num": 0}, "--fix-num 0: must be 1 or more"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"drop_top_percent": 100}, "--drop-top-percent 100: must be at least 0 and below 100"),
        ({"fix_num": 111}, "add identities, or use --fix-num 110 in gen_pseudo_labels.py"),
        ({"min_images_per_id": 11}, "no image is left to label"),
        ({"device": "gpu"}, "--device gpu: must be auto, cpu, cuda or cuda:<index>"),
    ],
)
def test_flags_that_cannot_be_used(here: Path, flags: dict[str, Any], message: str) -> None:
    out, _, _ = make(here)
    with pytest.raises(UserError, match=re.escape(message)):
        call(**flags)
    assert not (out / "quality_pseudo_labels.txt").exists()


@pytest.mark.parametrize("each", [1, 120])
def test_one_identity_or_one_an_image_names_another_index(here: Path, each: int) -> None:
    out, _, _ = make(here)
    lines = [f"faces/p{row // 10}/{row}/x.jpg\t{row // each}\n" for row in range(120)]
    (out / "DATA.labelpath").write_text("".join(lines))
    save(out, np.load(out / "feats_npy" / "Embedding_Features.npy"))
    with pytest.raises(UserError, match="identity") as caught:
        gen_pseudo_labels.main()
    said = "each of the 120 images has an identity of its own"
    assert ("all 120 images have one identity" if each == 120 else said) in str(caught.value)
    assert (
        "make the list again with gen_datalist.py --id-key-index -3 (of faces/p0/0/x.jpg and "
        "faces/p11/119/x.jpg, -2 takes 0 and 119, -3 takes p0 and p11, -4 takes faces and faces)"
    ) in str(caught.value)


def test_a_list_says_which_fix_num_its_labels_need(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("ann", 9), ("bob", 6)):
        (here / "faces" / name).mkdir(parents=True)
        for number in range(count):
            (here / "faces" / name / f"{number}.jpg").touch()
    assert gen_datalist.main("faces") == 0
    said = capsys.readouterr().err
    assert "the largest identity leaves 6 images of others" in said
    advised = int(said.partition("--fix-num ")[2].split()[0])
    f = np.random.default_rng(0).standard_normal((15, 8))
    save(here / "annotations", f, json_beside=False)
    assert call(fix_num=advised) == 0
    with pytest.raises(UserError, match="leaves 6 images of others, fewer than the 7"):
        call(fix_num=advised + 1)


def test_a_list_of_one_identity_says_which_index_to_try(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in range(30):
        (here / f"faces/p{person}/feature").mkdir(parents=True)
        (here / f"faces/p{person}/feature/1.jpg").touch()
        (here / f"faces/p{person}/feature/2.jpg").touch()
    assert gen_datalist.main("faces") == 0
    assert "all 60 images have one identity; try --id-key-index -3" in capsys.readouterr().err
    assert gen_datalist.main("faces", id_key_index=-3) == 0
    said = capsys.readouterr()
    assert "60 images of 30 identities" in said.out and "note:" not in said.err


def test_a_picture_that_finds_no_room_costs_no_label(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise UserError(f"{path}: cannot be written (No space left on device)")

    out, _, _ = make(here)
    monkeypatch.setattr(picture, "draw_picture", full)
    assert gen_pseudo_labels.main() == 0
    assert len((out / "quality_pseudo_labels.txt").read_text().splitlines()) == 120
    assert "note: annotations/distributions.png: cannot be written" in capsys.readouterr().err


def test_a_picture_of_the_smallest_set(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = make(here, (2, 2))
    monkeypatch.setattr(picture, "draw_picture", draw_picture)
    assert call(fix_num=1, repeats=1) == 0
    assert cv2.imread(str(out / "distributions.png")) is not None


def test_many_reasons_are_counted_together(here: Path) -> None:
    out, _, _ = make(here)
    inputs = read_input(out)
    table = replace(inputs.images, starts=np.zeros(40_000, np.int64))
    many = LabelInput(table, np.zeros(40_000, np.int32), inputs.embeddings)
    for row in range(0, 40_000, 2):
        many.leave_out(np.array([row]), f"unreadable: damaged at offset {row}")
    many.leave_out(np.arange(40_000), "the only image of its identity")
    counts = many.counts()
    assert counts.pop("the only image of its identity") == 20_000
    assert sum(counts.values()) == 20_000 and len(counts) == 8
    assert counts["for other reasons"] == 20_000 - 7
