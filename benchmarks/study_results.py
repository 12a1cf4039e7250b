"""Tables of several evaluations side by side, in Markdown, for docs/results.md.

    python benchmarks/study_results.py --sets "LFW=edc/clean" "degraded LFW=edc/unseen" --rules all

Each folder holds the results.json of an eval_edc.py run with --bootstrap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from common.cli import EXIT_DONE, run_script
from evaluation.edc.results import show
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json

_MAIN = [("recomputed", "images")]
_ALL = [*_MAIN, ("recomputed", "pairs"), ("fixed", "images"), ("fixed", "pairs")]
_AREAS = {"aoc": "AOC", "pauc_0.2": "pAUC(.2)", "pauc_0.3": "pAUC(.3)"}

Cell = dict[str, Any]


def main(
    *,
    sets: tuple[str, ...],
    rules: Literal["main", "all"] = "main",
    areas: tuple[str, ...] = ("aoc",),
    scorers: tuple[str, ...] = (),
) -> int:
    """Prints the tables.

    Args:
        sets: name=<folder of an eval_edc.py run>.
        rules: main: images are discarded and thresholds recomputed; all: the four combinations.
        areas: aoc, pauc_0.2, pauc_0.3.
        scorers: which, in this order; all where none is named.
    """
    for text in sets:
        name, _, folder = text.partition("=")
        if not folder or set(areas) - set(_AREAS):
            raise UserError(f"--sets {text}: must be name=<folder>; --areas: {', '.join(_AREAS)}")
        result = read_json(Path(folder) / "results.json")
        print(f"### {name}\n\n" + "; ".join(result["notes"]) + ".\n")
        for threshold, discard in _MAIN if rules == "main" else _ALL:
            for area in areas:
                chosen = [
                    cell
                    for cell in result["cells"]
                    if (cell["threshold_at"], cell["discard"]) == (threshold, discard)
                ]
                if chosen:
                    table(
                        chosen,
                        f"{_AREAS[area]}, threshold {threshold}, {discard} discarded",
                        area,
                        scorers,
                    )
    return EXIT_DONE


def table(cells: list[Cell], title: str, area: str, scorers: tuple[str, ...]) -> None:
    """One table: a row a scorer, a column a recogniser and FMR."""
    columns = list(dict.fromkeys((cell["recogniser"], cell["fmr"]) for cell in cells))
    rows = scorers or tuple(dict.fromkeys(cell["scorer"] for cell in cells))
    at = {(cell["scorer"], cell["recogniser"], cell["fmr"]): cell for cell in cells}
    print(f"| {title} | " + " | ".join(f"{name} {fmr:g}" for name, fmr in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    errors = [at[(rows[0], *column)] for column in columns]
    print("| errors before any discard | " + " | ".join(_errors(cell) for cell in errors) + " |")
    for row in rows:
        shown = [_number(at[(row, *column)], area) for column in columns]
        print(f"| {row} | " + " | ".join(shown) + " |")
    print()


def _errors(cell: Cell) -> str:
    few = " (few)" if cell["few_errors"] else ""
    if cell["fnmr_at_0"] is None:
        return "-"  # an FMR that the pairs cannot show
    return f"{cell['errors_at_0']:,}, {cell['fnmr_at_0']:.3%}{few}"


def _number(cell: Cell, area: str) -> str:
    value = cell.get(area)
    if value is None:
        return "-"
    low, high = cell.get(f"{area}_low"), cell.get(f"{area}_high")
    span = "" if low is None or high is None else f" [{show(area, low)}, {show(area, high)}]"
    return f"{show(area, value)}{span}"


if __name__ == "__main__":
    run_script(main)
