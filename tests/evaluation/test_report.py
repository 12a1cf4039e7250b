"""The report page: what it says and escapes, and what it refuses."""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import numpy as np
import pytest

from dataset.lists import read_table
from evaluation.report.page import relative_url
from evaluation.report.sections import MAX_UNSCORED
from report_pages import CALIBRATION, HOSTILE, Page, jpeg, read, write


def test_faces_stand_by_score_with_the_score_and_the_model(tmp_path: Path) -> None:
    scores = [40.0, 71.26, np.nan, -3.04, 40.0, 99.99]
    page = read(write(tmp_path / "out" / "report.html", scores))
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
    assert "6 images, scored by R_50 . 1 image got no score" in page.words
    assert "faces/2.jpg no face" in page.words
    assert page.blocks["dd"] == ["5", "49.6", "-3.0", "5.6", "40.0", "94.2", "100.0"]


def test_nothing_comes_from_outside_and_only_the_own_script_may_run(tmp_path: Path) -> None:
    text = write(tmp_path / "r.html", [1, 50, 99], calibration=CALIBRATION).read_text("utf-8")
    page = Page(text)
    policy = next(values["content"] for tag, values in page.tags if values.get("http-equiv", ""))
    for name in ("style", "script"):
        block = page.blocks[name][-1].encode()
        digest = base64.b64encode(hashlib.sha256(block).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
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
        notes=["<script>note</script>"],
    )
    page = read(where)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 and tags.count("img") == len(paths) == len(page.faces)
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
    assert "<script>note</script>" in page.words


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
    assert "No image got a score." in page.words
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
    assert "2 faces, scored by" in page.words
    assert page.faces[0].title.endswith("score 65.596")  # floored, as the filter has it


def test_a_calibration_without_embeddings_has_no_column_of_errors(tmp_path: Path) -> None:
    marks = [{"discard": 0.05, "score": 25.0}, {"discard": 0.2, "score": 40.0}]
    page = read(write(tmp_path / "r.html", [10, 30], calibration={"thresholds": marks}))
    assert page.blocks["td"] == ["5 %", "", "1 (50 %)", "20 %", "", "2 (100 %)"]
    assert page.blocks["th"] == ["Left out", "Threshold", "Below it here"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statuses": ["ok"]}, "scores and statuses must be of one length, got (2,) and 1"),
        ({"thumbnail": lambda row: b"\x89PNG"}, "must be JPEG bytes or None, got b'\\x89PNG'"),
        ({"calibration": {}}, "`thresholds` must be a list, got None"),
        (
            {"calibration": {"thresholds": [{"discard": 5, "score": 1}]}},
            "discard: share in 0..1",
        ),
        ({"calibration": {"thresholds": [7]}}, "a threshold must be"),
        (
            {"calibration": {"thresholds": [{"discard": 0.5, "score": "<script>"}]}},
            "a threshold must be",
        ),
        (
            {"calibration": {"thresholds": [], "percentiles": [1, 0] * 50 + [2]}},
            "`percentiles` must be 101 rising scores",
        ),
        ({"calibration": {"thresholds": [], "fmr": "<b>"}}, "`fmr` must be a number, got '<b>'"),
    ],
)
def test_wrong_use_is_named_and_nothing_is_overwritten(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text("before")
    with pytest.raises(ValueError, match=re.escape(message)):
        write(page, [1, 2], **options)
    assert page.read_text() == "before" and os.listdir(tmp_path) == ["report.html"]


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
