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
from collections.abc import Iterator
from importlib import resources
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.report import sections as section
from evaluation.report.contents import Report
from evaluation.report.photos import photo_section
from evaluation.report.text import html_text, path_bytes
from sdd_fiqa.files import replacing


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
