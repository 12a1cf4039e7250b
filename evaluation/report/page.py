"""The report page: faces ordered by score, in one HTML file that needs no network.

The page leads with the answer: how many faces are scored, accepted and not scored. Below it are a
histogram, the model's calibration, photos with several faces, and the faces as small JPEGs, each
linked to its file. They are filtered by score, acceptance and name, typed or as
`report.html#min=40&max=60&order=asc&show=accepted&name=anna`, and can be in groups.
Its Content-Security-Policy allows only its own style and scripts.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset.images import thumbnail
from evaluation.report import sections as section
from evaluation.report.contents import Report, Rows, Scores
from evaluation.report.text import filled, number_text, path_bytes
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.files import replacing
from sdd_fiqa.images import Image
from sdd_fiqa.number import count_of

MAX_PHOTOS = 24  # on a page, those with the most faces; each takes about 40 kB
_SIDE = 480  # pixels, of the longer side of a photo on the page
_LABEL = 14  # pixels, height of the score above a box


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Writes the report page, whole or not at all.

    With more than `max_faces` scored images, the page shows an even sample of the ranks, with the
    lowest and the highest score, or the best of each group; and it says so. Histogram, counts and
    quantiles are always those of all images. Only the paths and the pictures of the rows shown are
    read. The page's folder is made.

    Raises:
        UserError: the page cannot be written.
    """
    groups = report.groups
    if groups is None:
        scored = np.flatnonzero(np.isfinite(report.scores))
        shown = scored[sample_ranks(report.known, report.max_faces)]
    else:
        shown = groups.shown(report.max_faces)
    folder = os.path.dirname(os.path.abspath(path))

    def url_of(row: int) -> str | None:
        target = report.link_path(row)
        return None if target is None else relative_url(target, folder)

    def faces() -> Iterator[dict[str, Any]]:
        group = -1
        for row in tqdm(shown.tolist(), desc="report", unit="face", leave=False):
            heading = []
            if groups is not None and groups.place[row] != group:
                group = int(groups.place[row])
                heading.append(section.group_heading(report, groups, group))
            yield {"heading": heading, **section.face(report, row, url_of(row))}

    template = _template()
    values: dict[str, Any] = {
        **vars(report),
        "policy": _policy(template),
        **section.lead(report, len(shown)),
        "answer": section.answer(report),
        **section.scores(report),
        "calibration": section.calibration(report),
        **photos_with_faces(report, url_of),
        "faces": faces(),
        "lists": [section.lacking(report), section.unscored(report)],
        "data": section.script_data(report, sampled=len(shown) < len(report.known)),
    }
    with replacing(path) as file:
        file.write(filled(template, values))


def sample_ranks(scores: Scores, most: int) -> Rows:
    """Positions of at most `most` >= 2 scores, highest first, evenly spaced over the ranks.

    Equal scores keep their order. The highest and the lowest score are always among them.

    >>> sample_ranks(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), 3)
    array([3, 0, 1])
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) <= most:
        return order
    return order[np.linspace(0, len(order) - 1, most).round().astype(np.intp)]


def relative_url(target: str, folder: str) -> str:
    """The percent-encoded URL of a file, relative to the folder of the page.

    >>> relative_url("/data/faces/a b#c?.jpg", "/data/out")
    '../faces/a%20b%23c%3F.jpg'
    """
    return quote(path_bytes(os.path.relpath(target, folder)), safe="/")


def _template() -> str:
    """The template; a line that ends with a backslash is joined with the next one."""
    file = resources.files("evaluation.report").joinpath("template.html")
    return file.read_text(encoding="utf-8").replace("\\\n", "")


def _policy(template: str) -> str:
    """The security policy, which names the style and the scripts by their hashes.

    Markup in a hostile file name can neither run nor load anything.
    """

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in texts]
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

    return (
        f"default-src 'none'; img-src data:; style-src {hashes('style')}; "
        f"script-src {hashes('script')}; base-uri 'none'; form-action 'none'"
    )


def photos_with_faces(report: Report, url_of: Callable[[int], str | None]) -> dict[str, Any]:
    """The photos with several faces, those with the most first: how many, and a figure of each.

    `url_of`: row -> the address of its photo, or None.
    """
    places = report.places
    if places is None:
        return {"photos": ""}
    several = np.flatnonzero((places.faces > 1) & np.isfinite(report.scores))
    photos, first = np.unique(places.photo[several], return_index=True)
    most = np.argsort(-places.faces[several[first]], kind="stable")
    figures = []
    for i in most[:MAX_PHOTOS].tolist():
        rows = several[places.photo[several] == photos[i]]
        row = int(rows[0])
        try:
            photo = places.read(row)
        except UnreadableImage:
            continue  # it has gone since it was scored
        path, words = places.path(row), count_of(int(places.faces[row]), "face")
        if len(rows) < places.faces[row]:
            words += f", {len(rows)} scored"
        about = {"name": os.path.basename(path) or path, "url": url_of(row), "words": words}
        figures.append(about | _drawing(report, photo, rows, places.boxes))
    words = f"{count_of(len(photos), 'photo')} with several faces"
    if len(figures) < len(photos):
        words += f" ({len(figures)} shown, those with the most faces)"
    return {"photos": words if figures else "", "figures": figures}


def _drawing(
    report: Report, photo: Image, rows: Rows, boxes: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """A photo as a small JPEG, with a box and a score for each face."""
    height, width = photo.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    drawn = []
    for row in rows.tolist():
        x, y, box_width, box_height = (float(value) * scale for value in boxes[row])
        label_y = y - 4 if y >= _LABEL else y + box_height + _LABEL - 2
        sides = {"x": x, "y": y, "box_width": box_width, "box_height": box_height}
        box = {name: f"{value:.1f}" for name, value in (sides | {"label_y": label_y}).items()}
        accepted = report.accepted is None or report.accepted[row]
        box["look"] = "box" if accepted else "box below"
        box["score"] = number_text(report.scores[row], report.decimals)
        drawn.append(box)
    return {
        "width": max(1, round(width * scale)),
        "height": max(1, round(height * scale)),
        "picture": base64.b64encode(thumbnail(photo, _SIDE)).decode("ascii"),
        "boxes": drawn,
    }
