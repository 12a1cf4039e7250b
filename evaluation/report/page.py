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
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset.images import thumbnail
from evaluation.report import sections as section
from evaluation.report.contents import Report
from evaluation.report.text import html_text, number_text, path_bytes
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
    quantiles are always those of all images. Only the paths of the rows shown are read, and one
    thumbnail is in memory at a time. The page's folder is made.

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

    sections = {
        "title": html_text(f"Face image quality: {report.model_name}"),
        "lead": section.lead(report, len(shown)),
        "answer": section.answer(report),
        "panels": section.panels(report),
        "photos": photo_section(report, url_of),
        "tools": section.filter_tools(report),
        "lacking": section.lacking_section(report),
        "unscored": section.unscored_section(report),
        "data": section.script_data(report, sampled=len(shown) < len(report.known)),
    }

    def faces() -> Iterator[str]:
        group = -1
        for row in tqdm(shown.tolist(), desc="report", unit="face", leave=False):
            if groups is not None and groups.place[row] != group:
                group = int(groups.place[row])
                yield section.group_heading(report, group)
            yield section.face_item(report, row, url_of(row))

    with replacing(path) as file:
        for piece in _template_pieces():
            if piece == "{{faces}}":
                file.writelines(faces())
            else:
                file.write(sections[piece[2:-2]] if piece.startswith("{{") else piece)


def sample_ranks(scores: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.intp]:
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


def _template_pieces() -> Iterator[str]:
    """The template cut at its `{{names}}`, with the security policy filled in.

    The policy names the style and the scripts by their hashes. Markup in a hostile file name can
    neither run nor load anything.
    """
    template = (
        resources.files("evaluation.report").joinpath("template.html").read_text(encoding="utf-8")
    )

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in texts]
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

    policy = (
        f"default-src 'none'; img-src data:; style-src {hashes('style')}; "
        f"script-src {hashes('script')}; base-uri 'none'; form-action 'none'"
    )
    for piece in re.split(r"(\{\{\w+\}\})", template):
        yield policy if piece == "{{policy}}" else piece


def photo_section(report: Report, url_of: Callable[[int], str | None]) -> str:
    """The photos with several faces, those with the most first; empty if there is none.

    `url_of`: row -> the address of its photo, or None.
    """
    places = report.places
    if places is None:
        return ""
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
        drawn = _drawing(report, photo, rows, places.boxes)
        path = places.path(row)
        name, url = html_text(os.path.basename(path) or path), url_of(row)
        if url is not None:
            name = f'<a href="{html_text(url)}" target="_blank" rel="noopener">{name}</a>'
        words = count_of(int(places.faces[row]), "face")
        if len(rows) < places.faces[row]:
            words += f", {len(rows)} scored"
        figures.append(
            f'<figure>{drawn}<figcaption>{name} <span class="soft">{words}</span>'
            "</figcaption></figure>"
        )
    if not figures:
        return ""
    words = f"{count_of(len(photos), 'photo')} with several faces"
    if len(figures) < len(photos):
        words += f" ({len(figures)} shown, those with the most faces)"
    return (
        f'<details class="fold" open><summary>{words}</summary>\n<div class="photos" tabindex="0" '
        f'role="group" aria-label="Photos with several faces">{"".join(figures)}</div></details>'
    )


def _drawing(
    report: Report, photo: Image, rows: npt.NDArray[np.intp], boxes: npt.NDArray[np.float32]
) -> str:
    height, width = photo.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    data = base64.b64encode(thumbnail(photo, _SIDE)).decode("ascii")
    parts = [
        f'<div class="frame"><img width="{width}" height="{height}" alt="Photo" '
        f'src="data:image/jpeg;base64,{data}"><svg viewBox="0 0 {width} {height}">'
    ]
    for row in rows.tolist():
        x, y, box_width, box_height = (float(value) * scale for value in boxes[row])
        label_y = y - 4 if y >= _LABEL else y + box_height + _LABEL - 2
        look = "box" if report.accepted is None or report.accepted[row] else "box below"
        parts.append(
            f'<g class="{look}"><rect x="{x:.1f}" y="{y:.1f}" width="{box_width:.1f}" '
            f'height="{box_height:.1f}"/><text x="{x:.1f}" y="{label_y:.1f}">'
            f"{number_text(report.scores[row], report.decimals)}</text></g>"
        )
    return "".join(parts) + "</svg></div>"
