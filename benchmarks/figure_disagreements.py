"""Draws docs/disagreements.png: where the shipped model and the labels disagree most.

    bash quickstart.sh
    python eval.py quickstart/faces --out quickstart/small.csv
    python benchmarks/figure_disagreements.py

The faces are those of the quickstart: ORL faces and degraded copies of them. The model has not seen
these people. Scores and labels have different scales, so their ranks are compared.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import rankdata, spearmanr

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.cli import EXIT_DONE, run_script
from dataset.images import read_face
from dataset.lists import read_table
from dataset.score_files import read_scores
from evaluation.by_kind import kind_of

SCORES = Path("quickstart/small.csv")
LABELS = Path("quickstart/annotations/quality_pseudo_labels.txt")
OUT = Path("docs/disagreements.png")
SHOWN = 8


def main(*, scores: Path = SCORES, labels: Path = LABELS, out: Path = OUT) -> int:
    """Draws the picture.

    Args:
        scores: a scores.csv of the faces.
        labels: their pseudo-labels.
        out: the picture.
    """
    table = read_table(labels, "label")
    found = zip(table.paths(), read_scores(scores, table).values, table.values, strict=True)
    rows = [row for row in found if np.isfinite(row[1])]
    judged, wanted = (np.array([row[column] for row in rows]) for column in (1, 2))
    percent = [100 * (rankdata(values) - 0.5) / len(values) for values in (judged, wanted)]
    gap = percent[0] - percent[1]
    print(f"{len(rows)} faces, Spearman {spearmanr(judged, wanted).statistic:.3f}")
    figure, axes = plt.subplots(2, SHOWN, figsize=(1.45 * SHOWN, 4.4))
    order = np.argsort(gap)
    for line, chosen, title in (
        (0, order[::-1][:SHOWN], "The model thinks more of these than their labels do"),
        (1, order[:SHOWN], "The model thinks less of these than their labels do"),
    ):
        for axis, row in zip(axes[line], chosen.tolist(), strict=True):
            path = rows[row][0]
            axis.imshow(read_face(path))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(
                f"{kind_of(path)}\nscore {percent[0][row]:.0f} %, label {percent[1][row]:.0f} %",
                fontsize=7,
            )
        figure.text(0.01, 0.96 - 0.5 * line, title, fontsize=10)
    figure.subplots_adjust(0.01, 0.08, 0.99, 0.93, wspace=0.06, hspace=0.45)
    figure.savefig(out, dpi=110)
    print(out)
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
