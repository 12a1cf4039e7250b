"""What one evaluation found: Markdown to read, CSV and JSON for programs.

Every number is printed with its three settings: threshold, what is discarded, area.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.edc.advice import Advice
from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.curves import Curve
from evaluation.edc.study import Difference, EdcResult
from sdd_fiqa.files import replacing, write_json

_ADVISED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_NAME = 20  # characters of a name that are shown, so that a row fits 100 columns
_LIKE = (
    "like #: not significantly different from these scorers at this FMR (the interval of the\n"
    "difference contains 0). Scorers with too few errors for an interval are not compared."
)


@dataclass(frozen=True)
class EdcReport:
    """All that one run found.

    Attributes:
        notes: what the numbers are about, a line each: images, pairs, views, seeds.
        results: the table.
        differences: pairs of scorers; empty without a bootstrap.
        advice: by scorer, with the result that it comes from.
        area: the area that orders the table.
        sections: more Markdown: templates and groups.
        more: by name, the same for results.json.
    """

    notes: list[str]
    results: list[EdcResult]
    differences: list[Difference]
    advice: dict[str, tuple[EdcResult, Advice]]
    area: str
    sections: list[str] = field(default_factory=list)
    more: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def markdown(report: EdcReport) -> str:
    """The report as Markdown."""
    parts = ["# Error versus discard", "\n".join(f"- {line}" for line in report.notes)]
    parts += _tables(report)
    if report.differences:
        parts.append(_LIKE)
    if any(result.few_errors for result in report.results):
        parts.append(f"\\* fewer than {FEW_ERRORS} genuine errors at no discard: not reliable")
    refused = dict.fromkeys(_refusals(report.results))
    if refused:
        parts.append("Refused:\n" + "\n".join(f"- {line}" for line in refused))
    for name, (result, advice) in report.advice.items():
        curve = result.curve
        where = f"{result.recogniser}, FMR {curve.fmr:g}, threshold {curve.rules.threshold}"
        parts.append(f"## Advice: {name}\n\n{where}:\n\n{_advice_text(advice)}")
    return "\n\n".join(parts + report.sections) + "\n"


def write_results(folder: Path, report: EdcReport) -> None:
    """Writes results.md, results.csv and results.json; each whole or not at all."""
    with replacing(folder / "results.md") as file:
        file.write(markdown(report))
    rows = [_flat(result) for result in report.results]
    with replacing(folder / "results.csv") as file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({k: "" if _missing(v) else v for k, v in row.items()} for row in rows)
    write_json(folder / "results.json", _without_nan(_as_json(report)))


def title(area: str) -> str:
    """An area's name as a reader would write it."""
    name, _, limit = area.rpartition("_")
    short = limit.removeprefix("0")
    titles = {
        "aoc": "AOC",
        "auc": "AUC 0-.95",
        "pauc": f"pAUC({short})",
        "pauc_raw": f"pAUC({short}) raw e3",
        "stepwise": f"stepwise({short})",
        "best_line": f"best line({short})",
        "best": f"best({short})",
    }
    return titles[name or area]


def show(area: str, value: float) -> str:
    """An area's value, as short as its size allows."""
    if np.isnan(value):
        return "-"
    if area == "aoc" or (area.startswith("pauc_") and "raw" not in area):
        text = f"{value:.3f}"
        return text.replace("0.", ".", 1) if abs(value) < 1 else text
    return f"{value:.3g}"


def _tables(report: EdcReport) -> Iterable[str]:
    """A table for each recogniser and pair of rules, with a row a scorer and FMR."""
    alike = {
        frozenset((id(one.better), id(one.other)))
        for one in report.differences
        if one.low <= 0 <= one.high
    }
    by_table = groupby(report.results, lambda one: (one.recogniser, one.curve.rules))
    for (recogniser, rules), results in by_table:
        rows = [["FMR", "#", "scorer", "FNMR at 0", "errors", title(report.area)]]
        if report.differences:
            rows[0].append("like #")
        for _, group in groupby(results, lambda one: one.curve.fmr):
            numbered = list(enumerate(group, 1))
            for number, one in numbered:
                rows.append(_row(one, number, report.area))
                if report.differences:
                    own = [n for n, other in numbered if frozenset((id(one), id(other))) in alike]
                    rows[-1].append(_ranges(own))
        heading = f"## {recogniser}: threshold {rules.threshold}, {rules.discard} discarded"
        yield f"{heading}\n\n{table(rows)}"


def _row(result: EdcResult, number: int, area: str) -> list[str]:
    """A row of the table; if the area is refused, it shows the next one, which orders instead."""
    curve = result.curve
    known = [other for other in result.areas if not np.isnan(result.areas[other])]
    text = show(area, result.areas[area])
    if area not in known and known:
        text = f"{title(known[0])} {show(known[0], result.areas[known[0]])}"
    elif area in result.intervals:
        text += between(result.intervals[area], partial(show, area))
    fnmr, errors = f"{float(curve.fnmr[0]):.3%}", counted(curve.errors[0])
    return [f"{curve.fmr:g}", f"{number}", short(result.scorer), fnmr, errors, text]


def _ranges(numbers: Sequence[int]) -> str:
    """Rising whole numbers, runs of three or more shortened.

    >>> _ranges([1, 3, 4, 5, 7, 8])
    '1, 3-5, 7, 8'
    """
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if numbers else []
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _advice_text(advice: Advice) -> str:
    places = {int(np.abs(advice.shares - share).argmin()) for share in _ADVISED}
    keep = "keep scores from" if advice.sign > 0 else "keep scores up to"
    rows = [["discard of images", keep, "FNMR left", "errors", ""]]
    for place in sorted(places | ({advice.enough} if advice.enough is not None else set())):
        mark = "discarding more stops helping" if place == advice.enough else ""
        share, fnmr = f"{advice.shares[place]:.1%}", f"{advice.fnmr[place]:.4%}"
        score = repr(advice.sign * float(advice.thresholds[place]) + 0.0)
        rows.append([share, score, fnmr, f"{advice.errors[place]}", mark])
    return table(rows) + (f"\n\n{advice.unknown}" if advice.unknown else "")


def _refusals(results: Sequence[EdcResult]) -> Iterable[str]:
    for result in results:
        curve = result.curve
        rules = f"{curve.rules.threshold}, {curve.rules.discard}"
        if result.refused:
            yield f"{result.recogniser}, {rules}: {result.refused}"
        elif curve.errors[0] == 0:
            yield (
                f"{result.recogniser}, {rules}: no genuine error at FMR {curve.fmr:g}, so areas"
                " relative to g(0) have no value"
            )


def short(name: str) -> str:
    """A name as a table shows it: the middle of a long one is left out."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 2]}...{name[1 - _NAME // 2 :]}"


def counted(errors: int) -> str:
    """A number of errors as a table shows it: too few are marked."""
    return f"{errors} *" if errors < FEW_ERRORS else f"{errors}"


def between(ends: tuple[float, float], text: Callable[[float], str]) -> str:
    """An interval as a table shows it; empty where there is none."""
    return "" if np.isnan(ends[0]) else f" [{text(ends[0])}, {text(ends[1])}]"


def table(rows: list[list[str]]) -> str:
    """A Markdown table of the rows, the first of which is its head."""
    cells = [[field.replace("|", "\\|") for field in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return "\n".join(lines)


def _flat(result: EdcResult) -> dict[str, Any]:
    """One line of the CSV."""
    curve = result.curve
    row: dict[str, Any] = {
        "recogniser": result.recogniser,
        "scorer": result.scorer,
        "fmr": curve.fmr,
        "threshold_at": curve.rules.threshold,
        "discard": curve.rules.discard,
        "fnmr_at_0": float(curve.fnmr[0]),
        "errors_at_0": _error_counts(curve)[0],
        "genuine": int(curve.genuine[0]),
        "impostors": int(curve.impostors[0]),
        "smallest_fmr": 1.0 / int(curve.impostors[0]),
        "largest_phi": curve.reach,
        "few_errors": int(result.few_errors),
        "refused": result.refused or "",
        **result.areas,
    }
    for name, (low, high) in result.intervals.items():
        row[f"{name}_low"], row[f"{name}_high"] = low, high
    return row


def _as_json(report: EdcReport) -> dict[str, Any]:
    cells = []
    for result in report.results:
        curve = result.curve
        points = {
            "shares": curve.shares.tolist(),
            "fnmr": curve.fnmr.tolist(),
            "genuine": curve.genuine.tolist(),
            "impostors": curve.impostors.tolist(),
            "decision_thresholds": curve.thresholds.tolist(),
            "score_thresholds": curve.scores.tolist(),
            "errors": _error_counts(curve),
        }
        cells.append({**_flat(result), "curve": points})
    compared = [
        {
            "recogniser": one.better.recogniser,
            "fmr": one.better.curve.fmr,
            "threshold_at": one.better.curve.rules.threshold,
            "discard": one.better.curve.rules.discard,
            "area": report.area,
            "better": one.better.scorer,
            "other": one.other.scorer,
            "difference": one.value,
            "low": one.low,
            "high": one.high,
            "told_apart": None if np.isnan(one.low) else one.significant,
        }
        for one in report.differences
    ]
    return {
        "notes": report.notes,
        "area": report.area,
        "cells": cells,
        "differences": compared,
        "advice": {name: one.as_json() for name, (_, one) in report.advice.items()},
        **report.more,
    }


def _error_counts(curve: Curve) -> list[int | None]:
    """The errors of each point; None where there is no threshold to count them by."""
    known = ~np.isnan(curve.fnmr)
    return [int(count) if good else None for count, good in zip(curve.errors, known, strict=True)]


def _without_nan(value: Any) -> Any:
    """The same with null for every missing number: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if _missing(value) else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))
