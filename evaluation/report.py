"""The report page: faces ordered by score in one HTML file that needs nothing else, no network.

    write_report("report.html", paths=table, scores=scores, statuses=statuses,
                 model_name="R_50", thumbnail=make_thumbnail)

The page holds the faces as small JPEGs, a histogram, the model's calibration, a filter by score
(typed, dragged over the histogram, or as `report.html#min=40&max=60&order=asc`), and a link from
every face to its file. Its Content-Security-Policy lets nothing in but its own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import pairwise
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset.files import replacing
from evaluation.histogram import Mark, Ticks, decimals_for, histogram_svg, ticks_of

# At about 3 kB a face, 2,000 make a page of some 8 MB, which opens in a second or two from disk;
# nobody looks at more, and an even sample shows the same order.
MAX_FACES = 2000
MAX_UNSCORED = 200  # unscored images listed by name; all are counted


class PathTable(Protocol):
    """What a list that stays on disk offers (dataset.lists.Table does)."""

    def path(self, row: int) -> str:
        """The path of one record."""


Paths: TypeAlias = Sequence[str] | PathTable | Callable[[int], str]


def write_report(
    path: str | os.PathLike[str],
    *,
    paths: Paths,
    scores: npt.ArrayLike,
    statuses: Sequence[str],
    model_name: str,
    thumbnail: Callable[[int], bytes | None],
    links: str | os.PathLike[str] | None = ".",
    link_path: Callable[[int], str | None] | None = None,
    calibration: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    max_faces: int = MAX_FACES,
) -> None:
    """Writes the report page, whole or not at all.

    Above `max_faces` scored images the page shows an even sample across the scores (evenly spaced
    ranks, the lowest and the highest always among them) and says so; histogram, counts and
    quantiles are always those of all images. Only the shown rows' paths are read, and one
    thumbnail is in memory at a time.

    Args:
        path: the page to write; its folder is made.
        paths: path of row i: a sequence, a function of i, or a table with `path(i)`. Names may hold
            anything a file name may.
        scores: (N,) float64, higher is better; NaN where an image has no score.
        statuses: (N,) "ok", or why not; shown for images without a score.
        model_name: as the reader knows it.
        thumbnail: row -> JPEG bytes of at most about 112x112 pixels; None where there is no
            picture. Asked for the shown rows only, in the order of the page.
        links: the folder from which relative paths start (the current one by default); a face then
            links to its file, relative to the page. None: no links.
        link_path: row -> path of the file to open where that is not the row's own path (several
            faces of one photo), None where there is none (a container).
        calibration: of the model, from faces held out of its training:
            `thresholds`: list of {`discard`: share in 0..1, `score`: the score below which that
            share of the calibration faces lies, `fnmr`: what is left of FNMR (optional)};
            `percentiles` (optional): 101 rising scores, of the percentiles 0..100;
            `faces` (optional): how many faces it was made on; `fmr` (optional): the FMR of `fnmr`.
        notes: sentences to show at the top, plain text.
        max_faces: faces on the page, at least 2.

    Raises:
        ValueError: arrays of different lengths, a calibration that is not as above, a thumbnail
            that is not JPEG, max_faces below 2.
        UserError: the page cannot be written.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or len(values) != len(statuses):
        raise ValueError(
            f"scores and statuses must be of one length, got {values.shape} and {len(statuses)}"
        )
    if isinstance(paths, Sequence) and len(paths) != len(values):
        raise ValueError(f"paths must be as many as scores, {len(values)}, got {len(paths)}")
    if max_faces < 2:
        raise ValueError(f"max_faces must be at least 2, got {max_faces}")
    if calibration is not None:
        check_calibration(calibration)

    path_of = _path_function(paths)
    scored = np.flatnonzero(np.isfinite(values))
    known = values[scored]
    decimals = decimals_for(known) if len(known) else 1
    ticks = ticks_of(known, decimals)
    shown = scored[sample_ranks(known, max_faces)]
    sections = {
        "title": _text(f"Face image quality: {model_name}"),
        "lead": _lead(model_name, len(values), len(scored), len(shown)),
        "numbers": _numbers(known, decimals),
        "notes": _notes(notes),
        "histogram": _histogram(ticks, decimals, calibration) if len(known) else "",
        "calibration": _calibration(calibration, known, decimals) if calibration else "",
        "tools": _tools(ticks, decimals) if len(known) else "",
        "unscored": _unscored(np.flatnonzero(~np.isfinite(values)), path_of, statuses),
        "data": _data(ticks, decimals, sampled=len(shown) < len(scored)),
    }
    folder = os.path.dirname(os.path.abspath(path))

    def link(row: int) -> str | None:
        target = path_of(row) if link_path is None else link_path(row)
        return None if links is None or target is None else relative_url(target, links, folder)

    percentiles = (calibration or {}).get("percentiles")
    with replacing(path) as file:
        for piece in _template_pieces():
            if piece != "{{faces}}":
                file.write(sections[piece[2:-2]] if piece.startswith("{{") else piece)
                continue
            for row in tqdm(shown.tolist(), desc="report", unit="face", leave=False):
                score = float(values[row])
                rank = None if percentiles is None else _percentile(score, percentiles)
                picture = thumbnail(row)
                file.write(_face(path_of(row), score, decimals, rank, link(row), picture))


def sample_ranks(scores: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.intp]:
    """Positions of at most `most` scores, highest first, evenly spaced over the ranks.

    Equal scores keep their order; the highest and the lowest score are always among them.

    >>> sample_ranks(np.array([3.0, 1.0, 2.0, 5.0, 4.0]), 3)
    array([3, 0, 1])
    """
    order = np.argsort(-scores, kind="stable")
    if len(order) <= most:
        return order
    return order[np.linspace(0, len(order) - 1, most).round().astype(np.intp)]


def relative_url(target: str, links: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str:
    """The percent-encoded URL of a file, relative to the folder of the page.

    >>> relative_url("faces/a b#c?.jpg", "/data", "/data/out")
    '../faces/a%20b%23c%3F.jpg'
    """
    relative = os.path.relpath(os.path.join(os.path.abspath(links), target), folder)
    return quote(_bytes(relative), safe="/")


def check_calibration(calibration: Mapping[str, Any]) -> None:
    """Checks the form that `write_report` states.

    Raises:
        ValueError: naming the entry, the rule and what was found.
    """
    thresholds = calibration.get("thresholds")
    if not isinstance(thresholds, Sequence) or isinstance(thresholds, str):
        raise ValueError(f"calibration: `thresholds` must be a list, got {thresholds!r}")
    for entry in thresholds:
        numbers: list[Any] = (
            [entry.get("discard"), entry.get("score"), entry.get("fnmr", 0.0)]
            if isinstance(entry, Mapping)
            else [None]
        )
        if not all(_is_number(number) for number in numbers) or not 0 <= numbers[0] <= 1:
            raise ValueError(
                "calibration: a threshold must be {discard: share in 0..1, score: number, "
                f"fnmr: number (optional)}}, got {entry!r}"
            )
    percentiles = calibration.get("percentiles")
    if percentiles is not None and (
        not isinstance(percentiles, Sequence)
        or len(percentiles) != 101
        or not all(_is_number(number) for number in percentiles)
        or any(low > high for low, high in pairwise(percentiles))
    ):
        raise ValueError("calibration: `percentiles` must be 101 rising scores")
    for name in ("faces", "fmr"):
        if calibration.get(name) is not None and not _is_number(calibration[name]):
            raise ValueError(f"calibration: `{name}` must be a number, got {calibration[name]!r}")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))
    )


def _percentile(score: float, percentiles: Sequence[float]) -> float:
    return float(np.interp(score, percentiles, np.arange(101)))


def _path_function(paths: Paths) -> Callable[[int], str]:
    if callable(paths):
        return paths
    if isinstance(paths, Sequence):
        return paths.__getitem__
    return paths.path


def _template_pieces() -> Iterator[str]:
    """The template cut at its `{{names}}`, with the policy, known beforehand, filled in.

    The policy names the style and the script by their hashes: markup that a hostile file name
    might smuggle in could neither run nor load anything.
    """
    template = resources.files("evaluation").joinpath("report.html").read_text(encoding="utf-8")

    def hashed(tag: str) -> str:
        start, end = template.index(f"<{tag}>") + len(tag) + 2, template.index(f"</{tag}>")
        if tag == "script":  # the data block before it, of another type, has the first end tag
            end = template.rindex("</script>")
        digest = hashlib.sha256(template[start:end].encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    policy = (
        f"default-src 'none'; img-src data:; style-src {hashed('style')}; "
        f"script-src {hashed('script')}; base-uri 'none'; form-action 'none'"
    )
    for piece in re.split(r"(\{\{\w+\}\})", template):
        yield policy if piece == "{{policy}}" else piece


def _bytes(text: str) -> bytes:
    """A path's own bytes; what cannot be a path's becomes `?`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


# Control characters, and those that turn the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def _text(text: str) -> str:
    """Any string as HTML text or as the value of a quoted attribute."""
    return escape(_UNSEEN.sub("\ufffd", _bytes(text).decode("utf-8", "replace")))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < 1e9 else f"{value:.3e}"


def _share(value: float) -> str:
    """A share in 0..1 as percent with as many decimals as it needs: `5 %`, `0.25 %`."""
    return f"{100 * value:.3g} %"


def _lead(model_name: str, images: int, scored: int, shown: int) -> str:
    words = f"{_count(images, 'image')}, scored by <strong>{_text(model_name)}</strong>."
    if scored < images:
        words += f" {_count(images - scored, 'image')} got no score, see the end of the page."
    if scored:
        words += " A higher score is a face that is easier to recognise."
    if shown < scored:
        words += (
            f" This page shows {shown:,} of the {scored:,} scored faces: an even sample across the"
            " scores, from the lowest to the highest. Histogram and counts are of all images."
        )
    return words


def _numbers(scores: npt.NDArray[np.float64], decimals: int) -> str:
    if not len(scores):
        return '<p class="card">No image got a score.</p>'
    low, five, middle, most, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    entries = [
        ("Faces", f"{len(scores):,}"),
        ("Mean", _number(float(scores.mean()), decimals)),
        ("Lowest", _number(low, decimals)),
        ("5th percentile", _number(five, decimals)),
        ("Median", _number(middle, decimals)),
        ("95th percentile", _number(most, decimals)),
        ("Highest", _number(high, decimals)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in entries)
    return f'<dl class="numbers">{cells}</dl>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>'


def _histogram(ticks: Ticks, decimals: int, calibration: Mapping[str, Any] | None) -> str:
    marks = [
        Mark(float(entry["score"]), _share(entry["discard"]))
        for entry in (calibration or {}).get("thresholds", ())
    ]
    hint = "Drag over the bars to show the faces of a range."
    if marks:
        hint += " Dashed: the score below which that share of the calibration faces lies."
    return (
        '<section class="card"><h2>Scores</h2>\n'
        f"{histogram_svg(ticks, decimals, marks)}\n"
        f'<p class="hint">{hint}</p></section>'
    )


def _calibration(
    calibration: Mapping[str, Any], scores: npt.NDArray[np.float64], decimals: int
) -> str:
    faces = calibration.get("faces")
    whose = f"{int(faces):,} faces" if faces is not None else "faces"
    fmr = calibration.get("fmr")
    rows = []
    for entry in calibration["thresholds"]:
        threshold = _number(float(entry["score"]), decimals)
        here = int(np.count_nonzero(scores < entry["score"]))
        share = _share(here / len(scores)) if len(scores) else ""
        fnmr = _share(entry["fnmr"]) if "fnmr" in entry else ""
        rows.append(
            f"<tr><td>{_share(entry['discard'])}</td>"
            f'<td><a href="#min={threshold}">{threshold}</a></td>'
            f"<td>{fnmr}</td><td>{here:,} ({share})</td></tr>"
        )
    at = f" at FMR {fmr:g}" if fmr is not None else ""
    return (
        '<section class="card"><h2>Calibration</h2>\n'
        f'<p class="soft">The model was calibrated on {whose} held out of its training: to leave'
        " out a share of those, keep scores from the threshold up.</p>\n"
        '<div class="scroll"><table><thead><tr><th>Left out</th><th>Threshold</th>'
        f"<th>FNMR left{at}</th><th>Below it here</th></tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _tools(ticks: Ticks, decimals: int) -> str:
    scale = 10.0**decimals
    low, high = (_number(end / scale, decimals) for end in (ticks.min(), ticks.max()))
    step = f"{1 / scale:.{decimals}f}"

    def field(name: str, label: str, hint: str) -> str:
        return (
            f'<input type="number" id="{name}" step="{step}" placeholder="{hint}" '
            f'aria-label="{label}">'
        )

    return (
        '<div class="tools script-only" role="search">'
        f'<fieldset><span class="word">Score from</span>{field("low", "Lowest score shown", low)}'
        f"<span>to</span>{field('high', 'Highest score shown', high)}"
        '<button type="button" id="reset" disabled>Reset</button></fieldset>'
        '<label><span class="word">Order</span><select id="order" aria-label="Order">'
        '<option value="desc">highest first</option><option value="asc">lowest first</option>'
        '</select></label><output id="shown" for="low high" aria-live="polite"></output></div>'
    )


def _face(
    path: str,
    score: float,
    decimals: int,
    percentile: float | None,
    url: str | None,
    picture: bytes | None,
) -> str:
    if picture is not None and not picture.startswith(b"\xff\xd8"):
        raise ValueError(f"thumbnail: must be JPEG bytes or None, got {picture[:8]!r} for {path!r}")
    name, shown = _text(os.path.basename(path) or path), _number(score, decimals)
    hover = f"{_text(path)}&#10;score {shown}"
    if percentile is not None:
        hover += f", better than {percentile:.0f} % of the calibration faces"
    image = '<span class="blank">no picture</span>'
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = (
            f'<img width="112" height="112" decoding="async" alt="Face {name}" '
            f'src="data:image/jpeg;base64,{data}">'
        )
    body = f'{image}<b>{shown}</b><span class="name" aria-hidden="true"><bdi>{name}</bdi></span>'
    tick = int(ticks_of(np.array([score]), decimals)[0])
    inside = (
        f'<span class="plain" title="{hover}">{body}</span>'
        if url is None
        else f'<a href="{escape(url)}" target="_blank" rel="noopener" title="{hover}">{body}</a>'
    )
    return f'<li data-t="{tick}">{inside}</li>\n'


def _unscored(
    rows: npt.NDArray[np.intp], path_of: Callable[[int], str], statuses: Sequence[str]
) -> str:
    if not len(rows):
        return ""
    reasons = Counter(statuses[row] for row in rows).most_common()
    common = ", ".join(f"{_text(reason)}: {count:,}" for reason, count in reasons[:8])
    if len(reasons) > 8:
        common += f", and {_count(len(reasons) - 8, 'other reason')}"
    items = "".join(
        f"<li>{_text(path_of(row))} <span class=soft>{_text(statuses[row])}</span></li>\n"
        for row in rows[:MAX_UNSCORED].tolist()
    )
    if len(rows) > MAX_UNSCORED:
        items += f"<li>and {len(rows) - MAX_UNSCORED:,} more</li>\n"
    return (
        f'<details class="card"{" open" if len(rows) <= 20 else ""}><summary>'
        f"{_count(len(rows), 'image')} without a score</summary>"
        f'<p class="soft reasons">{common}</p><ul>\n{items}</ul></details>'
    )


def _data(ticks: Ticks, decimals: int, *, sampled: bool) -> str:
    """What the page's script needs to count all images, not only those shown."""
    values, counts = np.unique(ticks, return_counts=True)
    data = {"decimals": decimals, "sampled": sampled, "ticks": [], "counts": []}
    if sampled:
        data |= {"ticks": values.tolist(), "counts": counts.tolist()}
    return json.dumps(data, separators=(",", ":"))
