"""The report page: what it says, escapes and samples; and what a browser makes of it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.lists import read_table
from evaluation.histogram import Mark, decimals_for, histogram_svg, ticks_of
from evaluation.report import relative_url, sample_ranks, write_report
from evaluation.report_sections import MAX_UNSCORED

HOSTILE = [
    '"><script>alert(1)<\\script>.jpg',
    "a b#c?.jpg",
    "100%25 & 'quoted' \"twice\".jpg",
    "Zo\u00eb \u674e\u96f7 \U0001f600.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    "&amp;{{faces}}{{data}}.jpg",
    "javascript:alert(1).jpg",
    "new\nline\ttab.jpg",
    "right\u202eto-left.jpg",
    "not utf-8 \udcff\udce4.jpg",
    "x" * 200 + ".jpg",
]
CALIBRATION = {
    "thresholds": [
        {"discard": 0.05, "score": 25.0, "fnmr": 0.0125},
        {"discard": 0.2, "score": 40.25, "fnmr": None},
    ],
    "percentiles": [float(i) for i in range(101)],
    "faces": 2311,
    "fmr": 1e-3,
}


def jpeg(row: int) -> bytes:
    pixels = np.full((16, 16, 3), row % 251, np.uint8)
    return bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


def write(page: Path, scores: Any, **options: Any) -> Path:
    scores = np.asarray(scores, np.float64)
    usual: dict[str, Any] = {
        "paths": [f"faces/{row}.jpg" for row in range(len(scores))],
        "statuses": ["no face" if np.isnan(score) else "ok" for score in scores],
        "model_name": "R_50",
        "thumbnail": jpeg,
    }
    write_report(page, scores=scores, **(usual | options))
    return page


@dataclass
class Face:
    tick: int
    hidden: bool
    href: str | None = None
    title: str = ""
    alt: str = ""
    src: str = ""
    text: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """What stands on a page: its faces, every tag and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faces: list[Face] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.blocks: dict[str, list[str]] = {"style": [], "script": [], "dd": [], "td": []}
        self.words = ""
        self._open: list[str] = []
        self._inside = False
        self.feed(text)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)
        if tag in self.blocks:
            self.blocks[tag].append("")
        if tag == "li" and "data-t" in values:
            self.faces.append(Face(int(values["data-t"]), "hidden" in values))
            self._inside = True
        elif self._inside:
            face = self.faces[-1]
            if tag == "a":
                face.href = values["href"]
            if "title" in values:
                face.title = values["title"]
            if tag == "img":
                face.alt, face.src = values["alt"], values["src"]

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()
        if tag == "li":
            self._inside = False

    def handle_data(self, data: str) -> None:
        inner = self._open[-1] if self._open else ""
        if inner in self.blocks:
            self.blocks[inner][-1] += data
        if inner not in ("style", "script"):
            self.words += data + " "
        if self._inside:
            self.faces[-1].text.append(data)


def read(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


# What the page says


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
    tmp_path: Path, folder: str
) -> None:
    root = tmp_path / "root"
    (root / "faces").mkdir(parents=True)
    paths = [f"faces/{name}" for name in HOSTILE]
    for number, path in enumerate(paths):
        (root / path).write_text(str(number))
    scores = np.arange(len(paths), 0, -1.0)
    where = Path(os.path.normpath(root / folder)) / "report.html"
    statuses = ["ok"] * len(paths) + ["<b>why</b>"] * len(paths)
    write(
        where,
        np.concatenate([scores, np.full(len(paths), np.nan)]),
        paths=paths * 2,
        statuses=statuses,
        model_name="<script>x</script>",
        notes=["<script>note</script>"],
        links=root,
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
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        shown = re.sub("[\n\t\u202e]", "\ufffd", shown)
        assert face.text[-1] == shown and face.alt == f"Face {shown}"
        assert face.title.split("\n")[0] == f"faces/{shown}"
        assert f"faces/{shown} <b>why</b>" in page.words
    assert "<script>note</script>" in page.words


def test_links_can_be_left_out_or_lead_elsewhere(tmp_path: Path) -> None:
    assert [face.href for face in read(write(tmp_path / "r.html", [1, 2], links=None)).faces] == [
        None,
        None,
    ]
    photos: Callable[[int], str | None] = ["photo.jpg", None].__getitem__
    page = read(
        write(
            tmp_path / "r.html",
            [2, 1],
            paths=["photo.jpg#0", "train.rec:7"],
            links=tmp_path / "in",
            link_path=photos,
        )
    )
    assert [face.href for face in page.faces] == ["in/photo.jpg", None]
    assert [face.text[-1] for face in page.faces] == ["photo.jpg#0", "train.rec:7"]


def test_absolute_paths_are_linked_relative_to_the_page() -> None:
    assert relative_url("/a/b/c.jpg", "/ignored", "/a/x") == "../b/c.jpg"
    assert relative_url("p:q.jpg", "/a", "/a") == "p%3Aq.jpg"  # no scheme


def test_the_paths_of_a_table_on_disk_are_read_where_shown(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"a/{row}.jpg\t{row}\n" for row in range(50)))
    page = read(write(tmp_path / "r.html", range(50), paths=read_table(listed), max_faces=3))
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
    assert page.faces[1].title.endswith("better than 45 % of the calibration faces")
    assert "Calibration" not in read(write(tmp_path / "r.html", [10, 30])).words


# Sampling


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), most=st.integers(2, 50))
def test_a_sample_is_even_over_the_ranks_with_both_ends(scores: list[float], most: int) -> None:
    array = np.array(scores)
    chosen = sample_ranks(array, most)
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    ranks = np.array([order.index(row) for row in chosen])
    assert len(chosen) == min(most, len(scores))
    assert ranks[0] == 0 and ranks[-1] == len(scores) - 1
    gaps = np.diff(ranks)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_above_the_limit_the_page_shows_a_sample_and_counts_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 15, 100_000)
    asked: list[int] = []
    named: list[int] = []

    def thumbnail(row: int) -> bytes:
        asked.append(row)
        return jpeg(row)

    def path(row: int) -> str:
        named.append(row)
        return f"{row}.jpg"

    page = read(write(tmp_path / "r.html", scores, paths=path, thumbnail=thumbnail, max_faces=100))
    order = np.argsort(-scores)
    assert len(page.faces) == len(asked) == len(named) == 100
    assert asked[0] == order[0] and asked[-1] == order[-1]
    assert "shows 100 of the 100,000 scored faces: an even sample across the scores" in page.words
    data = json.loads(page.blocks["script"][0])
    assert data["sampled"] and sum(data["counts"]) == 100_000
    assert sum(bar_counts(page)) == 100_000
    assert page.blocks["dd"][1] == f"{scores.mean():.1f}"


# The histogram


def bar_counts(page: Page) -> list[int]:
    counts = re.findall(r": ([\d,]+) images? \(", page.words)
    return [int(count.replace(",", "")) for count in counts]


@given(
    scores=st.lists(
        st.one_of(st.floats(-10, 110), st.floats(-1e12, 1e12), st.integers(0, 100)),
        min_size=1,
        max_size=300,
    ),
    mark=st.floats(-1e3, 1e3),
)
def test_every_score_is_in_one_bar(scores: list[float], mark: float) -> None:
    decimals = decimals_for(np.array(scores))
    ticks = ticks_of(np.array(scores), decimals)
    page = Page(histogram_svg(ticks, decimals, [Mark(mark, "<5 %>")]))
    ranges = [
        (int(values["data-low"]), int(values["data-high"]))
        for _, values in page.tags
        if "data-low" in values
    ]
    assert 1 <= len(ranges) <= 60
    assert bar_counts(page) == [int(np.sum((ticks >= a) & (ticks <= b))) for a, b in ranges]
    assert sum(bar_counts(page)) == len(scores)
    assert all(before[1] + 1 == after[0] for before, after in pairwise(ranges))
    for _, values in page.tags:
        for name in ("x", "x1", "width"):
            if values.get(name, "").endswith("%"):
                assert -1e-9 <= float(values[name][:-1]) <= 100


def test_one_score_far_off_does_not_flatten_the_rest() -> None:
    scores = np.append(np.random.default_rng(0).normal(50, 10, 5000), 1e7)
    decimals = decimals_for(scores)
    counts = bar_counts(Page(histogram_svg(ticks_of(scores, decimals), decimals)))
    assert decimals == 1 and sum(count > 0 for count in counts) > 20


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [(0, 100, 1), (30, 45, 1), (0, 1, 3), (0, 5000, 0), (63, 63, 1), (36, 37, 2), (0, 0, 1)],
)
def test_scores_are_shown_as_finely_as_they_differ(low: float, high: float, decimals: int) -> None:
    assert decimals_for(np.linspace(low, high, 1000)) == decimals


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statuses": ["ok"]}, "scores and statuses must be of one length, got (2,) and 1"),
        ({"paths": ["a"]}, "paths must be as many as scores, 2, got 1"),
        ({"max_faces": 1}, "max_faces must be at least 2, got 1"),
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


# In a browser

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def browse(page: Path, fragment: str = "") -> tuple[Page, list[str]]:
    """The page as the browser leaves it after its script ran, and the lines on its console."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={page.parent / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", "--dump-dom", f"{page.as_uri()}{fragment}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Page(ran.stdout), console


@needs_browser
def test_in_a_browser_the_filter_keeps_the_range_and_the_console_is_silent(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.uniform(0, 100, 400), [40.0, 60.0, 39.96, 60.04]])
    paths = [f"{row} {HOSTILE[row % len(HOSTILE)]}" for row in range(len(scores))]
    page = write(tmp_path / "report.html", scores, paths=paths, calibration=CALIBRATION)
    shown = np.round(scores, 1)

    seen, console = browse(page)
    assert console == []
    assert len(seen.faces) == 404 and not any(face.hidden for face in seen.faces)
    assert " 404 faces " in seen.words

    seen, console = browse(page, "#min=40&max=60&order=asc")
    assert console == []
    kept = [float(face.text[0]) for face in seen.faces if not face.hidden]
    assert kept == sorted(shown[(shown >= 40) & (shown <= 60)].tolist())
    assert f"{len(kept)} of 404 faces" in seen.words
    dark = [values for _, values in seen.tags if values.get("class") == "bar off"]
    assert 0 < len(dark) < len(bar_counts(seen))

    seen, console = browse(page, "#min=39.961")  # finer than what is shown: taken exactly
    assert console == []
    assert sum(not face.hidden for face in seen.faces) == np.sum(np.round(scores, 3) >= 39.961)
    assert np.sum(scores >= 39.961) < np.sum(shown >= 40.0)

    seen, console = browse(page, "#min=200")
    assert console == [] and all(face.hidden for face in seen.faces)
    assert "0 of 404 faces" in seen.words


@needs_browser
def test_in_a_browser_a_sample_says_how_many_of_all_are_in_the_range(tmp_path: Path) -> None:
    scores = np.random.default_rng(2).normal(50, 15, 20_000)
    page = write(tmp_path / "report.html", scores, max_faces=200)
    seen, console = browse(page, "#min=62.5")
    kept = sum(not face.hidden for face in seen.faces)
    inside = int(np.sum(np.round(scores, 1) >= 62.5))
    assert console == [] and 0 < kept < 200
    assert f"{kept} of the 200 sampled faces; {inside:,} of all 20,000 scores" in seen.words


@needs_browser
def test_in_a_browser_a_script_that_is_not_the_pages_own_is_refused(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", [1, 2])
    text = page.read_text("utf-8")
    smuggled = "<script>document.title = 'taken'</script></main>"
    page.write_text(text.replace("</main>", smuggled), "utf-8")
    seen, console = browse(page)
    assert "taken" not in seen.words
    assert any("Content Security Policy" in line for line in console)  # so the console is heard
