"""Joined embeddings: their cosine is the mean cosine; what one lacks, the joined lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dataset.embedding_writer import FeatureWriter
from dataset.joined_embeddings import main
from dataset.lists import LABELPATH, read_table
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json

ROWS = 9000  # more than a block


def write_features(folder: Path, features: npt.NDArray[np.float32], bad: dict[int, str]) -> Path:
    table = read_table(folder / LABELPATH)
    about = {"list": {"path": str(table.file), "sha256": table.sha256, "rows": len(table)}}
    writer = FeatureWriter(folder / "feats_npy", len(features), features.shape[1], about)
    writer.prepare()
    writer.write(0, features, dict(bad))
    writer.finish(table)
    return writer.features


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    lines = "".join(f"faces/{row % 7}/{row}.jpg\t{row % 7}\n" for row in range(ROWS))
    folders = [tmp_path / name for name in ("a", "b", "both")]
    for folder in folders:
        folder.mkdir()
        (folder / LABELPATH).write_text(lines)
    return folders


def test_the_joined_cosine_is_the_mean(folders: list[Path]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(ROWS, size)).astype(np.float32) for size in (32, 8)]
    feats = tuple(write_features(f, p, {}) for f, p in zip(folders, parts, strict=False))
    assert main(feats=feats, out_dir=folders[2]) == 0
    joined = np.load(folders[2] / "feats_npy/Embedding_Features.npy").astype(np.float32)
    assert joined.shape == (ROWS, 40)
    some = rng.integers(0, ROWS, 500), rng.integers(0, ROWS, 500)
    cosines = []
    for part in parts:
        unit = part / np.linalg.norm(part, axis=1, keepdims=True)
        cosines.append((unit[some[0]] * unit[some[1]]).sum(axis=1))
    found = (joined[some[0]] * joined[some[1]]).sum(axis=1)
    assert np.abs(found - np.mean(cosines, axis=0)).max() < 2e-3  # float16 rows


def test_what_one_lacks_is_reported(folders: list[Path]) -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(ROWS, 4)).astype(np.float32) for _ in range(2)]
    bad = 8500
    feats = (
        write_features(folders[0], parts[0], {3: "is not an image"}),
        write_features(folders[1], parts[1], {bad: "is not an image"}),
    )
    assert main(feats=feats, out_dir=folders[2]) == 3
    target = folders[2] / "feats_npy/Embedding_Features.npy"
    assert np.flatnonzero(np.all(np.load(target) == 0, axis=1)).tolist() == [3, bad]
    reasons = [entry["reason"] for entry in read_json(target.with_suffix(".json"))["unreadable"]]
    assert reasons == [f"{feats[0]}: is not an image", f"{feats[1]}: is not an image"]


def test_other_lists_are_refused(folders: list[Path]) -> None:
    rng = np.random.default_rng(2)
    part = rng.normal(size=(ROWS, 4)).astype(np.float32)
    feats = tuple(write_features(folder, part, {}) for folder in folders[:2])
    with pytest.raises(UserError, match="two recognisers"):
        main(feats=feats[:1], out_dir=folders[2])
    with pytest.raises(UserError, match="holds one of --feats"):
        main(feats=feats, out_dir=folders[0])
    listed = folders[2] / LABELPATH
    listed.write_text(listed.read_text().replace("faces/0/0.jpg", "faces/0/other.jpg"))
    with pytest.raises(UserError, match="belongs to another list"):
        main(feats=feats, out_dir=folders[2])
