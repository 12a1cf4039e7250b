"""Prints the result tables in Markdown: the measured ones, or those of new runs.

    python benchmarks/study_results.py                     the tables in benchmarks/tables
    python benchmarks/study_results.py --rules all --areas aoc pauc_0.2 pauc_0.3
    python benchmarks/study_results.py --sets "LFW=edc/clean" "degraded LFW=edc/mild" --save DIR

benchmarks/tables/sets.csv names the test sets; each has a CSV file with the columns of the
results.csv that eval_edc.py writes, values rounded to three decimals. docs/results.md says what the
sets are. AOC: higher is better. pAUC: lower is better, about 1 is useless. A dash: that area has no
value, because too few pairs are left for the FMR.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.cli import EXIT_DONE, run_script
from evaluation.edc.results import show
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing

TABLES = Path(__file__).resolve().parent / "tables"
_MAIN = [("recomputed", "images")]
_ALL = [*_MAIN, ("recomputed", "pairs"), ("fixed", "images"), ("fixed", "pairs")]
_AREAS = {"aoc": "AOC", "pauc_0.2": "pAUC(.2)", "pauc_0.3": "pAUC(.3)"}
_COLUMNS = [
    *("recogniser", "scorer", "fmr", "threshold_at", "discard"),
    *("fnmr_at_0", "errors_at_0", "few_errors"),
    *(f"{area}{end}" for area in _AREAS for end in ("", "_low", "_high")),
]

Row = dict[str, str]


@dataclass(frozen=True)
class ResultSet:
    """The results on one test set: its name, what was counted, and the rows of a results.csv."""

    name: str
    notes: str
    rows: list[Row]


def main(
    *,
    sets: tuple[str, ...] = (),
    rules: Literal["main", "all"] = "main",
    areas: tuple[str, ...] = ("aoc",),
    scorers: tuple[str, ...] = (),
    save: Path | None = None,
) -> int:
    """Prints the tables.

    Args:
        sets: name=<folder of an eval_edc.py run with --bootstrap>; without any, the measured
            tables are printed.
        rules: main: images are discarded and thresholds recomputed; all: the four combinations.
        areas: aoc, pauc_0.2, pauc_0.3.
        scorers: which ones, in this order; all if none is named.
        save: a folder; the rows of --sets are written to it as CSV, as benchmarks/tables has them.
    """
    if set(areas) - set(_AREAS):
        raise UserError(f"--areas {' '.join(areas)}: must be of {', '.join(_AREAS)}")
    results = [read_run(text) for text in sets] if sets else read_tables(TABLES)
    for result in results:
        print(f"### {result.name}\n\n{result.notes}\n")
        for rule in _MAIN if rules == "main" else _ALL:
            rows = [row for row in result.rows if (row["threshold_at"], row["discard"]) == rule]
            for area in areas:
                if any(row.get(area) for row in rows):
                    title = f"{_AREAS[area]}, threshold {rule[0]}, {rule[1]} discarded"
                    print_table(rows, title, area, scorers)
    if save is not None:
        write_tables(save, results)
    return EXIT_DONE


def read_run(text: str) -> ResultSet:
    """Reads `name=<folder>` with the results of an eval_edc.py run."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise UserError(f"--sets {text}: must be name=<folder>")
    notes = read_json(Path(folder) / "results.json")["notes"]
    return ResultSet(name, "; ".join(notes) + ".", _read_rows(Path(folder) / "results.csv"))


def read_tables(folder: Path) -> list[ResultSet]:
    """Reads the sets that sets.csv in a folder names."""
    return [
        ResultSet(row["set"], row["notes"], _read_rows(folder / row["file"]))
        for row in _read_rows(folder / "sets.csv")
    ]


def write_tables(folder: Path, results: list[ResultSet]) -> None:
    """Writes what read_tables reads: sets.csv, and a CSV a set."""
    named = [(f"set_{number}.csv", result) for number, result in enumerate(results, start=1)]
    with replacing(folder / "sets.csv") as file:
        index = csv.writer(file, lineterminator="\n")
        index.writerow(["file", "set", "notes"])
        index.writerows([name, result.name, result.notes] for name, result in named)
    for name, result in named:
        with replacing(folder / name) as file:
            writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: _rounded(key, row[key]) for key in _COLUMNS} for row in result.rows
            )


def print_table(rows: list[Row], title: str, area: str, scorers: tuple[str, ...]) -> None:
    """One table: a row a scorer, a column a recogniser and FMR."""
    columns = list(dict.fromkeys((row["recogniser"], float(row["fmr"])) for row in rows))
    names = scorers or tuple(dict.fromkeys(row["scorer"] for row in rows))
    at = {(row["scorer"], row["recogniser"], float(row["fmr"])): row for row in rows}
    if missing := [name for name in names if not any(key[0] == name for key in at)]:
        known = ", ".join(dict.fromkeys(key[0] for key in at))
        raise UserError(f"--scorers {missing[0]}: not in these results, which have {known}")
    print(f"| {title} | " + " | ".join(f"{name} {fmr:g}" for name, fmr in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    errors = [_errors(at[(names[0], *column)]) for column in columns]
    print("| errors before any discard | " + " | ".join(errors) + " |")
    for name in names:
        shown = [_number(at[(name, *column)], area) for column in columns]
        print(f"| {name} | " + " | ".join(shown) + " |")
    print()


def _errors(row: Row) -> str:
    if row["fnmr_at_0"] in ("", "nan"):
        return "-"  # the pairs are too few for this FMR
    counted = f"{int(row['errors_at_0']):,}, " if row["errors_at_0"] else ""
    few = " (few)" if row["few_errors"] == "1" else ""
    return f"{counted}{float(row['fnmr_at_0']):.3%}{few}"


def _number(row: Row, area: str) -> str:
    if not row.get(area):
        return "-"
    low, high = row.get(f"{area}_low"), row.get(f"{area}_high")
    span = f" [{show(area, float(low))}, {show(area, float(high))}]" if low and high else ""
    return f"{show(area, float(row[area]))}{span}"


def _rounded(key: str, text: str) -> str:
    """Areas to three decimals, an FNMR to a thousandth of a percent; other columns as they are."""
    if not text or not key.startswith((*_AREAS, "fnmr")):
        return text
    return f"{float(text):.{5 if key == 'fnmr_at_0' else 3}f}"


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    run_script(main)
