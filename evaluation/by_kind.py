"""Scores of clean and degraded faces, where a face's name says how it was degraded.

python -m evaluation.by_kind --scores scores.csv --labels annotations/quality_pseudo_labels.txt

A degraded copy is named `<face>.<kind>.png` (see dataset.orl_faces).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from common.cli import EXIT_DONE, run_script
from dataset.degradations import KINDS
from dataset.lists import read_table
from dataset.score_files import read_scores
from evaluation.held_out import held_out_measures
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of

CLEAN = "clean"


def main(*, scores: Path, labels: Path) -> int:
    """Prints the mean score and label by kind of degradation, and their rank correlation.

    Args:
        scores: a scores.csv.
        labels: pseudo-labels, `<path> TAB <label>`, of these images or more.
    """
    table = read_table(labels, "label")
    values = read_scores(scores, table).values
    scored = np.isfinite(values)
    if not scored.any():
        raise UserError(f"{scores}: has no scored image that {labels} lists")
    kinds = np.array([kind_of(path) for path in table.paths()])[scored]
    values, wanted = values[scored], table.values[scored]
    print(f"{'kind':<16}{'faces':>7}{'mean score':>12}{'mean label':>12}")
    for kind in sorted(set(kinds.tolist()), key=lambda kind: (kind != CLEAN, kind)):
        own = kinds == kind
        print(f"{kind:<16}{own.sum():>7}{values[own].mean():>12.1f}{wanted[own].mean():>12.1f}")
    spearman = held_out_measures(values, wanted)["spearman"]
    print(f"Spearman between score and label: {spearman:.3f} ({count_of(len(values), 'face')})")
    return EXIT_DONE


def kind_of(path: str) -> str:
    """The kind in a name, or several joined by +; clean if there is none.

    >>> kind_of("s01/s01_03.blur+noise.png"), kind_of("s01/s01.03.png")
    ('blur+noise', 'clean')
    """
    suffixes = PurePosixPath(path).suffixes
    kinds = suffixes[-2].lstrip(".") if len(suffixes) > 1 else ""
    return kinds if kinds and set(kinds.split("+")) <= KINDS.keys() else CLEAN


if __name__ == "__main__":
    run_script(main)
