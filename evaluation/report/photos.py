"""Photos that show several faces, small, with a box around each face that has a score."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evaluation.report.contents import Report
from evaluation.report.text import count_of, html_text, number_text
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Image, thumbnail

MAX_PHOTOS = 24  # on a page, those with the most faces; each takes about 40 kB
_SIDE = 480  # pixels, of the longer side of a photo on the page
_LABEL = 14  # pixels, height of the score above a box


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
        words = f"{int(places.faces[row]):,} faces"
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
