"""What the evaluator reads, and the one line that says what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.lists import ImageList, read_labelpath
from evaluation.edc.gather import recogniser_name, unique_names
from evaluation.edc.inputs import read_features, read_norms, read_scores, usable_rows
from evaluation.edc.verification_lists import read_names, read_pairs, rows_of_names
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import write_json

PATHS = ["faces/Ann Lee/Ann Lee_0001.jpg", "faces/Ann Lee/Ann Lee_0002.jpg", "faces/b,c/1.jpg"]


@pytest.fixture
def table(tmp_path: Path) -> ImageList:
    path = tmp_path / "DATA.labelpath"
    path.write_text("".join(f"{name}\t{row // 2}\n" for row, name in enumerate(PATHS)))
    return read_labelpath(path)[0]


def written(tmp_path: Path, text: str, name: str = "scores.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        f'path,score,status\n{PATHS[0]},1.5,ok\n"{PATHS[2]}",-2e1,ok\n{PATHS[1]},,unreadable\n',
        f'\ufeffstatus,score,path\r\nok,1.5,{PATHS[0]}\r\nok,-20,"{PATHS[2]}"\r\nno,,{PATHS[1]}\r\n',
        f"{PATHS[2]}\t-20\n{PATHS[0]}\t1.5\n",
        f"{PATHS[0]} 1.5\n{PATHS[2].replace(',', ';')} 7\n{PATHS[2]} -20.0\n",
        'path,score\n"x/b,c/1.jpg",-20\nx/Ann Lee/Ann Lee_0001.jpg,1.5\n',
    ],
    ids=["csv", "windows csv", "tabs", "spaces", "last two parts"],
)
def test_scores_of_every_form(tmp_path: Path, table: ImageList, text: str) -> None:
    found = read_scores(written(tmp_path, text), table)
    np.testing.assert_array_equal(found.values, [1.5, np.nan, -20.0])
    assert found.missing + found.empty == 1


def test_scores_count_what_does_not_fit(tmp_path: Path, table: ImageList) -> None:
    text = f"path,score\n{PATHS[0]},\n{PATHS[1]},3\nfaces/nobody/1.jpg,4\n"
    found = read_scores(written(tmp_path, text), table)
    assert (found.missing, found.empty, found.strangers) == (1, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", ":1: the header must name the columns path and score"),
        (f"path,score\n{PATHS[0]},nan\n", ":2: score nan is not a finite number"),
        (f"path,score\n{PATHS[0]},good\n", ":2: score good is not a finite number"),
        (f"path,score\n{PATHS[0]},1\n{PATHS[1]}\n", ":3: 1 columns, the header has 2"),
        (f"path,score\n{PATHS[0]},1\n{PATHS[0]},1\n", f": {PATHS[0]} is listed twice"),
        ('path,score\n"a\tb",1\n', ":2: has no path that fits a line"),
        ('path,score\n"a"b,1\n', ":2: is not CSV"),
        ("path,score\nx/y.jpg,1\n", "none of its 1 paths is in"),
        (f"{PATHS[0]}\tnan\n", ":1: the score is not a finite number"),
        (f"{PATHS[0]}\t1\n{PATHS[0]}\t2\n", ":2: .* is listed twice"),
        (f"{PATHS[0]} one\n", ":1: expected `path TAB score`"),
        ("", "is empty"),
        ("path,score\n", "holds no score; it has a header line alone"),
    ],
)
def test_bad_scores_are_named(tmp_path: Path, table: ImageList, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        read_scores(path, table)
    assert str(error.value).startswith(str(path))


def test_scores_that_cannot_be_read(tmp_path: Path, table: ImageList) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_scores(tmp_path / "none.csv", table)
    path = tmp_path / "latin.csv"
    for text in (b"path,score\nfaces/\xe9.jpg,1\n", b"a.jpg 1\n" * 9999 + b"\xe9.jpg 1\n"):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"latin\.csv: is not UTF-8"):
            read_scores(path, table)


def test_a_pipe_of_scores_is_refused(tmp_path: Path, table: ImageList) -> None:
    os.mkfifo(tmp_path / "scores.csv")
    with pytest.raises(UserError, match="is a pipe, and is read more than once"):
        read_scores(tmp_path / "scores.csv", table)


def test_features(tmp_path: Path, table: ImageList) -> None:
    path = tmp_path / "Embedding_Features.npy"
    np.save(path, np.array([[1, 0], [0, 0], [np.nan, 1]], np.float16))
    features, unchecked = read_features(path, table)
    assert unchecked is not None and "no .json beside it" in unchecked
    assert usable_rows(features).tolist() == [True, False, False]
    beside = path.with_suffix(".json")
    write_json(beside, {"list": {"sha256": table.sha256}, "rows_done": 3})
    assert read_features(path, table)[1] is None
    write_json(beside, {"list": {"sha256": table.sha256}, "rows_done": 2})
    with pytest.raises(UserError, match="is unfinished, 2 of 3 rows"):
        read_features(path, table)
    write_json(beside, {"list": {"sha256": "other"}, "rows_done": 3})
    with pytest.raises(UserError, match="belongs to another list"):
        read_features(path, table)
    for foreign in ({"model": "arcface"}, {"list": "DATA.labelpath"}, {"list": None}, [1]):
        write_json(beside, foreign)
        with pytest.raises(UserError, match=r"is not what extract_feats writes .* made elsewhere"):
            read_features(path, table)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4), np.float32), "2 rows, but .* has 3 lines"),
        (np.zeros(3, np.float32), r"embeddings are floats, \(N, D\)"),
        (np.zeros((3, 4), np.int64), "embeddings are floats"),
    ],
)
def test_bad_features_are_named(
    tmp_path: Path, table: ImageList, array: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "f.npy", array)
    with pytest.raises(UserError, match=message):
        read_features(tmp_path / "f.npy", table)


def test_features_that_cannot_be_read(tmp_path: Path, table: ImageList) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_features(tmp_path / "none.npy", table)
    np.save(tmp_path / "cut.npy", np.zeros((3, 4)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:150])
    with pytest.raises(UserError, match="is not a whole"):
        read_features(tmp_path / "cut.npy", table)
    np.savez(tmp_path / "several.npz", np.zeros((3, 4)))
    with pytest.raises(UserError, match="holds several arrays"):
        read_features(tmp_path / "several.npz", table)


def test_norms(tmp_path: Path, table: ImageList) -> None:
    features = tmp_path / "Embedding_Features.npy"
    with pytest.raises(UserError, match="is missing; --reference norm"):
        read_norms(features, table)
    np.save(tmp_path / "Embedding_Norms.npy", np.array([1, 2, 3], np.float32))
    assert read_norms(features, table).tolist() == [1, 2, 3]
    np.save(tmp_path / "Embedding_Norms.npy", np.array([1, 2], np.float32))
    with pytest.raises(UserError, match=r"shape \(2,\), but .* has 3 lines"):
        read_norms(features, table)
    np.save(tmp_path / "Embedding_Norms.npy", np.array(["a", "b", "c"]))
    with pytest.raises(UserError, match="holds <U1; norms are floats"):
        read_norms(features, table)


@pytest.mark.parametrize(
    "name",
    [
        PATHS[0],
        "Ann Lee/Ann Lee_0001.jpg",
        "Ann Lee/Ann Lee_0001",
        "Ann Lee_0001.jpg",
        "Ann Lee_0001",
    ],
)
def test_an_image_has_five_names(table: ImageList, name: str) -> None:
    assert rows_of_names([name, "nobody"], table) == {name: 0}


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a/1.jpg\t0\nb/1.jpg\t1\n", "two.labelpath")
    with pytest.raises(UserError, match=r"1 fits two images: b/1.jpg is the second"):
        rows_of_names(["1"], read_labelpath(path)[0])


def test_excluded_names(tmp_path: Path, table: ImageList) -> None:
    assert read_names(written(tmp_path, "Ann Lee_0002\n", "x.txt"), table).tolist() == [0, 1, 0]
    with pytest.raises(UserError, match=r"x\.txt:2: nobody is not in"):
        read_names(written(tmp_path, "Ann Lee_0002\nnobody\n", "x.txt"), table)
    gaps = written(tmp_path, "\ufeff\nAnn Lee_0002\r\n\n", "x.txt")
    assert read_names(gaps, table).tolist() == [0, 1, 0]
    with pytest.raises(UserError, match=r"x\.txt:3: nobody is not in"):
        read_names(written(tmp_path, "Ann Lee_0002\n\nnobody\n", "x.txt"), table)


@pytest.mark.parametrize(
    "text",
    [
        "1\t1\nAnn Lee\t1\t2\nAnn Lee\t2\tBob\t1\n",
        "Ann Lee/Ann Lee_0001.jpg\tAnn Lee/Ann Lee_0002.jpg\t1\n"
        "Ann Lee/Ann Lee_0002.jpg\tBob/Bob_0001.jpg\t0\n",
        "a/1.jpg a/2.jpg 1\na/2.jpg b/1.jpg 0\n",
    ],
    ids=["LFW", "tabs", "spaces"],
)
def test_pair_lists(tmp_path: Path, text: str) -> None:
    names = ["Ann Lee/Ann Lee_0001", "Ann Lee/Ann Lee_0002", "Bob/Bob_0001"]
    if "a/1" in text:
        names = ["a/1", "a/2", "b/1"]
    lines = "".join(f"faces/{name}.jpg\t{row // 2}\n" for row, name in enumerate(names))
    table = read_labelpath(written(tmp_path, lines, "DATA.labelpath"))[0]
    first, second, same, lost = read_pairs(written(tmp_path, text, "pairs.txt"), table)
    assert first.tolist() == [0, 1] and second.tolist() == [1, 2]
    assert same.tolist() == [True, False] and lost == 0


def test_pairs_of_strangers_are_counted(tmp_path: Path, table: ImageList) -> None:
    path = written(tmp_path, "1\t1\nAnn Lee\t1\t2\nAnn Lee\t2\tBob\t1\n", "pairs.txt")
    assert read_pairs(path, table)[3] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "1\t1\nAnn Lee\t1\n", ":2: expected `name TAB i TAB j`"),
        ("p.txt", "a b\n", ":1: expected `image image 0|1`"),
        ("p.txt", "a\tb\t2\n", ":1: expected `image image 0|1`"),
        ("p.txt", "x\ty\t1\n", "none of its images is in"),
        ("p.txt", "", "is empty"),
        ("p.bin", "", "is not a pickled set of pairs"),
    ],
)
def test_bad_pair_lists_are_named(
    tmp_path: Path, table: ImageList, name: str, text: str, message: str
) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(UserError, match=message.replace("|", r"\|")) as error:
        read_pairs(path, table)
    assert str(error.value).startswith(str(path))


def test_names_of_files_and_recognisers(tmp_path: Path) -> None:
    stem: Callable[[Path], str] = lambda path: path.stem  # noqa: E731
    assert unique_names([Path("x/a.csv"), Path("x/b.csv")], stem) == ["a", "b"]
    assert unique_names([Path("x/a.csv"), Path("y/a.csv")], stem) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="given twice"):
        unique_names([Path("x/a.csv"), Path("x/../x/a.csv")], stem)
    features = tmp_path / "sface" / "feats_npy" / "Embedding_Features.npy"
    assert recogniser_name(features) == "sface"
    assert recogniser_name(Path("any/mine.npy")) == "mine"
    features.parent.mkdir(parents=True)
    write_json(features.with_suffix(".json"), {"weights": {"weights": "models/w600k_mbf.onnx"}})
    assert recogniser_name(features) == "w600k_mbf"
