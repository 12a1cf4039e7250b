"""Report pages for the tests: written from made-up faces, and read as a browser parses them."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.report.contents import Report
from evaluation.report.page import write_report

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
    path_of = options.get("path_of", lambda row: f"faces/{row}.jpg")
    usual: dict[str, Any] = {
        "path_of": path_of,
        "link_path": path_of,
        "statuses": ["no face" if np.isnan(score) else "ok" for score in scores],
        "model_name": "R_50",
        "command": "eval.py faces",
        "made": datetime(2026, 3, 7, 9, 5),
        "thumbnail": jpeg,
        "accept": 0.95,
    }
    write_report(page, Report(scores=scores, **(usual | options)))
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
    """What a page holds: its faces, every tag and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faces: list[Face] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        tags = ("style", "script", "dd", "td", "th")
        self.blocks: dict[str, list[str]] = {tag: [] for tag in tags}
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


def bar_counts(words: str) -> list[int]:
    counts = re.findall(r": ([\d,]+) images? \(", words)
    return [int(count.replace(",", "")) for count in counts]
