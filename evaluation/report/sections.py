"""The parts of the report page as HTML text; every string from outside is escaped."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from evaluation.report.contents import Report
from evaluation.report.histogram import Mark, coarser, histogram_svg, ticks_of
from evaluation.report.text import FINER, html_text, number_text, share_text
from sdd_fiqa.number import count_of

_TAIL = 8  # the last characters of a name, which are always shown: names differ there
_FEW = 20  # quantiles of fewer scores say less than the scores themselves
MAX_UNSCORED = 200  # images without a score that are listed by name; all are counted
_MEANINGS = {  # {}: whose faces
    "Calibration faces": "{} of people that the model did not see in training. A threshold is set "
    "on them. On other cameras the shares differ.",
    "Left out": "the share of the calibration faces that score below the threshold.",
    "Threshold": "the lowest score to keep. Click it to see the faces from there up.",
    "FNMR left": "the false non-match rate: of two pictures of one person, how often a face "
    "recogniser does not see that they match. It is measured on the calibration faces that are "
    "kept.",
    "FMR": "the false match rate: of two pictures of two people, how often the recogniser takes "
    "them for one. The FNMR depends on it.",
    "Below it here": "how many of your faces score lower.",
}


def lead(report: Report, shown: int) -> str:
    """Model and date, what a score says, and whether the page is a sample."""
    made, scored = report.made, len(report.known)
    about = f", {html_text(report.model_about)}" if report.model_about else ""
    words = (
        f"Scored by <strong>{html_text(report.model_name)}</strong>{about}, on {made.day} "
        f"{made:%B %Y} at {made:%H:%M}."
    )
    if scored:
        words += " A face with a higher score is easier to recognise."
    if shown < scored:
        which = "an even sample from the highest to the lowest score"
        if report.groups is not None:
            which = f"the best of each {html_text(report.group_word)}"
        words += (
            f" Shown: {shown:,} of {scored:,} scored faces, {which}; "
            f"the other numbers are of all {report.kind}s."
        )
    return words


def answer(report: Report) -> str:
    """How many are accepted, scored and not scored, and why."""
    cells = []
    scored, unscored = len(report.known), len(report.unscored)
    single = scored == 1 and not unscored
    if single:
        score = float(report.known[0])
        cells.append(("", "Score", number_text(score, report.decimals), report.percentile(score)))
    if report.accepted is not None and report.accept is not None and scored:
        good, share = int(report.accepted.sum()), share_text(report.accept)
        about = f"score {report.threshold:g} or higher, as {share} of the calibration faces have"
        if single:
            verdict = "yes" if good else "no"
            cells.append((verdict, "Accepted", verdict, about))
        else:
            cells.append(("yes", "Accepted", f"{good:,}", f"{share_text(good / scored)}: {about}"))
            cells.append(("no", "Not accepted", f"{scored - good:,}", "a lower score"))
    if not single:
        words = f"{report.kind}s" if scored != 1 else report.kind
        if unscored and report.kind == "image":
            words = f"of {count_of(scored + unscored, 'image')}"
        cells.append(("", "Scored", f"{scored:,}", words if scored else "no image got a score"))
    if unscored:
        why = f'{_reasons(report, 3)}. <a href="#unscored">List</a>'
        cells.append(("no", "Not scored", f"{unscored:,}", why))
    if report.groups is not None:
        groups, without = sum(map(bool, report.groups.names)), len(report.groups.lacking())
        words = f"with {_wanted(report)}"
        if without:
            words += f'; {without:,} without. <a href="#lacking">List</a>'
        name = html_text(report.group_word.capitalize())
        cells.append(("", f"{name}s", f"{groups - without:,}", words))
    text = "".join(
        f'<div class="{look}"><dt>{name}</dt><dd>{value}</dd><dd class="why">{why}</dd></div>'
        for look, name, value, why in cells
    )
    return f'<dl class="answer">{text}</dl>'


def _reasons(report: Report, most: int) -> str:
    """The most frequent reasons for having no score, with their counts."""
    reasons = Counter(report.statuses[row] for row in report.unscored).most_common()
    words = ", ".join(f"{html_text(reason)}: {count:,}" for reason, count in reasons[:most])
    if len(reasons) > most:
        words += f", and {count_of(len(reasons) - most, 'other reason')}"
    return words


def _wanted(report: Report) -> str:
    """What a group must have, so as not to be listed as lacking it."""
    return "a score" if report.accepted is None else "an accepted face"


def panels(report: Report) -> str:
    """Histogram, numbers, calibration and command line, which a narrow screen folds away."""
    return (
        f'<details class="fold"{" open" if len(report.known) > 1 else ""}>'
        "<summary>Details</summary>\n"
        f'<div class="panels">{_histogram(report)}{_calibration(report)}'
        f'<p class="wide soft">Made by <code>{html_text(report.command)}</code></p></div></details>'
    )


def _histogram(report: Report) -> str:
    """All scores as a histogram, with the thresholds drawn on it, and as numbers."""
    if len(report.known) < 2:
        return ""
    marks = [
        Mark(float(entry["score"]), share_text(entry["discard"]))
        for entry in (report.calibration or {}).get("thresholds", ())
    ]
    cut = None
    if report.threshold is not None:
        cut = Mark(report.threshold, f"accepted from {number_text(report.threshold, 1)}")
    ticks = coarser(ticks_of(report.known, report.decimals + FINER), FINER)
    drawing = histogram_svg(ticks, report.decimals, marks, report.kind, cut)
    hint = "Drag over the bars to show only the faces of a range."
    if 'class="mark"' in drawing:  # a mark outside the axis is not drawn
        hint += " Dashed: this share of the calibration faces scores lower."
    return (
        f'<section class="card"><h2>Scores</h2>\n{drawing}\n<p class="hint">{hint}</p>'
        f"{_numbers(report)}</section>"
    )


def _numbers(report: Report) -> str:
    """Mean and quantiles; of few scores only the ends and the median."""
    scores = report.known
    low, five, middle, most, high = np.quantile(scores, [0, 0.05, 0.5, 0.95, 1])
    entries = [("Lowest", low), ("Median", middle), ("Mean", scores.mean()), ("Highest", high)]
    if len(scores) >= _FEW:
        entries[1:1] = [("5 % are below", five)]
        entries[-1:-1] = [("5 % are above", most)]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{number_text(float(value), report.decimals)}</dd></div>"
        for name, value in entries
    )
    return f'<dl class="numbers">{cells}</dl>'


def _calibration(report: Report) -> str:
    """The thresholds of the calibration, how many scores are below each, and what it all means."""
    table, scores = report.calibration, report.known
    if table is None:
        return ""
    whose = count_of(int(table["faces"]), "face") if table.get("faces") is not None else "faces"
    measured = any(entry.get("fnmr") is not None for entry in table["thresholds"])
    rows = []
    for entry in table["thresholds"]:
        threshold = f"{entry['score']:.{report.decimals + FINER}f}"
        here = int(np.count_nonzero(scores < float(threshold)))  # as the filter cuts
        share = share_text(here / len(scores)) if len(scores) else ""
        fnmr = "" if entry.get("fnmr") is None else share_text(entry["fnmr"])
        rows.append(
            f"<tr><td>{share_text(entry['discard'])}</td>"
            f'<td><a href="#min={threshold}">{threshold}</a></td>'
            f"{f'<td>{fnmr}</td>' if measured else ''}<td>{here:,} ({share})</td></tr>"
        )
    fmr = f" at FMR {table['fmr']:g}" if table.get("fmr") is not None else ""
    left = f"<th>FNMR left{fmr}</th>" if measured else ""
    meanings = "".join(
        f"<dt>{word}</dt><dd>{meaning.format(whose)}</dd>"
        for word, meaning in _MEANINGS.items()
        if measured or word not in ("FNMR left", "FMR")
    )
    return (
        '<section class="card"><h2>Calibration</h2>\n'
        '<p class="soft">Where to cut, to leave out the worst faces.</p>\n'
        '<div class="scroll"><table><thead><tr><th>Left out</th><th>Threshold</th>'
        f"{left}<th>Below it here</th></tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        "<details><summary>What the words mean</summary>"
        f'<dl class="words">{meanings}</dl></details></section>'
    )


def filter_tools(report: Report) -> str:
    """The controls: range, acceptance, order, name, copy, and how many faces remain."""
    if len(report.known) < 2:
        return ""
    step = f"{10.0**-report.decimals:.{report.decimals}f}"

    def field(name: str, label: str, end: float) -> str:
        return (
            f'<input type="number" id="{name}" step="{step}" '
            f'placeholder="{number_text(end, report.decimals)}" aria-label="{label}">'
        )

    def choice(name: str, label: str, options: Mapping[str, str]) -> str:
        inside = "".join(f'<option value="{key}">{text}</option>' for key, text in options.items())
        return f'<select id="{name}" aria-label="{label}">{inside}</select>'

    orders = {"desc": "highest first", "asc": "lowest first"}
    if report.groups is not None:
        orders = {"group": f"by {html_text(report.group_word)}", **orders}
    which = ""
    if report.accepted is not None:
        good = int(report.accepted.sum())
        kinds = {
            "all": "all faces",
            "accepted": f"accepted ({good:,})",
            "rest": f"not accepted ({len(report.known) - good:,})",
        }
        which = choice("show", "Which faces", kinds)
    low, high = float(report.known.min()), float(report.known.max())
    return (
        f'<div class="tools script-only" role="search">{which}'
        '<input type="search" id="name" placeholder="Name" aria-label="Part of the name">'
        f'<fieldset><span class="word">Score from</span>{field("low", "Lowest score shown", low)}'
        f"<span>to</span>{field('high', 'Highest score shown', high)}</fieldset>"
        f'<label><span class="word">Order</span>{choice("order", "Order", orders)}</label>'
        '<button type="button" id="reset" disabled>Show all</button>'
        '<button type="button" id="copy" title="Copies the paths of the faces shown, one a line">'
        "Copy paths</button>"
        '<output id="shown" for="low high" aria-live="polite"></output></div>'
    )


def group_heading(report: Report, group: int) -> str:
    """The name of a group, its best score, and how many of its faces are scored and accepted."""
    groups = report.groups
    assert groups is not None
    words = f"best {number_text(float(groups.best[group]), report.decimals)}, "
    words += count_of(int(groups.scored[group]), "face")
    look = ""
    if groups.accepted is not None:
        count = int(groups.accepted[group])
        words += f", {count:,} accepted" if count else ", none accepted"
        look = "" if count else " below"
    name = html_text(groups.names[group] or f"no {report.group_word}")
    return f'<li class="group{look}"><h3><bdi>{name}</bdi></h3><span>{words}</span></li>\n'


def face_item(report: Report, row: int, url: str | None) -> str:
    """One face: picture, score, name, and a link to `url` if there is one."""
    path, score, finest = report.path_of(row), float(report.scores[row]), report.decimals + FINER
    below = report.accepted is not None and not report.accepted[row]
    tick = int(ticks_of(np.array([score]), finest)[0])
    base, shown = os.path.basename(path) or path, number_text(score, report.decimals)
    name, head, tail = (html_text(text) for text in (base, base[:-_TAIL], base[-_TAIL:]))
    exact = score if abs(score) >= 1e9 else tick / 10**finest  # as the filter uses it
    parts = [f"score {exact:.{finest}f}", report.percentile(score), "not accepted" if below else ""]
    hover = f"{html_text(path)}&#10;{', '.join(filter(None, parts))}"
    image, picture = '<span class="blank">no picture</span>', report.thumbnail(row)
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
    more = "" if report.groups is None else f' data-g="{report.groups.place[row]}"'
    more += ' class="below"' if below else ""
    return f'<li data-t="{tick}"{more}>{inside}</li>\n'


def lacking_section(report: Report) -> str:
    """The groups without an accepted face, or without any score."""
    groups = report.groups
    places = [] if groups is None else groups.lacking()
    if groups is None or not places:
        return ""
    items = []
    for place in places[:MAX_UNSCORED]:
        best = number_text(float(groups.best[place]), report.decimals)
        why = f"best {best}" if groups.scored[place] else "no score"
        items.append(f'{html_text(groups.names[place])} <span class="soft">{why}</span>')
    summary = f"{count_of(len(places), html_text(report.group_word))} without {_wanted(report)}"
    return _folded("lacking", summary, "", items, len(places))


def unscored_section(report: Report) -> str:
    """How many images have no score, why, and the first MAX_UNSCORED by name."""
    rows = report.unscored
    if not rows:
        return ""
    items = [
        f'{html_text(report.path_of(row))} <span class="soft">'
        f"{html_text(report.statuses[row])}</span>"
        for row in rows[:MAX_UNSCORED]
    ]
    words = f'<p class="soft reasons">{_reasons(report, 8)}</p>'
    summary = f"{count_of(len(rows), 'image')} without a score"
    return _folded("unscored", summary, words, items, len(rows))


def _folded(name: str, summary: str, words: str, items: Sequence[str], count: int) -> str:
    """The first of `count` HTML texts as a list under its summary; open if it is short."""
    text = "".join(f"<li>{item}</li>\n" for item in items)
    if count > len(items):
        text += f"<li>and {count - len(items):,} more</li>\n"
    return (
        f'<details class="card" id="{name}"{" open" if count <= 20 else ""}>'
        f"<summary>{summary}</summary>{words}<ul>\n{text}</ul></details>"
    )


def script_data(report: Report, *, sampled: bool) -> str:
    """What the page's script needs to count all images, also those that are not shown.

    `ticks` rise. Those from the position `accepted` on are of accepted faces.
    """
    data: dict[str, Any] = {"decimals": report.decimals, "finer": FINER, "sampled": sampled}
    data |= {"preset": "all", "accepted": 0, "ticks": [], "counts": []}
    accepted, scored = report.accepted, np.isfinite(report.scores)
    if accepted is not None and accepted.any():
        data["preset"] = "accepted"
    if sampled:
        good = scored[scored] if accepted is None else accepted[scored]
        # The two kinds of faces may share one tick: each has its own entry.
        keys = 2 * ticks_of(report.known, report.decimals + FINER) + good
        found, counts = np.unique(keys, return_counts=True)
        data |= {"ticks": (found // 2).tolist(), "counts": counts.tolist()}
        data["accepted"] = int(np.count_nonzero(found % 2 == 0))
    return json.dumps(data, separators=(",", ":"))
