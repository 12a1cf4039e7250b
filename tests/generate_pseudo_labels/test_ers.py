"""ERS: planted unrecognisable faces are found, by every source, and score lowest."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from dataset.lists import read_table
from generate_pseudo_labels import ers, gen_ers_scores
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import cv2

Floats = npt.NDArray[np.float64]


class People(NamedTuple):
    """A listed and embedded set; the test stands in its folder."""

    folder: Path
    f: Floats  # (250, 128) unit rows
    nobody: Floats  # (128,) where the unrecognisable images gather
    spoilt: npt.NDArray[np.int64]  # (30,) their rows


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> People:
    """60 identities x 4 and 10 single images; image 0 of the first 30 is unrecognisable."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.concatenate([np.repeat(np.arange(60), 4), np.arange(60, 70)])
    f = rng.standard_normal((70, 128))[y] + 0.6 * rng.standard_normal((250, 128))
    nobody = rng.standard_normal(128)
    spoilt = np.arange(30) * 4
    f[spoilt] = nobody + 0.6 * rng.standard_normal((30, 128))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    out = tmp_path / "annotations"
    (out / "feats_npy").mkdir(parents=True)
    lines = [f"faces/{c}/{i}.jpg\t{c}\n" for i, c in enumerate(y)]
    (out / "DATA.labelpath").write_text("".join(lines))
    np.save(out / "feats_npy" / "Embedding_Features.npy", f.astype(np.float16))
    return People(tmp_path, f, nobody / np.linalg.norm(nobody), spoilt)


def run(**source: Any) -> int:
    return gen_ers_scores.main(source=ers.UnrecognisableSource(**source))


def scores_in(folder: Path) -> tuple[list[str], Floats]:
    lines = (folder / "annotations" / "ers_scores.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return [row[0] for row in rows], np.array([float(row[1]) for row in rows])


def test_from_embeddings_is_the_formula(
    people: People, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = people.folder
    rng = np.random.default_rng(1)
    made = people.nobody + 0.05 * rng.standard_normal((40, 128))
    np.save(folder / "ui.npy", made * 30)  # any length
    script = "generate_pseudo_labels/gen_ers_scores.py"
    done = run_script(script, "--ui-feats", "ui.npy", cwd=folder)
    assert done.returncode == 0, done.stderr
    paths, scores = scores_in(folder)
    assert paths == list(read_table(folder / "annotations" / "DATA.labelpath").paths())
    centre = (made / np.linalg.norm(made, axis=1, keepdims=True)).mean(0)
    expected = np.minimum(1, 1 - people.f @ centre / np.linalg.norm(centre))
    assert np.abs(scores - expected).max() < 2e-3


def test_the_cluster_is_found_and_scores_lowest(
    people: People, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ui_from_cluster=True) == 0
    assert "a cluster of 30 images of different people" in capsys.readouterr().out
    _, scores = scores_in(people.folder)
    assert set(np.argsort(scores)[:30]) == set(people.spoilt) and len(scores) == 250


def test_where_nobody_gathers_there_is_no_cluster(people: People) -> None:
    folder, f, _, spoilt = people
    f[spoilt] = f[spoilt + 1]
    np.save(folder / "annotations" / "feats_npy" / "Embedding_Features.npy", f)
    with pytest.raises(UserError, match="gather nowhere"):
        run(ui_from_cluster=True)


class MeanColour:
    """A recogniser that knows nothing but colours."""

    def __init__(self) -> None:
        self.about = {"sha256": "mine"}

    def embed(self, faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(B, 112, 112, 3) -> (B, 128)."""
        cells = faces.reshape(len(faces), 8, 14, 8, 14, 3).mean((2, 4)).reshape(len(faces), -1)
        return np.asarray(cells[:, :128] + 1, np.float32)


@pytest.fixture
def with_faces(people: People, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = people.folder
    rng = np.random.default_rng(3)
    for path in read_table(folder / "annotations" / "DATA.labelpath").paths():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / path), rng.integers(0, 255, (112, 112, 3)).astype(np.uint8))
    monkeypatch.setattr("generate_pseudo_labels.ers.load_recogniser", lambda *_: MeanColour())
    return folder


@pytest.mark.parametrize("source", [{"ui_from_degraded": 20}, {"ui_image_dir": Path("faces/3")}])
def test_from_images(
    with_faces: Path, source: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(weights="any", **source) == 0
    said = capsys.readouterr().out
    assert f"against {20 if 'ui_from_degraded' in source else 4} unrecognisable faces" in said
    first = scores_in(with_faces)[1]
    assert run(weights="any", **source) == 0
    assert np.array_equal(scores_in(with_faces)[1], first)


def test_another_recogniser_is_refused(with_faces: Path) -> None:
    beside = with_faces / "annotations" / "feats_npy" / "Embedding_Features.json"
    table = read_table(with_faces / "annotations" / "DATA.labelpath")
    about = {"list": {"sha256": table.sha256}, "rows_done": 250, "weights": {"sha256": "theirs"}}
    beside.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="is not the recogniser that made"):
        run(weights="any", ui_from_degraded=3)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({}, "give one source of unrecognisable faces"),
        ({"ui_from_cluster": True, "ui_feats": Path("x.npy")}, "give one source"),
        ({"ui_from_degraded": 3}, "--weights: needed to embed images"),
        ({"ui_from_cluster": True, "seed": -1}, "--seed -1: must be 0 or more"),
        ({"ui_feats": Path("nowhere.npy")}, "nowhere.npy: cannot be read"),
        ({"ui_feats": Path("short.npy")}, "has embeddings of 5 numbers, the list's have 128"),
        ({"ui_feats": Path("zero.npy")}, "holds no embedding that has a direction"),
    ],
)
def test_bad_input_is_named(people: People, flags: dict[str, Any], message: str) -> None:
    np.save(people.folder / "short.npy", np.ones((3, 5), np.float32))
    np.save(people.folder / "zero.npy", np.zeros((3, 128), np.float32))
    with pytest.raises(UserError, match=re.escape(message)):
        run(**flags)
    assert not (people.folder / "annotations" / "ers_scores.txt").exists()


def test_nothing_readable_gives_no_score(people: People) -> None:
    table = read_table(people.folder / "annotations/DATA.labelpath")
    lost = [{"row": r, "path": p, "reason": "is empty"} for r, p in enumerate(table.paths())]
    about = {"list": {"sha256": table.sha256}, "rows_done": 250, "unreadable": lost}
    file = people.folder / "annotations/feats_npy/Embedding_Features.npy"
    file.with_suffix(".json").write_text(json.dumps(about))
    np.save(file, np.zeros((250, 128), np.float16))
    np.save(people.folder / "ui.npy", people.nobody[None])
    with pytest.raises(UserError, match="none of its images has an embedding"):
        run(ui_feats=people.folder / "ui.npy")


def test_the_centre_cancels_out() -> None:
    with pytest.raises(ValueError, match="cancel"):
        ers.centre_of(np.array([[1, 0], [-1, 0]], np.float32))
