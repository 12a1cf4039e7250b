"""The parts of the report page as HTML text; every string from outside is escaped."""

from __future__ import annotations

import base64
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.report.histogram import Mark, Ticks, coarser, histogram_svg, ticks_of

_TAIL = 8  # the last characters of a name, which are always shown: names differ there
FINER = 2  # more decimals than are shown, for the script's exact thresholds
MAX_UNSCORED = 200  # images without a score that are listed by name; all are counted


def path_bytes(text: str) -> bytes:
    """A path's own bytes; what no path can hold becomes `?`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


# Control characters, and characters that change the direction of the text.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def html_text(text: str) -> str:
    """Any string as HTML text or as the value of a quoted attribute."""
    return escape(_UNSEEN.sub("\ufffd", path_bytes(text).decode("utf-8", "replace")))


def number_text(value: float, decimals: int) -> str:
    """A score as the page shows it; rounded like its tick, so text and filter agree."""
    if abs(value) >= 1e9:
        return f"{value:.3e}"
    tick = coarser(ticks_of(np.array([value]), decimals + FINER), FINER)[0]
    return f"{tick / 10**decimals:.{decimals}f}"


def lead(model_name: str, kind: str, rows: int, scored: int, shown: int) -> str:
    """What the page shows: images, model, what has no score, and whether it is a sample."""
    # A row without a score is an image, even where a row with one is a face.
    found = scored if kind == "face" else rows
    words = f"{_count(found, kind)}, scored by <strong>{html_text(model_name)}</strong>."
    if scored < rows:
        words += f" {_count(rows - scored, 'image')} got no score (see the end of the page)."
    if scored:
        words += " A face with a higher score is easier to recognise."
    if shown < scored:
        words += (
            f" This page shows {shown:,} of the {scored:,} scored faces: an even sample across the"
            f" scores, from the lowest to the highest. Histogram and counts are of all {kind}s."
        )
    return words


def numbers(scores: npt.NDArray[np.float64], decimals: int) -> str:
    """Count, mean and quantiles of the (N,) finite scores."""
    if not len(scores):
        return '<p class="card">No image got a score.</p>'
    low, five, middle, most, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    entries = [
        ("Faces", f"{len(scores):,}"),
        ("Mean", number_text(float(scores.mean()), decimals)),
        ("Lowest", number_text(low, decimals)),
        ("5th percentile", number_text(five, decimals)),
        ("Median", number_text(middle, decimals)),
        ("95th percentile", number_text(most, decimals)),
        ("Highest", number_text(high, decimals)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in entries)
    return f'<dl class="numbers">{cells}</dl>'


def notes_list(notes: Sequence[str]) -> str:
    """Plain sentences as a list."""
    if not notes:
        return ""
    items = "".join(f"<li>{html_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>'


def histogram_section(
    ticks: Ticks, decimals: int, calibration: Mapping[str, Any] | None, kind: str
) -> str:
    """The histogram of all scores, with the thresholds of the calibration drawn on it."""
    marks = [
        Mark(float(entry["score"]), _share(entry["discard"]))
        for entry in (calibration or {}).get("thresholds", ())
    ]
    drawing = histogram_svg(coarser(ticks, FINER), decimals, marks, kind)
    hint = "Drag over the bars to show only the faces of a range."
    if 'class="mark"' in drawing:  # a mark outside the axis is not drawn
        hint += " Dashed: this share of the calibration faces scores lower."
    return f'<section class="card"><h2>Scores</h2>\n{drawing}\n<p class="hint">{hint}</p></section>'


def calibration_section(
    calibration: Mapping[str, Any] | None, scores: npt.NDArray[np.float64], decimals: int
) -> str:
    """The thresholds of the calibration, and how many of the (N,) scores are below each."""
    if calibration is None:
        return ""
    faces = calibration.get("faces")
    whose = f"{int(faces):,} faces" if faces is not None else "faces"
    fmr = calibration.get("fmr")
    measured = any(entry.get("fnmr") is not None for entry in calibration["thresholds"])
    rows = []
    for entry in calibration["thresholds"]:
        threshold = f"{entry['score']:.{decimals + FINER}f}"
        here = int(np.count_nonzero(scores < float(threshold)))  # as the filter cuts
        share = _share(here / len(scores)) if len(scores) else ""
        fnmr = "" if entry.get("fnmr") is None else _share(entry["fnmr"])
        fnmr = f"<td>{fnmr}</td>" if measured else ""
        rows.append(
            f"<tr><td>{_share(entry['discard'])}</td>"
            f'<td><a href="#min={threshold}">{threshold}</a></td>'
            f"{fnmr}<td>{here:,} ({share})</td></tr>"
        )
    at = f" at FMR {fmr:g}" if fmr is not None else ""
    left = f"<th>FNMR left{at}</th>" if measured else ""
    return (
        '<section class="card"><h2>Calibration</h2>\n'
        f'<p class="soft">The model was calibrated on {whose} held out of its training. To leave'
        " out a share of these, keep the scores from the threshold up.</p>\n"
        '<div class="scroll"><table><thead><tr><th>Left out</th><th>Threshold</th>'
        f"{left}<th>Below it here</th></tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def filter_tools(ticks: Ticks, decimals: int) -> str:
    """The controls: lowest and highest score shown, order, and how many faces remain."""
    ends = ticks.min(), ticks.max()
    low, high = (number_text(end / 10.0 ** (decimals + FINER), decimals) for end in ends)
    step = f"{10.0**-decimals:.{decimals}f}"

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


def face_item(
    path: str,
    score: float,
    decimals: int,
    percentiles: Sequence[float] | None,
    url: str | None,
    picture: bytes | None,
) -> str:
    """One face: picture, score, name, and a link to `url` if there is one.

    Raises:
        ValueError: the picture is not JPEG.
    """
    if picture is not None and not picture.startswith(b"\xff\xd8"):
        raise ValueError(f"thumbnail: must be JPEG bytes or None, got {picture[:8]!r} for {path!r}")
    tick = int(ticks_of(np.array([score]), decimals + FINER)[0])
    base, shown = os.path.basename(path) or path, number_text(score, decimals)
    name, head, tail = (html_text(text) for text in (base, base[:-_TAIL], base[-_TAIL:]))
    finest = decimals + FINER
    exact = score if abs(score) >= 1e9 else tick / 10**finest  # as the filter uses it
    hover = f"{html_text(path)}&#10;score {exact:.{finest}f}"
    if percentiles is not None:
        rank = float(np.interp(score, percentiles, np.arange(101)))
        hover += f", higher than {rank:.0f} % of the calibration faces"
    image = '<span class="blank">no picture</span>'
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = (
            f'<img width="112" height="112" decoding="async" alt="Face {name}" '
            f'src="data:image/jpeg;base64,{data}">'
        )
    caption = f'<span class="name" aria-hidden="true"><bdi>{head}</bdi><bdi>{tail}</bdi></span>'
    body = f"{image}<b>{shown}</b>{caption}"
    inside = (
        f'<span class="plain" title="{hover}">{body}</span>'
        if url is None
        else f'<a href="{escape(url)}" target="_blank" rel="noopener" title="{hover}">{body}</a>'
    )
    return f'<li data-t="{tick}">{inside}</li>\n'


def unscored_section(
    rows: npt.NDArray[np.intp], path_of: Callable[[int], str], statuses: Sequence[str]
) -> str:
    """How many images have no score, why, and the first MAX_UNSCORED by name."""
    if not len(rows):
        return ""
    reasons = Counter(statuses[row] for row in rows).most_common()
    common = ", ".join(f"{html_text(reason)}: {count:,}" for reason, count in reasons[:8])
    if len(reasons) > 8:
        common += f", and {_count(len(reasons) - 8, 'other reason')}"
    items = "".join(
        f"<li>{html_text(path_of(row))} <span class=soft>{html_text(statuses[row])}</span></li>\n"
        for row in rows[:MAX_UNSCORED].tolist()
    )
    if len(rows) > MAX_UNSCORED:
        items += f"<li>and {len(rows) - MAX_UNSCORED:,} more</li>\n"
    return (
        f'<details class="card"{" open" if len(rows) <= 20 else ""}><summary>'
        f"{_count(len(rows), 'image')} without a score</summary>"
        f'<p class="soft reasons">{common}</p><ul>\n{items}</ul></details>'
    )


def script_data(ticks: Ticks, decimals: int, *, sampled: bool) -> str:
    """What the page's script needs to count all images, also those that are not shown."""
    values, counts = np.unique(ticks, return_counts=True)
    data = {"decimals": decimals, "finer": FINER, "sampled": sampled, "ticks": [], "counts": []}
    if sampled:
        data |= {"ticks": values.tolist(), "counts": counts.tolist()}
    return json.dumps(data, separators=(",", ":"))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share(value: float) -> str:
    """A share in 0..1 as per cent, with three digits at most: `5 %`, `0.25 %`."""
    return f"{100 * value:.3g} %"
