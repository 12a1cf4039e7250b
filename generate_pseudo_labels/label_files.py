"""The files of the label step: what it reads, and what it writes to the folder `annotations`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.columns import write_columns
from dataset.embeddings import EMBEDDINGS, open_embeddings
from dataset.lists import (
    LABELPATH,
    PSEUDO_LABELS,
    Identities,
    ImageList,
    read_labelpath,
    refuse_repeats,
)
from generate_pseudo_labels.distance.array_backend import Float32
from generate_pseudo_labels.distance.embedded_set import TOO_LARGE, Embeddings, UnusableRow
from generate_pseudo_labels.distance.results import EXCESS_BOUND, Distances
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing, write_json
from sdd_fiqa.number import count_of

W_DISTANCES = "w_distances.txt"
UNLABELLED = "unlabelled.txt"
MISLABELLED = "mislabelled.txt"
INFO = "distribution_info.json"
UNREADABLE = "unreadable: "
_REASONS = 8  # counted separately; each damaged record of a container may have its own reason


@dataclass
class LabelInput:
    """A list and its embeddings.

    Attributes:
        images: the list.
        identities: (N,) of each image.
        embeddings: (N, D).
        notes: what the user should know.
        texts: the reasons why images get no label; the first is no reason.
        reasons: (N,) for each image the number of its reason in `texts`; 0 for none.
    """

    images: ImageList
    identities: Identities
    embeddings: Embeddings
    notes: list[str] = field(default_factory=list)
    texts: dict[str, int] = field(default_factory=lambda: {"": 0})

    def __post_init__(self) -> None:
        self.reasons = np.zeros(len(self.images), np.int32)

    def leave_out(self, rows: npt.NDArray[Any], reason: str) -> None:
        """Gives images a reason for having no label; the first one given stays."""
        number = self.texts.setdefault(reason, len(self.texts))
        self.reasons[rows] = np.where(self.reasons[rows] == 0, number, self.reasons[rows])

    def counts(self) -> dict[str, int]:
        """Reason -> how many images have it, the most frequent first; rare ones together."""
        numbers = np.bincount(self.reasons, minlength=len(self.texts)).tolist()
        pairs = zip(self.texts, numbers, strict=True)
        counts = Counter({text: number for text, number in pairs if text and number})
        shown = dict(counts.most_common(_REASONS))
        if len(counts) > _REASONS:
            shown["for other reasons"] = counts.total() - sum(shown.values())
        return shown

    def unusable(self, error: UnusableRow) -> UserError:
        """The error for a row without a direction, with its image."""
        remedy = "extract the embeddings again, or remove that row and its line in the list"
        if error.fault == TOO_LARGE:
            remedy = "divide each row by its length"
        return UserError(
            f"{getattr(self.embeddings, 'path', 'embeddings')}: row {error.row} "
            f"({self.images.path(error.row)}) {error.fault}; {remedy}"
        )


def read_input(out_dir: Path) -> LabelInput:
    """Reads DATA.labelpath and opens the embeddings that belong to it.

    Raises:
        UserError: either is missing or damaged, or they do not belong together.
    """
    images, identities = read_labelpath(out_dir / LABELPATH)
    refuse_repeats(images)
    images.values.resize(0, refcheck=False)  # the identities hold the same, in half the memory
    file = open_embeddings(out_dir / EMBEDDINGS, images)
    inputs = LabelInput(images, identities, file, [file.note] if file.note else [])
    for row, reason in file.unreadable.items():
        inputs.leave_out(np.array([row]), UNREADABLE + reason)
    return inputs


@dataclass(frozen=True)
class Labelling:
    """Labels and distances in list order.

    Attributes:
        labels: (N,) 0..100, NaN without a label.
        distances: of all N images, one column of W1 (the mean of the repeats).
        summary: counts and settings, for the summary and `distribution_info.json`.
    """

    labels: Float32
    distances: Distances
    summary: dict[str, Any]


def write_labels(out_dir: Path, inputs: LabelInput, result: Labelling) -> None:
    """Writes all text files of the step. The labels come last: with them, the rest is there."""
    distances, images = result.distances, inputs.images
    columns = distances.columns()
    texts, without = list(inputs.texts), np.flatnonzero(inputs.reasons)
    with replacing(out_dir / UNLABELLED) as file:
        for row, path in zip(without, images.subset(without).paths(), strict=True):
            file.write(f"{path}\t{texts[inputs.reasons[row]]}\n")
    rows = np.flatnonzero(~np.isnan(result.labels))
    flagged = np.flatnonzero(distances.mislabelled())
    chosen = [(column[flagged], 6) for column in columns[1:]]
    write_columns(out_dir / MISLABELLED, images, flagged, chosen)
    write_columns(out_dir / W_DISTANCES, images, rows, [(column[rows], 6) for column in columns])
    write_json(out_dir / INFO, result.summary)
    write_columns(out_dir / PSEUDO_LABELS, images, rows, [(result.labels[rows], 4)])


def summary_lines(out_dir: Path, result: Labelling) -> str:
    """What the step did, for the terminal."""
    summary = result.summary
    marks = summary["label_percentiles"]
    lines = [
        f"{summary['labelled']:,} of {count_of(summary['images'], 'image')} of "
        f"{count_of(summary['identities'], 'identity')} labelled: {out_dir / PSEUDO_LABELS}",
        f"labels: median {marks['50']:.1f}, middle half {marks['25']:.1f} to {marks['75']:.1f}; "
        f"mean Pos-Sim {summary['mean_pos_sim']:.3f}, mean Neg-Sim {summary['mean_neg_sim']:.3f}",
    ]
    if summary["left_out"]:
        causes = ", ".join(f"{count} ({text})" for text, count in summary["left_out"].items())
        lines.append(f"left out: {causes}; listed in {out_dir / UNLABELLED}")
    if summary.get("overlapping"):
        error = summary.get("overlapping_w1_standard_error")
        measured = "compared with everybody" if error is None else f"W1 standard error {error:g}"
        lines.append(
            f"{count_of(summary['overlapping'], 'image')} with distributions that cross: {measured}"
        )
    lines.append(
        f"look mislabelled: {count_of(summary['mislabelled'], 'image')} (mean Pos-Sim below mean "
        f"Neg-Sim, or wrong-way share above {EXCESS_BOUND:g}); listed in {out_dir / MISLABELLED}"
    )
    return "\n".join(lines)
