"""The parts of the report page as HTML text; every string from outside is escaped."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.report.groups import Groups
from evaluation.report.histogram import Mark, coarser, histogram_svg, ticks_of
from evaluation.report.text import FINER, count_of, html_text, number_text, share_text
from sdd_fiqa.calibration import percentiles_of

_TAIL = 8  # the last characters of a name, which are always shown: names differ there
_FEW = 20  # quantiles of fewer scores say less than the scores themselves
MAX_UNSCORED = 200  # images without a score that are listed by name; all are counted


@dataclass(frozen=True)
class Result:
    """What the page shows.

    Attributes:
        kind: what a row is, in the singular.
        scores: (N,) finite, of the rows that have one.
        accepted: (N,) whether each reaches the threshold; None if none was asked for.
        threshold: the lowest score of an accepted face, or None.
        accept: the share of calibration faces that reach it, or None.
        decimals: of a score as shown.
        calibration: of the model, or None.
        groups: of all rows, or None.
        reasons: of each row without a score.
    """

    kind: str
    scores: npt.NDArray[np.float64]
    accepted: npt.NDArray[np.bool_] | None
    threshold: float | None
    accept: float | None
    decimals: int
    calibration: Mapping[str, Any] | None
    groups: Groups | None
    reasons: Sequence[str]

    def percentile(self, score: float) -> str:
        """In words: the share of the calibration faces that score lower; empty if unknown."""
        if self.calibration is None or self.calibration.get("percentiles") is None:
            return ""
        value = percentiles_of(np.array([score]), self.calibration)[0]
        return f"higher than {value:.0f} % of the calibration faces"


def lead(
    result: Result, model_name: str, model_about: str, made: datetime | None, shown: int
) -> str:
    """Model and date, what a score says, and whether the page is a sample."""
    words = f"Scored by <strong>{html_text(model_name)}</strong>"
    if model_about:
        words += f", {html_text(model_about)}"
    if made is not None:
        words += f", on {made.day} {made:%B %Y} at {made:%H:%M}"
    words += "."
    scored = len(result.scores)
    if scored:
        words += " A face with a higher score is easier to recognise."
    if shown < scored:
        which = "an even sample from the highest to the lowest score"
        if result.groups is not None:
            which = f"the best of each {html_text(result.groups.word)}"
        words += (
            f" Shown: {shown:,} of {scored:,} scored faces, {which}; "
            f"the other numbers are of all {result.kind}s."
        )
    return words


def answer(result: Result) -> str:
    """How many are accepted, scored and not scored, and why."""
    cells = []
    scored, unscored = len(result.scores), len(result.reasons)
    single = scored == 1 and not unscored
    if single:
        score = float(result.scores[0])
        cells.append(("", "Score", number_text(score, result.decimals), result.percentile(score)))
    if result.accepted is not None and scored:
        good = int(result.accepted.sum())
        about = f"score {result.threshold:g} or higher"
        if result.accept is not None:
            about += f", as {share_text(result.accept)} of the calibration faces have"
        if single:
            cells.append(("yes" if good else "no", "Accepted", "yes" if good else "no", about))
        else:
            share = share_text(good / scored)
            cells.append(("yes", "Accepted", f"{good:,}", f"{share}: {about}"))
            cells.append(("no", "Not accepted", f"{scored - good:,}", "a lower score"))
    if not single:
        words = f"{result.kind}s" if scored != 1 else result.kind
        if unscored and result.kind == "image":
            words = f"of {count_of(scored + unscored, 'image')}"
        cells.append(("", "Scored", f"{scored:,}", words if scored else "no image got a score"))
    if unscored:
        reasons = Counter(result.reasons).most_common()
        common = ", ".join(f"{html_text(reason)}: {count:,}" for reason, count in reasons[:3])
        if len(reasons) > 3:
            common += f", and {count_of(len(reasons) - 3, 'other reason')}"
        common += '. <a href="#unscored">List</a>'
        cells.append(("no", "Not scored", f"{unscored:,}", common))
    if result.groups is not None:
        groups, without = sum(map(bool, result.groups.names)), len(result.groups.lacking())
        words = f"with {'a score' if result.accepted is None else 'an accepted face'}"
        if without:
            words += f'; {without:,} without. <a href="#lacking">List</a>'
        name = html_text(result.groups.word.capitalize())
        cells.append(("", f"{name}s", f"{groups - without:,}", words))
    text = "".join(
        f'<div class="{look}"><dt>{name}</dt><dd>{value}</dd><dd class="why">{why}</dd></div>'
        for look, name, value, why in cells
    )
    return f'<dl class="answer">{text}</dl>'


def notes_list(notes: Sequence[str]) -> str:
    """Plain sentences as a list."""
    if not notes:
        return ""
    items = "".join(f"<li>{html_text(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>'


def panels(result: Result, command: str) -> str:
    """Histogram, numbers, calibration and command line, which a narrow screen folds away."""
    parts = [_histogram(result), _calibration(result)]
    if command:
        parts.append(f'<p class="wide soft">Made by <code>{html_text(command)}</code></p>')
    if not any(parts):
        return ""
    return (
        f'<details class="fold"{" open" if len(result.scores) > 1 else ""}>'
        "<summary>Details</summary>\n"
        f'<div class="panels">{"".join(parts)}</div></details>'
    )


def _histogram(result: Result) -> str:
    """All scores as a histogram, with the thresholds drawn on it, and as numbers."""
    if len(result.scores) < 2:
        return ""
    marks = [
        Mark(float(entry["score"]), share_text(entry["discard"]))
        for entry in (result.calibration or {}).get("thresholds", ())
    ]
    cut = None
    if result.threshold is not None:
        cut = Mark(result.threshold, f"accepted from {number_text(result.threshold, 1)}")
    ticks = coarser(ticks_of(result.scores, result.decimals + FINER), FINER)
    drawing = histogram_svg(ticks, result.decimals, marks, result.kind, cut)
    hint = "Drag over the bars to show only the faces of a range."
    if 'class="mark"' in drawing:  # a mark outside the axis is not drawn
        hint += " Dashed: this share of the calibration faces scores lower."
    return (
        f'<section class="card"><h2>Scores</h2>\n{drawing}\n<p class="hint">{hint}</p>'
        f"{_numbers(result)}</section>"
    )


def _numbers(result: Result) -> str:
    """Mean and quantiles; of few scores only the ends and the median."""
    scores, decimals = result.scores, result.decimals
    low, five, middle, most, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    entries = [("Lowest", low), ("Median", middle), ("Mean", scores.mean()), ("Highest", high)]
    if len(scores) >= _FEW:
        entries[1:1] = [("5 % are below", five)]
        entries[-1:-1] = [("5 % are above", most)]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{number_text(float(value), decimals)}</dd></div>"
        for name, value in entries
    )
    return f'<dl class="numbers">{cells}</dl>'


def _calibration(result: Result) -> str:
    """The thresholds of the calibration, how many scores are below each, and what it all means."""
    table, scores = result.calibration, result.scores
    if table is None:
        return ""
    whose = count_of(int(table["faces"]), "face") if table.get("faces") is not None else "faces"
    measured = any(entry.get("fnmr") is not None for entry in table["thresholds"])
    rows = []
    for entry in table["thresholds"]:
        threshold = f"{entry['score']:.{result.decimals + FINER}f}"
        here = int(np.count_nonzero(scores < float(threshold)))  # as the filter cuts
        share = share_text(here / len(scores)) if len(scores) else ""
        fnmr = "" if entry.get("fnmr") is None else share_text(entry["fnmr"])
        fnmr = f"<td>{fnmr}</td>" if measured else ""
        rows.append(
            f"<tr><td>{share_text(entry['discard'])}</td>"
            f'<td><a href="#min={threshold}">{threshold}</a></td>'
            f"{fnmr}<td>{here:,} ({share})</td></tr>"
        )
    fmr = f" at FMR {table['fmr']:g}" if table.get("fmr") is not None else ""
    left = f"<th>FNMR left{fmr}</th>" if measured else ""
    words = [
        (
            "Calibration faces",
            f"{whose} of people that the model did not see in training. A threshold is set on "
            "them. On other cameras the shares differ.",
        ),
        ("Left out", "the share of the calibration faces that score below the threshold."),
        ("Threshold", "the lowest score to keep. Click it to see the faces from there up."),
        ("Below it here", "how many of your faces score lower."),
    ]
    if measured:
        words[3:3] = [
            (
                "FNMR left",
                "the false non-match rate: of two pictures of one person, how often a face "
                "recogniser does not see that they match. It is measured on the calibration faces "
                "that are kept.",
            ),
            (
                "FMR",
                "the false match rate: of two pictures of two people, how often the recogniser "
                "takes them for one. The FNMR depends on it.",
            ),
        ]
    meanings = "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in words)
    return (
        '<section class="card"><h2>Calibration</h2>\n'
        '<p class="soft">Where to cut, to leave out the worst faces.</p>\n'
        '<div class="scroll"><table><thead><tr><th>Left out</th><th>Threshold</th>'
        f"{left}<th>Below it here</th></tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        "<details><summary>What the words mean</summary>"
        f'<dl class="words">{meanings}</dl></details></section>'
    )


def filter_tools(result: Result) -> str:
    """The controls: range, acceptance, order, name, copy, and how many faces remain."""
    if len(result.scores) < 2:
        return ""
    ends = float(result.scores.min()), float(result.scores.max())
    low, high = (number_text(end, result.decimals) for end in ends)
    step = f"{10.0**-result.decimals:.{result.decimals}f}"

    def field(name: str, label: str, hint: str) -> str:
        return (
            f'<input type="number" id="{name}" step="{step}" placeholder="{hint}" '
            f'aria-label="{label}">'
        )

    def choice(name: str, label: str, options: Mapping[str, str]) -> str:
        inside = "".join(f'<option value="{key}">{text}</option>' for key, text in options.items())
        return f'<select id="{name}" aria-label="{label}">{inside}</select>'

    orders = {"desc": "highest first", "asc": "lowest first"}
    if result.groups is not None:
        orders = {"group": f"by {html_text(result.groups.word)}", **orders}
    which = {"all": "all faces"}
    if result.accepted is not None:
        good = int(result.accepted.sum())
        which["accepted"] = f"accepted ({good:,})"
        which["rest"] = f"not accepted ({len(result.scores) - good:,})"
    return (
        '<div class="tools script-only" role="search">'
        + (choice("show", "Which faces", which) if len(which) > 1 else "")
        + '<input type="search" id="name" placeholder="Name" aria-label="Part of the name">'
        f'<fieldset><span class="word">Score from</span>{field("low", "Lowest score shown", low)}'
        f"<span>to</span>{field('high', 'Highest score shown', high)}</fieldset>"
        f'<label><span class="word">Order</span>{choice("order", "Order", orders)}</label>'
        '<button type="button" id="reset" disabled>Show all</button>'
        '<button type="button" id="copy" title="Copies the paths of the faces shown, one a line">'
        "Copy paths</button>"
        '<output id="shown" for="low high" aria-live="polite"></output></div>'
    )


def group_heading(result: Result, group: int) -> str:
    """The name of a group, its best score, and how many of its faces are scored and accepted."""
    groups = result.groups
    assert groups is not None
    words = f"best {number_text(float(groups.best[group]), result.decimals)}, "
    words += count_of(int(groups.scored[group]), "face")
    look = ""
    if groups.accepted is not None:
        count = int(groups.accepted[group])
        words += f", {count:,} accepted" if count else ", none accepted"
        look = "" if count else " below"
    name = html_text(groups.title(group))
    return f'<li class="group{look}"><h3><bdi>{name}</bdi></h3><span>{words}</span></li>\n'


def face_item(
    result: Result,
    path: str,
    score: float,
    url: str | None,
    picture: bytes | None,
    below: bool,
    group: int,
) -> str:
    """One face: picture, score, name, and a link to `url` if there is one.

    Args:
        result: what the page shows.
        path: as the page names it.
        score: of the face.
        url: of its file, or None.
        picture: JPEG, or None.
        below: whether the face is not accepted.
        group: the position of its group; -1 if there are none.

    Raises:
        ValueError: the picture is not JPEG.
    """
    if picture is not None and not picture.startswith(b"\xff\xd8"):
        raise ValueError(f"thumbnail: must be JPEG bytes or None, got {picture[:8]!r} for {path!r}")
    finest = result.decimals + FINER
    tick = int(ticks_of(np.array([score]), finest)[0])
    base, shown = os.path.basename(path) or path, number_text(score, result.decimals)
    name, head, tail = (html_text(text) for text in (base, base[:-_TAIL], base[-_TAIL:]))
    exact = score if abs(score) >= 1e9 else tick / 10**finest  # as the filter uses it
    parts = [f"score {exact:.{finest}f}", result.percentile(score)]
    parts.append("not accepted" if below else "")
    hover = f"{html_text(path)}&#10;{', '.join(part for part in parts if part)}"
    image = '<span class="blank">no picture</span>'
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = (
            f'<img width="112" height="112" decoding="async" alt="Face {name}" '
            f'src="data:image/jpeg;base64,{data}">'
        )
    caption = f'<span class="name" aria-hidden="true"><bdi>{head}</bdi><bdi>{tail}</bdi></span>'
    body = f"{image}<b>{shown}{' <i>too low</i>' if below else ''}</b>{caption}"
    inside = (
        f'<span class="plain" title="{hover}">{body}</span>'
        if url is None
        else f'<a href="{escape(url)}" target="_blank" rel="noopener" title="{hover}">{body}</a>'
    )
    more = f' data-g="{group}"' if group >= 0 else ""
    more += ' class="below"' if below else ""
    return f'<li data-t="{tick}"{more}>{inside}</li>\n'


def lacking_section(result: Result) -> str:
    """The groups without an accepted face, or without any score."""
    groups = result.groups
    places = [] if groups is None else groups.lacking()
    if groups is None or not places:
        return ""
    good = "a score" if result.accepted is None else "an accepted face"
    items = []
    for place in places[:MAX_UNSCORED]:
        best = float(groups.best[place])
        why = f"best {number_text(best, result.decimals)}" if groups.scored[place] else "no score"
        items.append(f'{html_text(groups.title(place))} <span class="soft">{why}</span>')
    summary = f"{count_of(len(places), html_text(groups.word))} without {good}"
    return _folded("lacking", summary, "", items, len(places))


def unscored_section(
    rows: npt.NDArray[np.intp], path_of: Callable[[int], str], statuses: Sequence[str]
) -> str:
    """How many images have no score, why, and the first MAX_UNSCORED by name."""
    if not len(rows):
        return ""
    reasons = Counter(statuses[row] for row in rows).most_common()
    common = ", ".join(f"{html_text(reason)}: {count:,}" for reason, count in reasons[:8])
    if len(reasons) > 8:
        common += f", and {count_of(len(reasons) - 8, 'other reason')}"
    items = [
        f'{html_text(path_of(row))} <span class="soft">{html_text(statuses[row])}</span>'
        for row in rows[:MAX_UNSCORED].tolist()
    ]
    summary = f"{count_of(len(rows), 'image')} without a score"
    return _folded("unscored", summary, common, items, len(rows))


def _folded(name: str, summary: str, words: str, items: Sequence[str], count: int) -> str:
    """The first of `count` HTML texts as a list under its summary; open if it is short."""
    text = "".join(f"<li>{item}</li>\n" for item in items)
    if count > len(items):
        text += f"<li>and {count - len(items):,} more</li>\n"
    words = f'<p class="soft reasons">{words}</p>' if words else ""
    return (
        f'<details class="card" id="{name}"{" open" if count <= 20 else ""}>'
        f"<summary>{summary}</summary>{words}<ul>\n{text}</ul></details>"
    )


def script_data(result: Result, *, sampled: bool) -> str:
    """What the page's script needs to count all images, also those that are not shown.

    `ticks` rise. Those from the position `accepted` on are of accepted faces.
    """
    accepted = result.accepted
    data: dict[str, Any] = {"decimals": result.decimals, "finer": FINER, "sampled": sampled}
    data |= {"preset": "all", "accepted": 0, "ticks": [], "counts": []}
    if accepted is not None and accepted.any():
        data["preset"] = "accepted"
    if sampled:
        good = np.ones(len(result.scores), bool) if accepted is None else accepted
        # The two kinds of faces may share one tick: each has its own entry.
        keys = 2 * ticks_of(result.scores, result.decimals + FINER) + good
        found, counts = np.unique(keys, return_counts=True)
        data |= {"ticks": (found // 2).tolist(), "counts": counts.tolist()}
        data["accepted"] = int(np.count_nonzero(found % 2 == 0))
    return json.dumps(data, separators=(",", ":"))
