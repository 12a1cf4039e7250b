"""What one evaluation found: Markdown to read, CSV and JSON for programs.

Every number is printed with its three settings: threshold, what is discarded, area.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.edc.advice import Advice
from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.curves import Curve
from evaluation.edc.study import Difference, EdcResult
from sdd_fiqa.files import replacing, write_json

_ADVISED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class EdcReport:
    """All that one run found.

    Attributes:
        notes: what the numbers are about, a line each: images, pairs, views, seeds.
        results: the table.
        differences: pairs of scorers; empty without a bootstrap.
        advice: by scorer, with the result that it comes from.
        area: the area that orders the table.
    """

    notes: list[str]
    results: list[EdcResult]
    differences: list[Difference]
    advice: dict[str, tuple[EdcResult, Advice]]
    area: str


def markdown(report: EdcReport) -> str:
    """The report as Markdown."""
    parts = ["# Error versus discard", "\n".join(f"- {line}" for line in report.notes)]
    parts.append(_main_table(report))
    if any(result.few_errors for result in report.results):
        parts.append(f"\\* fewer than {FEW_ERRORS} genuine errors at no discard: not reliable")
    refused = dict.fromkeys(_refusals(report.results))
    if refused:
        parts.append("Refused:\n" + "\n".join(f"- {line}" for line in refused))
    for name, (result, advice) in report.advice.items():
        rules = result.curve.rules
        where = f"{result.recogniser}, FMR {result.curve.fmr:g}, threshold {rules.threshold}"
        table = _advice_table(advice, rules.discard)
        parts.append(f"## Advice: {name}\n\n{where}:\n\n{table}")
    return "\n\n".join(parts) + "\n"


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


def _main_table(report: EdcReport) -> str:
    names = list(dict.fromkeys(name for result in report.results for name in result.areas))
    names = [report.area, *(name for name in names if name != report.area)]
    head = ["recogniser", "FMR", "threshold", "discards", "scorer", "FNMR at 0", "errors"]
    rows = [[*head, "smallest FMR", *(title(name) for name in names)]]
    if report.differences:
        rows[0].append(f"{title(report.area)} not significantly different from")
    for result in report.results:
        curve = result.curve
        start, mark = float(curve.fnmr[0]), " *" if result.few_errors else ""
        row = [
            result.recogniser,
            f"{curve.fmr:g}",
            curve.rules.threshold,
            curve.rules.discard,
            result.scorer,
            "-" if np.isnan(start) else f"{start:.3%}",
            "-" if np.isnan(start) else f"{int(curve.errors[0])}{mark}",
            f"{result.smallest_fmr:.1e}",
        ]
        for name in names:
            text = show(name, result.areas.get(name, np.nan))
            if name == report.area and name in result.intervals and text != "-":
                low, high = (show(name, end) for end in result.intervals[name])
                text += f" [{low}, {high}]"
            row.append(text)
        if report.differences:
            row.append(", ".join(_alike(result, report.differences)))
        rows.append(row)
    return _table(rows)


def _alike(result: EdcResult, differences: Sequence[Difference]) -> Iterable[str]:
    """The scorers whose difference to this one may be chance."""
    for one in differences:
        alike = not one.significant and not np.isnan(one.value)
        if alike and (result is one.better or result is one.other):
            yield one.other.scorer if result is one.better else one.better.scorer


def _advice_table(advice: Advice, discards: str) -> str:
    places = {int(np.abs(advice.shares - share).argmin()) for share in _ADVISED}
    rows = [[f"discard of {discards}", "keep scores from", "FNMR left", ""]]
    for place in sorted(places | {advice.enough}):
        mark = "discarding more stops helping" if place == advice.enough else ""
        share, fnmr = f"{advice.shares[place]:.1%}", f"{advice.fnmr[place]:.4%}"
        rows.append([share, f"{advice.thresholds[place]:.6g}", fnmr, mark])
    return _table(rows)


def _refusals(results: Sequence[EdcResult]) -> Iterable[str]:
    for result in results:
        curve = result.curve
        rules = f"{curve.rules.threshold}, {curve.rules.discard}"
        if result.refused:
            yield f"{result.recogniser}, {result.scorer}, {rules}: {result.refused}"
        elif curve.errors[0] == 0:
            yield (
                f"{result.recogniser}, {rules}: no genuine error at FMR {curve.fmr:g}, so areas"
                " relative to g(0) have no value"
            )


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(field.replace("|", "\\|") for field in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
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
        "errors_at_0": _counted(curve)[0],
        "genuine": int(curve.genuine[0]),
        "impostors": int(curve.impostors[0]),
        "smallest_fmr": result.smallest_fmr,
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
        points: dict[str, npt.NDArray[Any]] = {
            "shares": curve.shares,
            "fnmr": curve.fnmr,
            "genuine": curve.genuine,
            "impostors": curve.impostors,
            "decision_thresholds": curve.thresholds,
            "score_thresholds": curve.levels.score[curve.cuts],
        }
        lists = {name: values.tolist() for name, values in points.items()}
        cells.append({**_flat(result), "curve": {**lists, "errors": _counted(curve)}})
    compared = [
        {
            "recogniser": one.better.recogniser,
            "fmr": one.better.curve.fmr,
            "threshold_at": one.better.curve.rules.threshold,
            "discard": one.better.curve.rules.discard,
            "area": one.area,
            "better": one.better.scorer,
            "other": one.other.scorer,
            "difference": one.value,
            "low": one.low,
            "high": one.high,
            "told_apart": one.significant,
        }
        for one in report.differences
    ]
    return {
        "notes": report.notes,
        "area": report.area,
        "cells": cells,
        "differences": compared,
        "advice": {name: one.as_json() for name, (_, one) in report.advice.items()},
    }


def _counted(curve: Curve) -> list[int | None]:
    """The errors of each point; None where there is no threshold to count them by."""
    known = ~np.isnan(curve.fnmr)
    return [int(count) if good else None for count, good in zip(curve.errors, known, strict=True)]


def _without_nan(value: Any) -> Any:
    """The same with null for every missing number: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if _missing(value) else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))
