"""What the evaluator reads, and the one line that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.lists import ImageList, read_labelpath
from evaluation.edc.gather import recogniser_name, unique_names
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
    assert rows_of_names(Path("x"), {name, "nobody"}, table) == {name: 0}


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a/1.jpg\t0\nb/1.jpg\t1\n", "two.labelpath")
    with pytest.raises(UserError, match=r"1 matches two images, also b/1.jpg"):
        rows_of_names(path, {"1"}, read_labelpath(path)[0])


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
        "Ann Lee\t1\t2\nAnn Lee\t2\tBob\t1\n",
        "Bob_Lee 1 2\nBob_Lee 2 Bob 1\n",
        "name,i,j,\nAnn Lee,1,2,\nAnn Lee,2,Bob,1\n",
        "Ann Lee/Ann Lee_0001.jpg\tAnn Lee/Ann Lee_0002.jpg\t1\n"
        "Ann Lee/Ann Lee_0002.jpg\tBob/Bob_0001.jpg\t0\n",
        "a/1.jpg a/2.jpg 1\na/2.jpg b/1.jpg 0\n",
        "Ann Lee_0001.jpg,Ann Lee_0002.jpg,1\nAnn Lee_0002.jpg,Bob_0001.jpg,0\n",
        "first;second;same\nAnn Lee_0001;Ann Lee_0002;1\nAnn Lee_0002;Bob_0001;0\n",
        "1 a/1.jpg a/2.jpg\n0 a/2.jpg b/1.jpg\n",
        'is_same,img_1,img_2\n1,"Ann Lee_0001",Ann Lee_0002\n0,"Ann Lee_0002","Bob_0001"\n',
        "a/1.jpg 1\na/2.jpg 1\na/2.jpg 0\nb/1.jpg 0\n",
        "a/1.jpg 7\na/2.jpg 7\na/2.jpg 0\nb/1.jpg 0\n",
    ],
    ids=[
        "LFW",
        "no counts",
        "LFW spaces",
        "LFW commas",
        "tabs",
        "spaces",
        "commas",
        "header",
        "label first",
        "quotes",
        "CPLFW",
        "CALFW",
    ],
)
def test_pair_lists(tmp_path: Path, text: str) -> None:
    names = ["Ann Lee/Ann Lee_0001", "Ann Lee/Ann Lee_0002", "Bob/Bob_0001"]
    if "Bob_Lee" in text:
        names = [name.replace("Ann Lee", "Bob_Lee") for name in names]
    if "a/1" in text:
        names = ["a/1", "a/2", "b/1"]
    lines = "".join(f"faces/{name}.jpg\t{row // 2}\n" for row, name in enumerate(names))
    table = read_labelpath(written(tmp_path, lines, "DATA.labelpath"))[0]
    (first, second, same), lost = read_pairs(written(tmp_path, text, "pairs.txt"), table)
    assert first.tolist() == [0, 1] and second.tolist() == [1, 2]
    assert same.tolist() == [True, False] and lost == 0


def test_pairs_of_strangers_are_counted(tmp_path: Path, table: ImageList) -> None:
    path = written(tmp_path, "1\t1\nAnn Lee\t1\t2\nAnn Lee\t2\tBob\t1\n", "pairs.txt")
    assert read_pairs(path, table)[1] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "1\t1\nAnn Lee\t1\n", ":2: expected `name TAB i TAB j`"),
        ("p.txt", "a b\n", ":1: expected `image image 0|1`"),
        ("p.txt", "a\tb\t2\n", ":1: expected `image image 0|1`"),
        ("p.txt", "a b\tc d\n", ":1: expected `image image 0|1`"),
        ("p.txt", "a b 1\na b c\n", ":2: expected `image image 0|1`"),
        ("p.txt", "a 1\nb 1\nc 1\n", ": has 3 lines `image 0|1`; two lines make a pair"),
        ("p.txt", "a 11\nb 11\n", ":1: expected `image image 0|1`"),
        ("p.txt", "Ann 1 2\nBob 1 Cy 2\nBob x Cy 2\n", ":3: expected `name TAB i TAB j`"),
        ("p.txt", "a 1\nb 0\n", ":2: the two lines of a pair must have the same label"),
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
