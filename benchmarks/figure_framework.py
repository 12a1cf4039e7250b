"""Draws docs/framework.png, the three steps of the method, from the files of quickstart.sh.

bash quickstart.sh
python benchmarks/figure_framework.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from common.cli import EXIT_DONE, run_script
from dataset.images import read_face
from dataset.lists import join, read_labelpath, read_table
from dataset.score_files import open_scores

QUICKSTART = Path("quickstart")
OUT = Path("docs/framework.png")
POSITIVE, NEGATIVE, INK = "#2a7f62", "#b5651d", "#22313f"


def main(*, quickstart: Path = QUICKSTART, out: Path = OUT) -> int:
    """Draws the picture.

    Args:
        quickstart: the folder that quickstart.sh filled.
        out: the picture.
    """
    notes = quickstart / "annotations"
    table, identities = read_labelpath(notes / "DATA.labelpath")
    features = np.load(notes / "feats_npy" / "Embedding_Features.npy").astype(np.float32)
    labelled = read_table(notes / "quality_pseudo_labels.txt", "label")
    labels = labelled.values[join(table, labelled)]
    paths = list(table.paths())
    figure = plt.figure(figsize=(15, 4.6), facecolor="white")
    columns: Any = figure.subfigures(1, 3, width_ratios=[0.8, 1.15, 1.05])
    embed_step(columns[0], paths, identities)
    good, bad = pick(paths, labels)
    label_step(columns[1], paths, features, identities, labels, [good, bad])
    label_of = dict(zip(paths, labels.tolist(), strict=True))
    score_step(columns[2], quickstart / "scores.csv", label_of)
    figure.savefig(out, dpi=110)
    print(out)
    return EXIT_DONE


def embed_step(figure: Any, paths: list[str], identities: npt.NDArray[np.int32]) -> None:
    """Faces of four people, which a recogniser turns into embeddings."""
    figure.suptitle("1  Embed every face with a recogniser", x=0.04, ha="left", color=INK)
    rows, columns = 4, 5
    axes = figure.subplots(rows, columns)
    for row, identity in enumerate((3, 9, 18, 34)):
        own = np.flatnonzero(identities == identity)
        chosen = own[np.linspace(0, len(own) - 1, columns).astype(int)]
        for axis, image in zip(axes[row], chosen, strict=True):
            show(axis, paths[image])
    figure.subplots_adjust(left=0.04, right=0.96, top=0.9, bottom=0.02, wspace=0.06, hspace=0.06)


def label_step(
    figure: Any,
    paths: list[str],
    features: npt.NDArray[np.float32],
    identities: npt.NDArray[np.int32],
    labels: npt.NDArray[np.float64],
    images: list[int],
) -> None:
    """Two faces, each with its similarities to its own identity and to all others."""
    title = "2  Label it by how far its two similarity distributions lie apart"
    figure.suptitle(title, x=0.04, ha="left", color=INK)
    for axis, image in zip(figure.subplots(2, 1, sharex=True), images, strict=True):
        similarity = features @ features[image]
        same = identities == identities[image]
        negative = similarity[~same]
        same[image] = False
        bins = np.linspace(-0.4, 1.0, 57).tolist()
        axis.hist(negative, bins, density=True, color=NEGATIVE, alpha=0.75, label="Neg-Sim")
        axis.hist(similarity[same], bins, density=True, color=POSITIVE, alpha=0.75, label="Pos-Sim")
        axis.set_ylim(0, 1.25 * axis.get_ylim()[1])  # room for the label
        axis.set_yticks([])
        axis.spines[["left", "top", "right"]].set_visible(False)
        axis.text(0.98, 0.86, f"label {labels[image]:.0f}", transform=axis.transAxes, ha="right")
        inset = axis.inset_axes((0.0, 0.3, 0.24, 0.66))
        show(inset, paths[image])
    axis.set_xlabel("cosine similarity; the label is their Wasserstein distance, scaled to 0..100")
    axis.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.8))
    figure.subplots_adjust(left=0.04, right=0.97, top=0.9, bottom=0.13, hspace=0.12)


def score_step(figure: Any, scores: Path, label_of: dict[str, float]) -> None:
    """Faces that training did not see, sorted by the scores of the trained network."""
    title = "3  Train a network on the labels; score new faces"
    figure.suptitle(title, x=0.04, ha="left", color=INK)
    table, _ = open_scores(scores)
    pairs = zip(table.paths(), table.values.tolist(), strict=True)
    scored = sorted(
        ((path, score) for path, score in pairs if score == score and path in label_of),
        key=lambda row: row[1],
    )
    rows, columns = 3, 6
    chosen = [scored[i] for i in np.linspace(0, len(scored) - 1, rows * columns).astype(int)]
    for axis, (path, score) in zip(figure.subplots(rows, columns).ravel(), chosen, strict=True):
        show(axis, path)
        axis.set_title(f"{score:.0f}", fontsize=10, color=INK, pad=2)
    figure.subplots_adjust(left=0.03, right=0.97, top=0.84, bottom=0.02, wspace=0.08, hspace=0.3)


def pick(paths: list[str], labels: npt.NDArray[np.float64]) -> tuple[int, int]:
    """A face near the top of the labels, and a blurred copy near their bottom."""
    order = np.argsort(labels)
    blurred = [int(i) for i in order if ".blur." in paths[i]]
    return int(order[-10]), blurred[len(blurred) // 8]


def show(axis: Any, path: str) -> None:
    """Draws one face without axes."""
    axis.imshow(read_face(path))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    run_script(main)
