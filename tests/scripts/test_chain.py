"""The whole chain as README shows it, on tiny made-up faces, with one process and with two."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

LABEL = "generate_pseudo_labels/gen_pseudo_labels.py"
EXTRACT = "generate_pseudo_labels/extract_embedding/extract_feats.py"
PSEUDO = "quality_pseudo_labels.txt"


def run_chain(
    folder: Path, run_script: Callable[..., object], recogniser: Path, processes: int
) -> None:
    """List, embed, label, train, score: each a subprocess in `folder`, each must end well."""

    def step(script: str, *arguments: object, many: bool = False) -> str:
        result = run_script(
            script, *arguments, cwd=folder, processes=processes if many else 1, timeout=240
        )
        assert result.returncode == 0, result.stderr  # type: ignore[attr-defined]
        return str(result.stdout)  # type: ignore[attr-defined]

    listed = step("generate_pseudo_labels/gen_datalist.py", "--data-root", "faces")
    assert "24 images of 6 identities" in listed
    common = ("--device", "cpu", "--precision", "fp32")
    mfn = ("--backbone", "MFN")
    step(EXTRACT, "--weights", recogniser, *mfn, "--batch-size", 4, *common, many=True)
    step(LABEL, "--fix-num", 4, "--device", "cpu", many=True)
    training = ("--epochs", 1, "--batch-size", 4 // processes, "--val-identities", 0.3)
    step("train.py", *mfn, *training, "--dropout", 0, "--sync-bn", *common, many=True)
    model = "checkpoints/sdd_fiqa/net_1epoch.pth"
    step("eval.py", "faces", "--model", model, "--report", "report.html", *common)


@pytest.fixture(scope="module")
def chains(
    tmp_path_factory: pytest.TempPathFactory,
    run_script: Callable[..., object],
    make_faces: Callable[[Path], Path],
    weights: dict[str, Path],
) -> list[Path]:
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"chain{processes}")
        make_faces(folder / "faces")
        run_chain(folder, run_script, weights["recognition"], processes)
        folders.append(folder)
    return folders


def test_every_file_of_the_design_is_there(chains: list[Path]) -> None:
    for folder in chains:
        notes = folder / "annotations"
        paths = [
            line.split("\t")[0] for line in (notes / "DATA.labelpath").read_text().splitlines()
        ]
        labels = [line.split("\t") for line in (notes / PSEUDO).read_text().splitlines()]
        assert [path for path, _ in labels] == paths
        assert cv2.imread(str(notes / "distributions.png")) is not None
        values = np.array([float(value) for _, value in labels])
        assert 0 <= values.min() < values.max() <= 100
        with open(folder / "scores.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["path"] for row in rows] == paths
        assert all(row["status"] == "ok" and np.isfinite(float(row["score"])) for row in rows)
        assert "faces/id0/0.jpg" in (folder / "report.html").read_text()


def test_two_processes_do_what_one_does(chains: list[Path]) -> None:
    one, two = chains
    for name in ("DATA.labelpath", "feats_npy/Embedding_Features.npy", PSEUDO):
        left, right = (folder / "annotations" / name for folder in (one, two))
        assert left.read_bytes() == right.read_bytes(), name
    scores = [
        np.genfromtxt(folder / "scores.csv", delimiter=",", skip_header=1, usecols=(1,))
        for folder in (one, two)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0.02, atol=0.05)
