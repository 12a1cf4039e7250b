"""The forms of score files, and the one line that says what is wrong with one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dataset.lists import ImageList, read_labelpath
from dataset.score_files import ScoreForm, open_scores, read_scores
from sdd_fiqa.errors import UserError

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
        (
            "name,score\na,1\n",
            ":1: expected `path TAB score`, or a header that names",
        ),
        (f"path,score\n{PATHS[0]},nan\n", ":2: score nan is not a finite number"),
        (f"path,score\n{PATHS[0]},good\n", ":2: score good is not a finite number"),
        (
            f"path,score\n{PATHS[0]},1\n{PATHS[1]}\n",
            ":3: is not as line 1 .here 1 column.: CSV with the columns path",
        ),
        (f"path,score\n{PATHS[0]},1\n{PATHS[0]},2\n", r"twice, with the scores 1 and 2; keep one"),
        (f"path,score\n{PATHS[0]},1_000\n", ":2: score 1_000 is not a finite number"),
        (f"image;quality\n{PATHS[0]};1\n", "it has: image, quality"),
        (f"path;score\n{PATHS[0]};0,85\n", r":2: score 0,85 is not a finite number; write 0\.85$"),
        (f"{PATHS[0]};-85 %\n", ":1: score -85 % is not a finite number; write -85$"),
        (
            "a.jpg" + 16 * " 1" + "\nb.jpg 1 2\n",
            ":2: is not as line 1 .here 3 columns.: space-separated embeddings of 16 numbers",
        ),
        (
            "a b.jpg" + 16 * " 1" + "\nb c.jpg" + 15 * " 1" + "\n",
            ":2: is not as line 1 .here 17 columns.: space-separated embeddings of 16 numbers",
        ),
        (
            f'path,score,box_x\n"{PATHS[0]}#1",1,9\n"{PATHS[0]}#2",1,9\n',
            "all its photos have several faces; score aligned faces",
        ),
        (
            "".join(f"{name}\t{row // 2}\n" for row, name in enumerate(PATHS)),
            "holds the identities",
        ),
        ('path,score\n"a\tb",1\n', ":2: has no path that fits a line"),
        ('path,score\n"a"b,1\n', ":2: is not CSV"),
        ("path,score\nx/y.jpg,1\n", "none of its paths is in"),
        (f"{PATHS[0]}\tnan\n", ":1: the score is not a finite number"),
        (f"{PATHS[0]}\t1\n{PATHS[0]}\t2\n", r"listed twice, with the scores 1 and 2; keep one$"),
        (f"{PATHS[0]},0,85\n", r"several numbers .* --score-column 2 \(here 0\) or 3 \(here 85\)$"),
        (f"{PATHS[0]}\t0\t85\n", "1: has several numbers and no header"),
        ("my photo.jpg 0 85\n", r"--score-column 3 \(here 0\) or 4 \(here 85\)$"),
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


def test_scores_without_a_list(tmp_path: Path) -> None:
    text = 'path,score,status\n"b,c/1.jpg",2.5,ok\na.jpg,,no\n'
    scored, _ = open_scores(written(tmp_path, text))
    assert list(scored.paths()) == ["b,c/1.jpg", "a.jpg"]
    np.testing.assert_array_equal(scored.values, [2.5, np.nan])


VECTOR = [f"{value:.4f}" for value in np.random.default_rng(0).normal(size=20)]
NORM = float(np.linalg.norm(np.array(VECTOR, float)))


@pytest.mark.parametrize(
    ("text", "form", "words"),
    [
        ("image;quality\n{0};1.5\n{1};-20\n", "image quality", "`;`-separated with the columns"),
        ("quality\timage\n1.5\t{0}\n-20\t{1}\n", "image quality", "columns image and quality"),
        ("path\tscore\n{0}\t1.5\n{1}\t-20\n", "", "TAB-separated with the columns path and score"),
        ("path score\n{0} 1.5\n{1} -20\n", "", "space-separated with the columns path and score"),
        ("path score ok\n{0} 1.5 1\n{1} -20 1\n", "", "space-separated with the columns path and"),
        ('path, score\n"{0}", 1.5\n"{1}", -20\n', "", "CSV with the columns path and score"),
        (
            "{0},1.5,ok\n{1},-20,ok\n",
            "",
            "CSV without a header: path in column 1, score in",
        ),
        ("{0};1.5\n{1};-20\n", "", "`;`-separated without a header"),
        ("ok,1.5,{0}\nok,-20,{1}\n", "3 2", "CSV without a header: path in column 3, score in"),
        ("{0} 1.5\n{1} -20\n", "", "space-separated without a header"),
    ],
)
def test_other_peoples_forms(
    tmp_path: Path, table: ImageList, text: str, form: str, words: str
) -> None:
    path = written(tmp_path, text.format(PATHS[0], PATHS[1]))
    path_column, _, score_column = form.partition(" ")
    named = ScoreForm(score_column, path_column) if form else ScoreForm()
    found = read_scores(path, table, named)
    np.testing.assert_array_equal(found.values, [1.5, -20, np.nan])
    assert words in found.form
    if form and not form[0].isdigit():  # without the flags, the message names them, and they work
        with pytest.raises(UserError, match="--path-column and --score-column name") as error:
            read_scores(path, table)
        assert form.split()[0] in str(error.value) and form.split()[1] in str(error.value)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ";"])
def test_the_score_of_an_embedding_is_its_norm(
    tmp_path: Path, table: ImageList, separator: str
) -> None:
    lines = [separator.join([path, *VECTOR]) for path in PATHS[:2]]
    found = read_scores(written(tmp_path, "\n".join(lines)), table)
    np.testing.assert_allclose(found.values, np.array([NORM, NORM, np.nan]))
    assert "embeddings of 20 numbers: the score is the norm" in found.form


def test_a_path_with_one_score_twice_is_taken_once(tmp_path: Path, table: ImageList) -> None:
    text = f"path,score\n{PATHS[0]},63.1234\n{PATHS[1]},5\n{PATHS[0]},63.1239\n{PATHS[1]},5\n"
    found = read_scores(written(tmp_path, text), table)
    np.testing.assert_array_equal(found.values, [63.1234, 5, np.nan])
    small = f"path,score\n{PATHS[0]},.0001\n{PATHS[1]},.0005\n{PATHS[0]},.0002\n"
    with pytest.raises(UserError, match=r"listed twice, with the scores 0\.0001 and 0\.0002"):
        read_scores(written(tmp_path, small), table)


def test_lower_is_better_turns_the_scores(tmp_path: Path, table: ImageList) -> None:
    path = written(tmp_path, f"{PATHS[0]}\t1.5\n{PATHS[1]}\t-2\n")
    found = read_scores(path, table, ScoreForm(lower_is_better=True))
    np.testing.assert_array_equal(found.values, [-1.5, 2, np.nan])
    assert found.form.endswith("; lower is better")


def test_a_path_from_the_current_folder_is_the_same(tmp_path: Path, table: ImageList) -> None:
    found = read_scores(written(tmp_path, f"path,score\n./{PATHS[0]},1.5\n"), table)
    np.testing.assert_array_equal(found.values, [1.5, np.nan, np.nan])


def test_of_all_faces_a_photo_with_one_face_is_that_face(tmp_path: Path, table: ImageList) -> None:
    rows = [(f"{PATHS[1]}#1", 8), (f"{PATHS[0]}#1", 7), (f"{PATHS[1]}#2", 9), (PATHS[2], "")]
    lines = [f'"{path}",{score},ok,1.0' for path, score in rows]
    path = written(tmp_path, "path,score,status,box_x\n" + "\n".join(lines))
    found = read_scores(path, table)
    np.testing.assert_array_equal(found.values, [7, np.nan, np.nan])
    assert found.form.endswith("; left out: 1 photo with several faces")
