"""What the sections of the page say of a report: the values that fill template.html."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.contents import Groups, Report
from evaluation.report.histogram import Mark, coarser, histogram, ticks_of
from evaluation.report.text import FINER, number_text, share_text
from sdd_fiqa.number import count_of

_TAIL = 8  # the last characters of a name, which are always shown: names differ there
_FEW = 20  # quantiles of fewer scores say less than the scores themselves
MAX_UNSCORED = 200  # images without a score that are listed by name; all are counted


def lead(report: Report, shown: int) -> dict[str, Any]:
    """What the page is about: its date, counts, and of what it is a sample, if it is one."""
    accepted = 0 if report.accepted is None else int(report.accepted.sum())
    sample = "an even sample from the highest to the lowest score"
    if report.groups is not None:
        sample = f"the best of each {report.group_word}"
    return {
        "made": f"{report.made.day} {report.made:%B %Y} at {report.made:%H:%M}",
        "known": len(report.known) > 0,
        "several": len(report.known) > 1,
        "sample": sample if shown < len(report.known) else "",
        "shown": f"{shown:,}",
        "scored": f"{len(report.known):,}",
        "threshold": report.threshold is not None,
        "accepted": f"{accepted:,}",
        "not_accepted": f"{len(report.known) - accepted:,}",
        "grouped": report.groups is not None,
    }


def answer(report: Report) -> list[dict[str, str]]:
    """How many are accepted, scored and not scored, and why; `list`: a list to link to."""
    cells: list[dict[str, str]] = []

    def say(look: str, name: str, value: str, why: str, place: str = "") -> None:
        cells.append({"look": look, "name": name, "value": value, "why": why, "list": place})

    scored, unscored = len(report.known), len(report.unscored)
    single = scored == 1 and not unscored
    if single:
        score, row = float(report.known[0]), int(np.isfinite(report.scores).argmax())
        say("", "Score", number_text(score, report.decimals), report.percentile(row))
    if report.accepted is not None and report.accept is not None and scored:
        good, share = int(report.accepted.sum()), share_text(report.accept)
        about = f"score {report.threshold:g} or higher, as {share} of the calibration faces have"
        if single:
            verdict = "yes" if good else "no"
            say(verdict, "Accepted", verdict, about)
        else:
            say("yes", "Accepted", f"{good:,}", f"{share_text(good / scored)}: {about}")
            say("no", "Not accepted", f"{scored - good:,}", "a lower score")
    if not single:
        words = f"{report.kind}s" if scored != 1 else report.kind
        if unscored and report.kind == "image":
            words = f"of {count_of(scored + unscored, 'image')}"
        say("", "Scored", f"{scored:,}", words if scored else "no image got a score")
    if unscored:
        say("no", "Not scored", f"{unscored:,}", _reasons(report, 3), "unscored")
    if report.groups is not None:
        groups, without = sum(map(bool, report.groups.names)), len(report.groups.lacking())
        words = f"with {_wanted(report)}" + (f"; {without:,} without" if without else "")
        place = "lacking" if without else ""
        say("", f"{report.group_word.capitalize()}s", f"{groups - without:,}", words, place)
    return cells


def _reasons(report: Report, most: int) -> str:
    """The most frequent reasons for having no score, with their counts."""
    reasons = Counter(report.statuses[row] for row in report.unscored).most_common()
    words = ", ".join(f"{reason}: {count:,}" for reason, count in reasons[:most])
    if len(reasons) > most:
        words += f", and {count_of(len(reasons) - most, 'other reason')}"
    return words


def _wanted(report: Report) -> str:
    """What a group must have, so as not to be listed as lacking it."""
    return "a score" if report.accepted is None else "an accepted face"


def scores(report: Report) -> dict[str, Any]:
    """All scores as a histogram and as numbers, and their range for the filter.

    Of few scores, the numbers are the ends, the median and the mean. Of one or none there is
    nothing to show.
    """
    if len(report.known) < 2:
        return {}
    marks = [
        Mark(float(entry["score"]), share_text(entry["discard"]))
        for entry in (report.calibration or {}).get("thresholds", ())
    ]
    cut = None
    if report.threshold is not None:
        cut = Mark(report.threshold, f"accepted from {number_text(report.threshold, 1)}")
    ticks = coarser(ticks_of(report.known, report.decimals + FINER), FINER)
    drawing = histogram(ticks, report.decimals, marks, report.kind, cut)
    low, five, middle, most, high = np.quantile(report.known, [0, 0.05, 0.5, 0.95, 1])
    numbers = {"Lowest": low, "5 % are below": five, "Median": middle}
    numbers |= {"Mean": report.known.mean(), "5 % are above": most, "Highest": high}
    if len(report.known) < _FEW:
        del numbers["5 % are below"], numbers["5 % are above"]
    return {
        **drawing,
        "dashed": any(mark["look"] == "mark" for mark in drawing["marks"]),
        "numbers": [
            {"name": name, "value": number_text(float(value), report.decimals)}
            for name, value in numbers.items()
        ],
        "step": f"{10.0**-report.decimals:.{report.decimals}f}",
        "lowest": number_text(float(low), report.decimals),
        "highest": number_text(float(high), report.decimals),
    }


def calibration(report: Report) -> list[dict[str, Any]]:
    """The thresholds of the calibration, if there is one, and how many scores are below each."""
    table = report.calibration
    if table is None:
        return []
    thresholds = []
    for entry in table["thresholds"]:
        threshold = f"{entry['score']:.{report.decimals + FINER}f}"
        here = int(np.count_nonzero(report.known < float(threshold)))  # as the filter cuts
        row = {
            "left_out": share_text(entry["discard"]),
            "threshold": threshold,
            "fnmr": "" if entry.get("fnmr") is None else share_text(entry["fnmr"]),
            "here": f"{here:,}",
            "share": share_text(here / len(report.known)) if len(report.known) else "",
        }
        thresholds.append(row)
    about = {
        "thresholds": thresholds,
        "measured": any(row["fnmr"] for row in thresholds),
        "at_fmr": "" if table.get("fmr") is None else f" at FMR {table['fmr']:g}",
        "whose": "faces" if table.get("faces") is None else count_of(int(table["faces"]), "face"),
    }
    return [about]


def group_heading(report: Report, groups: Groups, group: int) -> dict[str, Any]:
    """The name of a group, its best score, and how many of its faces are scored and accepted."""
    words = f"best {number_text(float(groups.best[group]), report.decimals)}, "
    words += count_of(int(groups.scored[group]), "face")
    none = groups.accepted is not None and not groups.accepted[group]
    if groups.accepted is not None:
        words += ", none accepted" if none else f", {groups.accepted[group]:,} accepted"
    name = groups.names[group] or f"no {report.group_word}"
    return {"name": name, "words": words, "none": none}


def face(report: Report, row: int, url: str | None) -> dict[str, Any]:
    """One face: picture, score, name, and a link to `url` if there is one."""
    path, score, finest = report.path_of(row), float(report.scores[row]), report.decimals + FINER
    below = report.accepted is not None and not report.accepted[row]
    tick = int(ticks_of(np.array([score]), finest)[0])
    exact = score if abs(score) >= 1e9 else tick / 10**finest  # as the filter uses it
    parts = [f"score {exact:.{finest}f}", report.percentile(row), "not accepted" if below else ""]
    name, picture = os.path.basename(path) or path, report.thumbnail(row)
    return {
        "tick": tick,
        "group": None if report.groups is None else str(report.groups.place[row]),
        "below": below,
        "url": url,
        "path": path,
        "hover": ", ".join(filter(None, parts)),
        "picture": picture and base64.b64encode(picture).decode("ascii"),
        "score": number_text(score, report.decimals),
        "name": name,
        "head": name[:-_TAIL],
        "tail": name[-_TAIL:],
    }


def lacking(report: Report) -> dict[str, Any]:
    """The groups without an accepted face, or without any score."""
    groups = report.groups
    if groups is None:
        return {"summary": ""}
    places, items = groups.lacking(), []
    for place in places[:MAX_UNSCORED]:
        best = number_text(float(groups.best[place]), report.decimals)
        why = f"best {best}" if groups.scored[place] else "no score"
        items.append({"name": groups.names[place], "why": why})
    summary = f"{count_of(len(places), report.group_word)} without {_wanted(report)}"
    return _listed("lacking", summary, "", items, len(places))


def unscored(report: Report) -> dict[str, Any]:
    """How many images have no score, why, and the first MAX_UNSCORED by name."""
    rows = report.unscored
    items = [
        {"name": report.path_of(row), "why": report.statuses[row]} for row in rows[:MAX_UNSCORED]
    ]
    summary = f"{count_of(len(rows), 'image')} without a score"
    return _listed("unscored", summary, _reasons(report, 8), items, len(rows))


def _listed(
    place: str, summary: str, reasons: str, items: Sequence[Mapping[str, str]], count: int
) -> dict[str, Any]:
    """The first of `count` items under their summary, if there are any; open if they are few."""
    more = count - len(items)
    return {
        "id": place,
        "summary": summary if count else "",
        "open": count <= 20,
        "reasons": reasons,
        "items": items,
        "more": f"{more:,}" if more else "",
    }


def script_data(report: Report, *, sampled: bool) -> str:
    """What the page's script needs to count all images, also those that are not shown, as JSON.

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
