"""The evaluator's table: markdown to read, CSV and JSON to compute with.

Every number stands beside its three settings: threshold, what is discarded, area.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.edc.advice import Advice
from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.curves import Curve
from evaluation.edc.study import Cell, Difference
from sdd_fiqa.files import replacing, write_json

_ADVISED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_TITLES = {"aoc": "AOC", "auc": "AUC 0-.95"}


@dataclass(frozen=True)
class Report:
    """All that one run found.

    Attributes:
        notes: what the numbers are about, a line each: images, pairs, views, seeds.
        cells: the table.
        differences: pairs of scorers; empty without a bootstrap.
        advice: by the scorer's name, with the cell it was taken from.
        area: the area that orders the table.
    """

    notes: list[str]
    cells: list[Cell]
    differences: list[Difference]
    advice: dict[str, tuple[Cell, Advice]]
    area: str


def markdown(report: Report) -> str:
    """The report as markdown."""
    parts = ["# Error versus discard", "\n".join(f"- {line}" for line in report.notes)]
    parts.append(_main_table(report))
    marked = [cell for cell in report.cells if cell.few_errors]
    if marked:
        parts.append(
            f"\\* fewer than {FEW_ERRORS} genuine errors at no discard: not to be relied on"
        )
    refused = dict.fromkeys(_refusals(report.cells))
    if refused:
        parts.append("Refused:\n" + "\n".join(f"- {line}" for line in refused))
    for name, (cell, advice) in report.advice.items():
        rules = cell.curve.rules
        where = f"{cell.recogniser}, FMR {cell.curve.fmr:g}, threshold {rules.threshold}"
        table = _advice_table(advice, rules.discard)
        parts.append(f"## Advice: {name}\n\n{where}:\n\n{table}")
    return "\n\n".join(parts) + "\n"


def write_results(folder: Path, report: Report) -> list[Path]:
    """Writes results.md, results.csv and results.json; each whole or not at all."""
    paths = [folder / f"results.{suffix}" for suffix in ("md", "csv", "json")]
    with replacing(paths[0]) as file:
        file.write(markdown(report))
    rows = [_flat(cell) for cell in report.cells]
    with replacing(paths[1]) as file:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows({k: "" if _nothing(v) else v for k, v in row.items()} for row in rows)
    write_json(paths[2], _as_json(report))
    return paths


def write_calibration(path: Path, cell: Cell, advice: Advice) -> None:
    """Writes what scoring needs: shares of images discarded, score thresholds, FNMR left."""
    content = {
        "shares": advice.shares.tolist(),
        "thresholds": advice.thresholds.tolist(),
        "fnmr": advice.fnmr.tolist(),
        "fmr": cell.curve.fmr,
        "recogniser": cell.recogniser,
        "scorer": cell.scorer,
        "threshold_at": cell.curve.rules.threshold,
        "discard": cell.curve.rules.discard,
        "enough": float(advice.shares[advice.enough]),
    }
    write_json(path, content)


def title(area: str) -> str:
    """An area's name as a reader would write it."""
    name, _, limit = area.rpartition("_")
    short = limit.removeprefix("0")
    titles = {
        "pauc": f"pAUC({short})",
        "pauc_raw": f"pAUC({short}) raw e3",
        "stepwise": f"stepwise({short})",
        "best_line": f"best line({short})",
        "best": f"best({short})",
    }
    return _TITLES.get(area) or titles[name]


def show(area: str, value: float) -> str:
    """An area's value, as short as its size allows."""
    if np.isnan(value):
        return "-"
    if area == "aoc" or (area.startswith("pauc_") and "raw" not in area):
        text = f"{value:.3f}"
        return text.replace("0.", ".", 1) if abs(value) < 1 else text
    return f"{value:.3g}"


def _main_table(report: Report) -> str:
    names = list(dict.fromkeys(name for cell in report.cells for name in cell.areas))
    names = [report.area, *(name for name in names if name != report.area)]
    head = ["recogniser", "FMR", "threshold", "discards", "scorer", "FNMR at 0", "errors"]
    rows = [[*head, "smallest FMR", *(title(name) for name in names)]]
    if report.differences:
        rows[0].append(f"{title(report.area)} not told apart from")
    for cell in report.cells:
        curve = cell.curve
        start = float(curve.fnmr[0])
        row = [
            cell.recogniser,
            f"{curve.fmr:g}",
            curve.rules.threshold,
            curve.rules.discard,
            cell.scorer,
            "-" if np.isnan(start) else f"{start:.3%}",
            "-" if np.isnan(start) else f"{int(curve.errors[0])}{' *' if cell.few_errors else ''}",
            f"{cell.smallest_fmr:.1e}",
        ]
        for name in names:
            text = show(name, cell.areas.get(name, np.nan))
            if name == report.area and name in cell.intervals and text != "-":
                low, high = (show(name, end) for end in cell.intervals[name])
                text += f" [{low}, {high}]"
            row.append(text)
        if report.differences:
            row.append(", ".join(_alike(cell, report.differences)))
        rows.append(row)
    return _table(rows)


def _alike(cell: Cell, differences: Sequence[Difference]) -> Iterable[str]:
    """The scorers whose difference to this one may be chance."""
    for one in differences:
        alike = not one.told_apart and not np.isnan(one.value)
        if alike and (cell is one.better or cell is one.other):
            yield one.other.scorer if cell is one.better else one.better.scorer


def _advice_table(advice: Advice, discards: str) -> str:
    places = {int(np.abs(advice.shares - share).argmin()) for share in _ADVISED}
    rows = [[f"discard of {discards}", "keep scores from", "FNMR left", ""]]
    for place in sorted(places | {advice.enough}):
        mark = "discarding more stops helping" if place == advice.enough else ""
        rows.append(
            [
                f"{advice.shares[place]:.1%}",
                f"{advice.thresholds[place]:.6g}",
                f"{advice.fnmr[place]:.4%}",
                mark,
            ]
        )
    return _table(rows)


def _refusals(cells: Sequence[Cell]) -> Iterable[str]:
    for cell in cells:
        rules = f"{cell.curve.rules.threshold}, {cell.curve.rules.discard}"
        if cell.refused:
            yield f"{cell.recogniser}, {cell.scorer}, {rules}: {cell.refused}"
        elif cell.curve.errors[0] == 0:
            yield (
                f"{cell.recogniser}, {rules}: no genuine error at FMR {cell.curve.fmr:g}; areas"
                " relative to g(0) mean nothing"
            )


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(field.replace("|", "\\|") for field in row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def _flat(cell: Cell) -> dict[str, Any]:
    """One line of the CSV."""
    curve = cell.curve
    row: dict[str, Any] = {
        "recogniser": cell.recogniser,
        "scorer": cell.scorer,
        "fmr": curve.fmr,
        "threshold_at": curve.rules.threshold,
        "discard": curve.rules.discard,
        "fnmr_at_0": float(curve.fnmr[0]),
        "errors_at_0": _counted(curve)[0],
        "genuine": int(curve.genuine[0]),
        "impostors": int(curve.impostors[0]),
        "smallest_fmr": cell.smallest_fmr,
        "largest_phi": curve.reach,
        "few_errors": int(cell.few_errors),
        "refused": cell.refused or "",
        **cell.areas,
    }
    for name, (low, high) in cell.intervals.items():
        row[f"{name}_low"], row[f"{name}_high"] = low, high
    return row


def _as_json(report: Report) -> dict[str, Any]:
    cells = []
    for cell in report.cells:
        points: dict[str, npt.NDArray[Any]] = {
            "shares": cell.curve.shares,
            "fnmr": cell.curve.fnmr,
            "genuine": cell.curve.genuine,
            "impostors": cell.curve.impostors,
            "decision_thresholds": cell.curve.thresholds,
            "score_thresholds": cell.curve.levels.score[cell.curve.cuts],
        }
        lists = {name: values.tolist() for name, values in points.items()}
        cells.append({**_flat(cell), "curve": {**lists, "errors": _counted(cell.curve)}})
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
            "told_apart": one.told_apart,
        }
        for one in report.differences
    ]
    advice = {
        name: {
            "shares": one.shares.tolist(),
            "thresholds": one.thresholds.tolist(),
            "fnmr": one.fnmr.tolist(),
            "enough": float(one.shares[one.enough]),
        }
        for name, (_, one) in report.advice.items()
    }
    content = {
        "notes": report.notes,
        "area": report.area,
        "cells": cells,
        "differences": compared,
        "advice": advice,
    }
    cleaned: dict[str, Any] = json.loads(json.dumps(_without_nan(content)))
    return cleaned


def _counted(curve: Curve) -> list[int | None]:
    """The errors of each point; None where there is no threshold to count them by."""
    known = ~np.isnan(curve.fnmr)
    return [int(count) if good else None for count, good in zip(curve.errors, known, strict=True)]


def _without_nan(value: Any) -> Any:
    """The same with null where a number could not be had: NaN is not JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if _nothing(value) else value


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))
