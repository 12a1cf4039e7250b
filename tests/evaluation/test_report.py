"""The report page: what it says and escapes, and what it refuses."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.lists import read_table
from evaluation.report.contents import FacePlaces, Groups
from evaluation.report.page import relative_url
from evaluation.report.sections import MAX_UNSCORED
from report_pages import CALIBRATION, HOSTILE, Page, jpeg, read, write
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Image


def test_faces_stand_by_score_with_the_score_and_the_model(tmp_path: Path) -> None:
    scores = [40.0, 71.26, np.nan, -3.04, 40.0, 99.99]
    made = datetime(2026, 3, 7, 9, 5)
    page = read(
        write(
            tmp_path / "out" / "report.html",
            scores,
            made=made,
            model_about="a <small> model",
            command="eval.py <faces> --report 'a b.html'",
        )
    )
    assert [face.text for face in page.faces] == [
        ["100.0", "5.jpg"],
        ["71.3", "1.jpg"],
        ["40.0", "0.jpg"],
        ["40.0", "4.jpg"],  # equal scores keep their order
        ["-3.0", "3.jpg"],
    ]
    for face, row in zip(page.faces, [5, 1, 0, 4, 3], strict=True):
        assert face.src == f"data:image/jpeg;base64,{base64.b64encode(jpeg(row)).decode()}"
        assert face.alt == f"Face {row}.jpg"
        assert face.title.startswith(f"faces/{row}.jpg\nscore ")
    assert "Scored by R_50 , a <small> model, on 7 March 2026 at 09:05." in page.words
    assert "Made by eval.py <faces> --report 'a b.html'" in page.words
    assert "Scored 5 of 6 images Not scored 1 no face: 1. List" in page.words
    assert "faces/2.jpg no face" in page.words
    # Few scores have no quantiles: lowest, median, mean, highest.
    assert page.blocks["dd"][-4:] == ["-3.0", "40.0", "49.6", "100.0"]


def test_nothing_comes_from_outside_and_only_the_own_script_may_run(tmp_path: Path) -> None:
    text = write(tmp_path / "r.html", [1, 50, 99], calibration=CALIBRATION).read_text("utf-8")
    page = Page(text)
    policy = next(values["content"] for tag, values in page.tags if values.get("http-equiv", ""))
    own = [*page.blocks["style"], page.blocks["script"][0], page.blocks["script"][2]]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in own]
    assert re.findall("'sha256-(.+?)'", policy) == digests
    assert policy.count("-src ") == 4 and "; style-src 'sha256" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for _, values in page.tags:
        assert not {"onclick", "onload", "onerror", "style", "srcset", "action"} & set(values)
        assert (
            values.get("src", "data:").startswith("data:image/jpeg;base64,") or "src" not in values
        )
        assert not urlsplit(values.get("href", "")).scheme
    assert "://" not in text and "url(" not in text and "@import" not in text


@pytest.mark.parametrize("folder", ["", "out", "../elsewhere/a b"])
def test_hostile_names_stay_names_and_their_links_lead_to_the_file(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "faces").mkdir(parents=True)
    paths = [f"faces/{name}" for name in HOSTILE]
    for number, path in enumerate(paths):
        (root / path).write_text(str(number))
    monkeypatch.chdir(root)
    scores = np.arange(len(paths), 0, -1.0)
    where = Path(os.path.normpath(root / folder)) / "report.html"
    statuses = ["ok"] * len(paths) + ["<b>why</b>"] * len(paths)
    write(
        where,
        np.concatenate([scores, np.full(len(paths), np.nan)]),
        path_of=(paths * 2).__getitem__,
        statuses=statuses,
        model_name="<script>x</script>",
    )
    page = read(where)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 3 and tags.count("img") == len(paths) == len(page.faces)
    assert all("onerror" not in values for _, values in page.tags)
    for number, (face, name) in enumerate(zip(page.faces, HOSTILE, strict=True)):
        assert face.href is not None
        address = urljoin(f"file://{where.parent}/report.html".replace(" ", "%20"), face.href)
        parts = urlsplit(address)
        assert not parts.query and not parts.fragment
        with open(unquote_to_bytes(parts.path), "rb") as file:
            assert file.read() == str(number).encode()
        whole = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        whole = re.sub("[\n\t\u202e]", "\ufffd", whole)
        assert "".join(face.text[1:]) == whole and face.alt == f"Face {whole}"
        assert face.title.split("\n")[0] == f"faces/{whole}"
        assert f"faces/{whole} <b>why</b>" in page.words


def test_links_can_be_left_out_or_lead_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos: Callable[[int], str | None] = ["in/photo.jpg", None].__getitem__
    page = read(
        write(
            tmp_path / "r.html",
            [2, 1],
            path_of=["photo.jpg#0", "train.rec:7"].__getitem__,
            link_path=photos,
        )
    )
    assert [face.href for face in page.faces] == ["in/photo.jpg", None]
    assert ["".join(face.text[1:]) for face in page.faces] == ["photo.jpg#0", "train.rec:7"]


def test_absolute_paths_are_linked_relative_to_the_page() -> None:
    assert relative_url("/a/b/c.jpg", "/a/x") == "../b/c.jpg"
    assert relative_url("/a/p:q.jpg", "/a") == "p%3Aq.jpg"  # no scheme


def test_the_paths_of_a_table_on_disk_are_read_where_shown(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"a/{row}.jpg\t{row}\n" for row in range(50)))
    page = read(write(tmp_path / "r.html", range(50), path_of=read_table(listed).path, max_faces=3))
    assert [face.text[-1] for face in page.faces] == ["49.jpg", "25.jpg", "0.jpg"]


def test_a_face_without_a_picture_keeps_its_place(tmp_path: Path) -> None:
    page = read(write(tmp_path / "r.html", [30, 20], thumbnail=[None, jpeg(1)].__getitem__))
    assert page.faces[0].text == ["no picture", "30.0", "0.jpg"]
    assert page.faces[0].src == "" and page.faces[1].src


@pytest.mark.parametrize("scores", [[], [np.nan, np.nan]])
def test_no_score_at_all_is_said(tmp_path: Path, scores: list[float]) -> None:
    page = read(write(tmp_path / "r.html", scores, calibration=CALIBRATION))
    assert "Scored 0 no image got a score" in page.words
    assert page.faces == [] and not any(tag == "svg" for tag, _ in page.tags)


def test_unscored_images_are_counted_by_reason_and_listed_up_to_a_limit(tmp_path: Path) -> None:
    count = MAX_UNSCORED + 50
    statuses = ["ok"] + ["no face" if row % 5 else "is empty (0 bytes)" for row in range(count)]
    page = read(write(tmp_path / "r.html", [50, *[np.nan] * count], statuses=statuses))
    assert f"{count} images without a score" in page.words
    assert "no face: 200, is empty (0 bytes): 50" in page.words
    assert "and 50 more" in page.words
    assert f"faces/{MAX_UNSCORED}.jpg" in page.words
    assert f"faces/{MAX_UNSCORED + 1}.jpg" not in page.words


def test_infinity_is_no_score(tmp_path: Path) -> None:
    page = read(write(tmp_path / "r.html", [np.inf, 11.0, -np.inf]))
    assert [face.text[0] for face in page.faces] == ["11.0"]


def test_calibration_is_listed_and_drawn(tmp_path: Path) -> None:
    text = write(tmp_path / "r.html", [10, 30, 45.04, 90], calibration=CALIBRATION).read_text(
        "utf-8"
    )
    page = Page(text)
    assert page.blocks["td"] == ["5 %", "", "1.25 %", "1 (25 %)", "20 %", "", "", "2 (50 %)"]
    hrefs = [values["href"] for tag, values in page.tags if tag == "a"]
    assert hrefs[:2] == ["#min=25.000", "#min=40.250"]
    assert "2,311 faces" in page.words and "FNMR left at FMR 0.001" in page.words
    lines = [values for tag, values in page.tags if values.get("class") == "mark"]
    assert len(lines) == 2
    assert page.faces[1].title.endswith("higher than 45 % of the calibration faces")
    assert "Calibration" not in read(write(tmp_path / "r.html", [10, 30])).words
    assert "Dashed" in page.words
    assert "Dashed" not in read(write(tmp_path / "r.html", [1e6], calibration=CALIBRATION)).words


def test_the_words_say_what_a_row_is(tmp_path: Path) -> None:
    page = read(write(tmp_path / "r.html", [65.5969, 10.0], kind="face"))
    assert "Scored 2 faces" in page.words
    assert page.faces[0].title.endswith("score 65.596")  # floored, as the filter has it


def test_a_calibration_without_embeddings_has_no_column_of_errors(tmp_path: Path) -> None:
    marks = [{"discard": 0.05, "score": 25.0}, {"discard": 0.2, "score": 40.0}]
    page = read(
        write(tmp_path / "r.html", [10, 30], calibration={**CALIBRATION, "thresholds": marks})
    )
    assert page.blocks["td"] == ["5 %", "", "1 (50 %)", "20 %", "", "2 (100 %)"]
    assert page.blocks["th"] == ["Left out", "Threshold", "Below it here"]
    assert "FMR the false match rate" not in page.words


def test_a_page_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", [1, 2, 3])
    before = page.read_bytes()

    def thumbnail(row: int) -> bytes:
        if row == 1:
            raise RuntimeError("stop")
        return jpeg(row)

    with pytest.raises(RuntimeError, match="stop"):
        write(page, [1, 2, 3], thumbnail=thumbnail)
    assert page.read_bytes() == before and os.listdir(tmp_path) == ["report.html"]


def test_the_same_scores_give_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.html", [1, 2, 3], calibration=CALIBRATION).read_bytes()
    assert write(tmp_path / "b.html", [1, 2, 3], calibration=CALIBRATION).read_bytes() == first


def test_the_accepted_faces_are_counted_and_the_others_marked(tmp_path: Path) -> None:
    scores = [10.0, 29.99996, np.nan, 29.9999, 90.0]  # rounded to four decimals, as in scores.csv
    options: dict[str, Any] = {"threshold": 30.0, "calibration": CALIBRATION}
    page = read(write(tmp_path / "r.html", scores, **options))
    assert (
        "Accepted 2 50 %: score 30 or higher, as 95 % of the calibration faces have "
        "Not accepted 2 a lower score Scored 4 of 5 images Not scored 1" in page.words
    )
    marked = [values for tag, values in page.tags if tag == "li" and "data-t" in values]
    assert [values.get("class") for values in marked] == [None, None, "below", "below"]
    assert page.faces[2].title.endswith("not accepted") and "too low" in page.faces[2].text
    classes = [values.get("class") for _, values in page.tags]
    assert "cut" in classes and "bar below" in classes and "bar" in classes
    assert json.loads(page.blocks["script"][1])["preset"] == "accepted"

    page = read(write(tmp_path / "r.html", [1, 2], **options))  # nobody wants to see an empty page
    assert json.loads(page.blocks["script"][1])["preset"] == "all"


@pytest.mark.parametrize(("score", "verdict"), [(65.0, "yes"), (20.0, "no")])
def test_one_image_gets_its_score_and_a_verdict(tmp_path: Path, score: float, verdict: str) -> None:
    page = read(write(tmp_path / "r.html", [score], threshold=30, calibration=CALIBRATION))
    told = f"Score {score} higher than {score:.0f} % of the calibration faces Accepted {verdict}"
    assert told in page.words
    assert not any(tag in ("svg", "input", "select") for tag, _ in page.tags)


def test_every_word_of_the_calibration_is_explained(tmp_path: Path) -> None:
    page = read(write(tmp_path / "r.html", [10, 30], calibration=CALIBRATION))
    words = page.words.split("What the words mean")[1]
    for column in page.blocks["th"]:
        assert column.split(" at ")[0] in words
    assert "FMR the false match rate" in words


def test_groups_stand_by_their_best_face_and_those_without_one_are_named(tmp_path: Path) -> None:
    groups = ["<b>", "anna", "anna", "empty", "<b>", "low", ""]
    scores = [50.0, 10.0, 95.0, np.nan, 70.0, 20.0, 60.0]
    page = read(write(tmp_path / "r.html", scores, group_names=groups, threshold=30.0))
    assert [face.text[-1] for face in page.faces] == [f"{row}.jpg" for row in (2, 1, 4, 0, 6, 5)]
    for words in (
        "anna best 95.0, 2 faces, 1 accepted",
        "<b> best 70.0, 2 faces, 2 accepted",
        "no folder best 60.0, 1 face, 1 accepted",
        "low best 20.0, 1 face, none accepted",
        "Folders 2 with an accepted face; 2 without. List",
        "2 folders without an accepted face low best 20.0 empty no score",
    ):
        assert words in page.words
    page = read(write(tmp_path / "r.html", scores, group_names=groups, group_word="track"))
    assert "1 track without a score empty no score" in page.words


@given(
    faces=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 20)), max_size=40),
    most=st.integers(1, 45),
)
def test_a_page_that_cannot_show_all_shows_the_best_of_every_group(
    faces: list[tuple[str, int]], most: int
) -> None:
    names = [name for name, _ in faces]
    scores = np.array([np.nan if score == 0 else score for _, score in faces], np.float64)
    groups = Groups(names, scores, None)
    shown = groups.shown(most).tolist()
    known = [row for row in range(len(faces)) if scores[row] == scores[row]]
    assert len(shown) == len(set(shown)) == min(most, len(known)) and set(shown) <= set(known)
    depth = {
        row: sum(
            names[other] == names[row] and (-scores[other], other) < (-scores[row], row)
            for other in known
        )
        for row in known
    }
    left = set(known) - set(shown)
    if left:
        chosen = max((depth[row], -scores[row]) for row in shown)
        assert chosen <= min((depth[row], -scores[row]) for row in left)
    best = [max(scores[row] for row in known if names[row] == names[face]) for face in shown]
    assert best == sorted(best, reverse=True)
    for before, after in pairwise(shown):
        assert names[before] != names[after] or scores[before] >= scores[after]


def test_photos_with_several_faces_have_a_box_for_each_that_is_scored(tmp_path: Path) -> None:
    def photo(row: int) -> Image:
        if row == 5:
            raise UnreadableImage("is gone")
        return np.zeros((600, 960, 3), np.uint8)

    boxes = np.array([[100, 20, 80, 100], [500, 200, 40, 40], *[[0, 0, 9, 9]] * 4], np.float32)
    boxes[3] = np.nan
    places = FacePlaces(
        photo=np.array([7, 7, 8, 9, 2, 3]),
        faces=np.array([2, 2, 1, 0, 5, 2], np.float32),
        boxes=boxes,
        path=["p/<i>.jpg", "p/<i>.jpg", "b.jpg", "c.jpg", "d.jpg", "gone.jpg"].__getitem__,
        read=photo,
    )
    scores = [80.0, 20.0, 60.0, np.nan, 50.0, 40.0]
    page = read(write(tmp_path / "r.html", scores, places=places, threshold=30.0, kind="face"))
    assert "3 photos with several faces (2 shown, those with the most faces)" in page.words
    assert "50.0 d.jpg 5 faces, 1 scored 80.0 20.0 <i>.jpg 2 faces" in page.words
    frames = [values["viewbox"] for tag, values in page.tags if "viewbox" in values]
    assert frames == ["0 0 480 300"] * 2
    looks = [values["class"] for tag, values in page.tags if tag == "g"]
    assert looks == ["box", "box", "box below"]
    drawn = [values for tag, values in page.tags if tag == "rect" and "class" not in values]
    sides = ("x", "y", "width", "height")
    assert [[float(values[side]) for side in sides] for values in drawn[1:]] == [
        [50, 10, 40, 50],
        [250, 100, 20, 20],
    ]
    lone = FacePlaces(places.photo, np.ones(6, np.float32), boxes, places.path, photo)
    assert "several faces" not in read(write(tmp_path / "r.html", scores, places=lone)).words
