"""The report page: faces ordered by score, in one HTML file that needs no network.

    write_report("report.html", path_of=images.path, scores=scores, statuses=statuses,
                 model_name="R_50", thumbnail=make_thumbnail)

The page holds the faces as small JPEGs, a histogram, the model's calibration, a filter by score
(typed, dragged over the histogram, or as `report.html#min=40&max=60&order=asc`), and a link from
every face to its file. Its Content-Security-Policy allows only its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.report import sections as section
from evaluation.report.histogram import decimals_for, ticks_of
from sdd_fiqa.calibration import check_calibration
from sdd_fiqa.files import replacing

# At about 3 kB a face, 2,000 make a page of about 8 MB, which opens in a second or two. An even
# sample of more faces shows the same order.
MAX_FACES = 2000


def write_report(
    path: str | os.PathLike[str],
    *,
    path_of: Callable[[int], str],
    scores: npt.ArrayLike,
    statuses: Sequence[str],
    model_name: str,
    thumbnail: Callable[[int], bytes | None],
    kind: Literal["image", "face"] = "image",
    link_path: Callable[[int], str | None] | None = None,
    calibration: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    max_faces: int = MAX_FACES,
) -> None:
    """Writes the report page, whole or not at all.

    With more than `max_faces` scored images, the page shows an even sample of the ranks, with the
    lowest and the highest score, and says so. Histogram, counts and quantiles are always those of
    all images. Only the paths of the rows shown are read, and one thumbnail is in memory at a time.

    Args:
        path: the page to write; its folder is made.
        path_of: row -> path; it may hold anything that a file name may.
        scores: (N,) float64, higher is better; NaN where an image has no score.
        statuses: (N,) "ok", or why there is no score; shown for images without one.
        model_name: as the reader knows it.
        thumbnail: row -> JPEG bytes of about 112x112 pixels; None if there is no picture. Called
            for the rows shown only, in the order of the page.
        kind: what a row is, in the page's words; several faces may be of one image.
        link_path: row -> the file that a face links to, relative to the current folder; None if
            there is none (a container). Default: the row's path.
        calibration: of the model, from faces held out of its training:
            `thresholds`: list of {`discard`: share in 0..1, `score`: the score below which that
            share of the calibration faces lies, `fnmr`: the FNMR that is left (optional)};
            `percentiles` (optional): 101 rising scores, of the percentiles 0..100;
            `faces` (optional): how many faces it was made on; `fmr` (optional): the FMR of `fnmr`.
        notes: sentences to show at the top, plain text.
        max_faces: the most faces on the page, at least 2.

    Raises:
        ValueError: arrays of different lengths, a calibration that is not as above, or a thumbnail
            that is not JPEG.
        UserError: the page cannot be written.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) != len(statuses):
        raise ValueError(
            f"scores and statuses must be of one length, got {values.shape} and {len(statuses)}"
        )
    if calibration is not None:
        check_calibration(calibration)

    scored = np.flatnonzero(np.isfinite(values))
    known = values[scored]
    decimals = decimals_for(known) if len(known) else 1
    ticks = ticks_of(known, decimals + section.FINER)
    shown = scored[sample_ranks(known, max_faces)]
    sections = {
        "title": section.html_text(f"Face image quality: {model_name}"),
        "lead": section.lead(model_name, kind, len(values), len(scored), len(shown)),
        "numbers": section.numbers(known, decimals),
        "notes": section.notes_list(notes),
        "histogram": section.histogram_section(ticks, decimals, calibration, kind)
        if len(known)
        else "",
        "calibration": section.calibration_section(calibration, known, decimals),
        "tools": section.filter_tools(ticks, decimals) if len(known) else "",
        "unscored": section.unscored_section(
            np.flatnonzero(~np.isfinite(values)), path_of, statuses
        ),
        "data": section.script_data(ticks, decimals, sampled=len(shown) < len(scored)),
    }
    folder = os.path.dirname(os.path.abspath(path))

    def item(row: int) -> str:
        name = path_of(row)
        target = name if link_path is None else link_path(row)
        url = None if target is None else relative_url(target, folder)
        score = float(values[row])
        return section.face_item(name, score, decimals, percentiles, url, thumbnail(row))

    percentiles = (calibration or {}).get("percentiles")
    with replacing(path) as file:
        for piece in _template_pieces():
            if piece == "{{faces}}":
                for row in tqdm(shown.tolist(), desc="report", unit="face", leave=False):
                    file.write(item(row))
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
    return quote(section.path_bytes(os.path.relpath(target, folder)), safe="/")


def _template_pieces() -> Iterator[str]:
    """The template cut at its `{{names}}`, with the security policy filled in.

    The policy names the style and the script by their hashes. Markup in a hostile file name can
    neither run nor load anything.
    """
    template = (
        resources.files("evaluation.report").joinpath("template.html").read_text(encoding="utf-8")
    )

    def hashed(tag: str) -> str:
        start = template.index(f"<{tag}>") + len(f"<{tag}>")
        text = template[start : template.index(f"</{tag}>", start)]
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; img-src data:; style-src {hashed('style')}; "
        f"script-src {hashed('script')}; base-uri 'none'; form-action 'none'"
    )
    for piece in re.split(r"(\{\{\w+\}\})", template):
        yield policy if piece == "{{policy}}" else piece
