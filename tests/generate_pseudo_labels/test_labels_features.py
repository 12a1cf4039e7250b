"""One .npy an image: the known generator's usage line works with this script's name."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from generate_pseudo_labels.gen_pseudo_labels import main
from generate_pseudo_labels.npy_folder import DAMAGED, NpyFolder, _read_one
from sdd_fiqa.errors import UserError

Load = Literal["True", "False"]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """40 people x 5 in shuffled order, absolute paths <root>/<person>/feature/<name>.jpg.

    Returns the folder, where the test then stands, and the paths.
    """
    monkeypatch.chdir(tmp_path)
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


def usage(folder: Path, load: Load = "False", **changes: Any) -> int:
    """The usage line as a call, without Python's start."""
    files = NpyFolder(
        image_list_file=Path("list.txt"),
        score_dst=Path("scores"),
        feature_root=Path("features"),
        image_root=folder / "images",
        load_feature=load,
    )
    process_num = changes.pop("process_num", 0)
    return main(process_num=process_num, files=replace(files, **changes))


def labels_of(folder: Path) -> dict[str, float]:
    text = (folder / "scores" / "quality_pseudo_labels.txt").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines()]
    return {path: float(label) for path, label in lines}


def test_the_usage_line(
    layout: tuple[Path, list[str]],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder, paths = layout
    script = "generate_pseudo_labels/gen_pseudo_labels.py"
    flags = (*USAGE, "--image-root", folder / "images", "--load-feature", "False")
    done = run_script(script, *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "200 of 200 images of 40 identities labelled" in done.stdout
    gathered = labels_of(folder)
    assert list(gathered) == paths
    made = folder / "scores" / "feats_npy" / "Embedding_Features.npy"
    assert json.loads(made.with_suffix(".json").read_text())["rows_done"] == 200
    # The folder is what annotations/ is: it can be used again.
    assert main(out_dir=Path("scores")) == 0
    assert labels_of(folder) == gathered


def test_in_memory_nothing_is_gathered_and_the_labels_are_the_same(
    layout: tuple[Path, list[str]],
) -> None:
    folder, paths = layout
    assert usage(folder, "True") == 0
    assert not (folder / "scores" / "feats_npy").exists()
    kept = labels_of(folder)
    assert list(kept) == paths
    assert usage(folder, "False") == 0
    gathered = labels_of(folder)
    # The file's rows are float16.
    assert max(abs(kept[path] - gathered[path]) for path in paths) < 0.2


@pytest.mark.parametrize("load", ["True", "False"])
def test_missing_and_damaged_files_are_counted_and_listed(
    layout: tuple[Path, list[str]], load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = layout
    (folder / "features" / "person 3" / "feature" / "1.é.npy").unlink()
    (folder / "features" / "person 4" / "feature" / "2.é.npy").write_text("hello")
    np.save(folder / "features" / "person 5" / "feature" / "0.é.npy", np.zeros(64))
    assert usage(folder, load) == 3
    assert "1 (unreadable: its .npy is missing)" in capsys.readouterr().out
    listed = (folder / "scores" / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line.split("person ")[1] for line in listed) == [
        "3/feature/1.é.jpg\tunreadable: its .npy is missing",
        "4/feature/2.é.jpg\tunreadable: its .npy cannot be read",
        "5/feature/0.é.jpg\tunreadable: its embedding is zero or not finite",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_root": Path("elsewhere")}, "is not below --image-root elsewhere"),
        ({"id_key_index": -2}, "all 200 images have one identity; try --id-key-index -3"),
        ({"id_key_index": -30}, "has no part -30 to name its identity"),
        ({"feature_root": Path("nowhere")}, "--feature-root nowhere: no such folder"),
        ({"image_list_file": Path("none.txt")}, "none.txt: does not exist"),
        ({"feature_root": None}, "--image-list-file: goes with --feature-root"),
        ({"id_key_index": -1}, "--id-key-index -1: is the image's own name"),
        ({"process_num": -1}, "--process-num -1: must be 0 or more"),
        ({"image_list_file": Path("twice")}, "twice:2: b/feature/1.jpg is listed twice"),
        ({"image_list_file": Path("dot"), "image_root": None}, "dot:1: . names no image"),
        ({"image_list_file": None}, "needs --image-list-file and --score-dst"),
        ({"score_dst": None}, "needs --image-list-file and --score-dst"),
    ],
)
def test_bad_input_is_named(
    layout: tuple[Path, list[str]], change: dict[str, Any], message: str
) -> None:
    (layout[0] / "twice").write_text("b/feature/1.jpg\n" * 2)
    (layout[0] / "dot").write_text(".\n")
    with pytest.raises(UserError, match=re.escape(message)):
        usage(layout[0], **change)


def test_norms_are_those_of_the_files(layout: tuple[Path, list[str]]) -> None:
    folder, paths = layout
    usage(folder)
    norms = np.load(folder / "scores/feats_npy/Embedding_Norms.npy")
    npy = (Path(path.replace("/images/", "/features/")).with_suffix(".npy") for path in paths)
    assert norms == pytest.approx([np.linalg.norm(np.load(file)) for file in npy], rel=1e-6)


def test_embeddings_of_two_lengths_and_none_at_all(layout: tuple[Path, list[str]]) -> None:
    folder, _ = layout
    np.save(folder / "features" / "person 7" / "feature" / "2.é.npy", np.ones(32))
    with pytest.raises(UserError, match=re.escape("2.é.npy: holds 32 numbers")):
        usage(folder)
    with pytest.raises(UserError, match=r"none of its images has a readable \.npy"):
        usage(folder, image_root=folder)


@pytest.mark.parametrize("shape", ["(64, -128)", "(True,)", "(1" + "0" * 30 + ",)", "(0,)"])
def test_a_header_is_checked_against_its_file(tmp_path: Path, shape: str) -> None:
    np.save(tmp_path / "a.npy", np.ones(64, np.float32))
    assert not isinstance(_read_one(tmp_path / "a.npy"), str)
    content = (tmp_path / "a.npy").read_bytes()
    at = content.index(b"(64,)")
    header = content[at:127].replace(b"(64,)", shape.encode()).strip().ljust(127 - at)
    (tmp_path / "a.npy").write_bytes(content[:at] + header + content[127:])
    assert _read_one(tmp_path / "a.npy") == DAMAGED
