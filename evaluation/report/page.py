"""The report page: faces ordered by score, in one HTML file that needs no network.

    write_report("report.html", path_of=images.path, scores=scores, statuses=statuses,
                 model_name="R_50", thumbnail=make_thumbnail)

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.report import sections as section
from evaluation.report.groups import Groups
from evaluation.report.histogram import decimals_for
from evaluation.report.photos import FacePlaces, photo_section
from evaluation.report.text import html_text, path_bytes
from sdd_fiqa.calibration import check_calibration, reaches
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
    threshold: float | None = None,
    accept: float | None = None,
    groups: Sequence[str] | None = None,
    group_word: str = "folder",
    places: FacePlaces | None = None,
    model_about: str = "",
    command: str = "",
    made: datetime | None = None,
    notes: Sequence[str] = (),
    max_faces: int = MAX_FACES,
) -> None:
    """Writes the report page, whole or not at all.

    With more than `max_faces` scored images, the page shows an even sample of the ranks, with the
    lowest and the highest score, or the best of each group; and it says so. Histogram, counts and
    quantiles are always those of all images. Only the paths of the rows shown are read, and one
    thumbnail is in memory at a time.

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
        threshold: the lowest score of an accepted face. The page opens with the accepted faces.
        accept: the share of calibration faces, in 0..1, that reach `threshold`.
        groups: (N,) the name of each row's group, empty for a row that is in none. The group with
            the best face is first.
        group_word: what a group is, in the singular: "folder", "track".
        places: where the faces are in their photos; photos with several faces are shown with boxes.
        model_about: a few words about the model, such as "the model that comes with SDD-FIQA".
        command: the command line that made the page; shown as it is.
        made: when the page was made.
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
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"groups must have {len(values)} names, got {len(groups)}")
    if calibration is not None:
        check_calibration(calibration)

    finite = np.isfinite(values)
    scored, unscored = np.flatnonzero(finite), np.flatnonzero(~finite)
    known = values[scored]
    accepted = None if threshold is None else finite & reaches(values, threshold)
    grouped = None if groups is None else Groups(groups, group_word, values, accepted)
    result = section.Result(
        kind=kind,
        scores=known,
        accepted=None if accepted is None else accepted[scored],
        threshold=threshold,
        accept=accept,
        decimals=decimals_for(known) if len(known) else 1,
        calibration=calibration,
        groups=grouped,
        reasons=[statuses[row] for row in unscored.tolist()],
    )
    shown = scored[sample_ranks(known, max_faces)] if grouped is None else grouped.shown(max_faces)
    folder = os.path.dirname(os.path.abspath(path))

    def url_of(row: int, name: str) -> str | None:
        target = name if link_path is None else link_path(row)
        return None if target is None else relative_url(target, folder)

    sections = {
        "title": html_text(f"Face image quality: {model_name}"),
        "lead": section.lead(result, model_name, model_about, made, len(shown)),
        "answer": section.answer(result),
        "notes": section.notes_list(notes),
        "panels": section.panels(result, command),
        "photos": photo_section(places, values, accepted, result.decimals, url_of),
        "tools": section.filter_tools(result),
        "lacking": section.lacking_section(result),
        "unscored": section.unscored_section(unscored, path_of, statuses),
        "data": section.script_data(result, sampled=len(shown) < len(scored)),
    }

    def faces() -> Iterator[str]:
        group = -1
        for row in tqdm(shown.tolist(), desc="report", unit="face", leave=False):
            if grouped is not None and grouped.place[row] != group:
                group = int(grouped.place[row])
                yield section.group_heading(result, group)
            below = accepted is not None and not accepted[row]
            name, score = path_of(row), float(values[row])
            url, picture = url_of(row, name), thumbnail(row)
            yield section.face_item(result, name, score, url, picture, below, group)

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
