"""Embeddings of a list, and the one line that says what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataset.embeddings import EmbeddingsFile, open_embeddings, read_norms
from dataset.lists import ImageList, read_labelpath
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import write_json


@pytest.fixture
def table(tmp_path: Path) -> ImageList:
    path = tmp_path / "DATA.labelpath"
    path.write_text("a/1.jpg\t0\na/2.jpg\t0\nb/1.jpg\t1\n")
    return read_labelpath(path)[0]


def test_features(tmp_path: Path, table: ImageList) -> None:
    path = tmp_path / "Embedding_Features.npy"
    np.save(path, np.array([[1, 0], [0, 0], [np.nan, 1]], np.float16))
    features = open_embeddings(path, table)
    assert "no .json beside it" in features.note
    assert features.usable_rows().tolist() == [True, False, False]
    beside = path.with_suffix(".json")
    write_json(beside, {"list": {"sha256": table.sha256}, "rows_done": 3})
    assert not open_embeddings(path, table).note
    write_json(beside, {"list": {"sha256": table.sha256}, "rows_done": 2})
    with pytest.raises(UserError, match="is unfinished, 2 of 3 rows"):
        open_embeddings(path, table)
    write_json(beside, {"list": {"sha256": "other"}, "rows_done": 3})
    with pytest.raises(UserError, match="belongs to another list"):
        open_embeddings(path, table)
    for foreign in ({"model": "arcface"}, {"list": "DATA.labelpath"}, {"list": None}, [1]):
        write_json(beside, foreign)
        with pytest.raises(UserError, match=r"is not what extract_feats writes .* made elsewhere"):
            open_embeddings(path, table)


def test_rows_by_number_are_those_of_the_array(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16)
    np.save(tmp_path / "f.npy", array)
    file = EmbeddingsFile(tmp_path / "f.npy")
    assert np.array_equal(file[3:50], array[3:])
    for rows in ([], [7], [4, 5, 6], [49, 0, 1, 2, 2, 3, 9, 8], range(50)):
        picked = np.array(rows, np.int64)
        assert np.array_equal(file[picked], array[picked])


def test_a_folder_of_the_label_step_is_its_file(tmp_path: Path, table: ImageList) -> None:
    file = tmp_path / "annotations/feats_npy/Embedding_Features.npy"
    file.parent.mkdir(parents=True)
    np.save(file, np.eye(3, dtype=np.float32))
    write_json(file.with_suffix(".json"), {"list": {"sha256": table.sha256}, "rows_done": 3})
    for folder in (file.parent, file.parent.parent):
        features = open_embeddings(folder, table)
        assert features.path == file and not features.note
    with pytest.raises(UserError, match=r"tmp.*: cannot be read \(Is a directory\)"):
        open_embeddings(tmp_path, table)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4), np.float32), "2 rows, but .* has 3 lines"),
        (np.zeros(3, np.float32), r"shape \(3,\); embeddings are one row of floats"),
        (np.zeros((3, 4), np.int64), "holds int64 .* embeddings are one row of floats"),
    ],
)
def test_bad_features_are_named(
    tmp_path: Path, table: ImageList, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(UserError, match=message):
        open_embeddings(tmp_path / "f.npy", table)


def with_shape(path: Path, shape: str) -> Path:
    """A .npy of 3 x 4 numbers whose header says something else."""
    np.save(path, np.zeros((3, 4), np.float32))
    content = path.read_bytes()
    end = content.index(b"\n")
    header = content[10:end].replace(b"(3, 4)", shape.encode()).rstrip()
    size = len(header) + 1
    path.write_bytes(content[:8] + size.to_bytes(2, "little") + header + content[end:])
    return path


@pytest.mark.parametrize(
    "shape", ["(64, -128)", "(True, 4)", "(-3, -4)", "(3, 0)", "(3, 1" + "0" * 30 + ")", "(3.0, 4)"]
)
def test_a_shape_is_checked_against_the_file(tmp_path: Path, table: ImageList, shape: str) -> None:
    path = with_shape(tmp_path / "f.npy", shape)
    with pytest.raises(UserError, match=r"f\.npy: (is|holds) "):
        open_embeddings(path, table)
    with pytest.raises(UserError, match=r"Norms\.npy: (is|holds|shape) "):
        read_norms(with_shape(tmp_path / "Embedding_Norms.npy", shape), table)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "[3]", '"x"', "1" + "0" * 400])
def test_numbers_beside_features_are_checked(tmp_path: Path, table: ImageList, number: str) -> None:
    np.save(tmp_path / "f.npy", np.zeros((3, 4), np.float32))
    for key in ("rows_done", "dimension"):
        other = {"rows_done": "3", "dimension": "4"} | {key: number}
        text = ", ".join(f'"{name}": {value}' for name, value in other.items())
        (tmp_path / "f.json").write_text(f'{{"list": {{"sha256": "{table.sha256}"}}, {text}}}')
        with pytest.raises(UserError, match=r"f\.(npy|json): "):
            open_embeddings(tmp_path / "f.npy", table)


def test_features_that_cannot_be_read(tmp_path: Path, table: ImageList) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_embeddings(tmp_path / "none.npy", table)
    np.save(tmp_path / "cut.npy", np.zeros((3, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:150])
    with pytest.raises(UserError, match="is truncated"):
        open_embeddings(tmp_path / "cut.npy", table)
    np.savez(tmp_path / "several.npz", np.zeros((3, 4)))
    with pytest.raises(UserError, match="extract the embeddings again"):
        open_embeddings(tmp_path / "several.npz", table)


def test_norms(tmp_path: Path, table: ImageList) -> None:
    features = tmp_path / "Embedding_Features.npy"
    with pytest.raises(UserError, match="is missing; --reference norm"):
        read_norms(features, table)
    np.save(tmp_path / "Embedding_Norms.npy", np.array([1, 2, 3], np.float32))
    assert read_norms(features, table).tolist() == [1, 2, 3]
    np.save(tmp_path / "Embedding_Norms.npy", np.array([1, 2], np.float32))
    with pytest.raises(UserError, match=r"shape \(2,\); norms .* of the 3 lines"):
        read_norms(features, table)
    np.save(tmp_path / "Embedding_Norms.npy", np.array(["a", "b", "c"]))
    with pytest.raises(UserError, match=r"holds <U1 of shape \(3,\)"):
        read_norms(features, table)
