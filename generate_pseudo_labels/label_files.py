"""The files of the label step: what it reads, and what it leaves in the folder `annotations`."""

from __future__ import annotations

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
from generate_pseudo_labels.distance.blocks import Groups
from generate_pseudo_labels.distance.embedded_set import Source
from generate_pseudo_labels.distance.results import (
    WRONG_WAY_BOUND,
    Distances,
    drop_top,
    quality_labels,
    with_level_identities,
)
from sdd_fiqa.files import replacing, write_json

W_DISTANCES = "w_distances.txt"
UNLABELLED = "unlabelled.txt"
MISLABELLED = "mislabelled.txt"
INFO = "distribution_info.json"
UNREADABLE = "unreadable: "
_REASONS = 8  # counted apart; records damaged at many places have a reason each

Mask = npt.NDArray[np.bool_]
Reasons = npt.NDArray[np.int32]


@dataclass
class LabelInput:
    """A list and its embeddings.

    Attributes:
        table: the list.
        identities: (N,) of each image.
        source: (N, D) embeddings.
        notes: what the user should know.
        reasons: (N,) number of the reason in `texts` why an image gets no label; 0 none.
        texts: the reasons.
    """

    table: ImageList
    identities: Identities
    source: Source
    notes: list[str] = field(default_factory=list)
    reasons: Reasons = field(default_factory=lambda: np.zeros(0, np.int32))
    texts: list[str] = field(default_factory=lambda: [""])
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """No image has a reason yet."""
        if len(self.reasons) != len(self.table):
            self.reasons = np.zeros(len(self.table), np.int32)

    def leave_out(self, rows: npt.NDArray[Any], reason: str) -> None:
        """Gives images a reason for having no label; the first one given stays."""
        number = self._numbers.setdefault(reason, len(self.texts))
        if number == len(self.texts):
            self.texts.append(reason)
        self.reasons[rows] = np.where(self.reasons[rows] == 0, number, self.reasons[rows])

    def counts(self) -> dict[str, int]:
        """Reason -> how many images have it, the most frequent first; rare ones together."""
        numbers = np.bincount(self.reasons, minlength=len(self.texts))[1:]
        order = np.argsort(-numbers, kind="stable")
        order = order[numbers[order] > 0]
        shown = {self.texts[1 + at]: int(numbers[at]) for at in order[:_REASONS].tolist()}
        if len(order) > _REASONS:
            shown["for other reasons"] = int(numbers[order[_REASONS:]].sum())
        return shown


def read_input(out_dir: Path) -> LabelInput:
    """Reads DATA.labelpath and opens the embeddings that belong to it.

    Raises:
        UserError: either is missing or damaged, or they do not belong together.
    """
    table, identities = read_labelpath(out_dir / LABELPATH)
    refuse_repeats(table)
    table.values.resize(0, refcheck=False)  # the identities hold the same, in half the memory
    source, origin = open_embeddings(out_dir / EMBEDDINGS, table)
    given = LabelInput(table, identities, source, [origin.note] if origin.note else [])
    for row, _, reason in origin.unreadable:
        given.leave_out(np.array([row]), UNREADABLE + reason)
    return given


@dataclass(frozen=True)
class Labelling:
    """Labels and distances in list order.

    Attributes:
        labels: (N,) 0..100, NaN without a label.
        distances: of all N images, one column of W1 (the mean of the repeats).
        mislabelled: (N,) looks mislabelled.
        summary: counts and settings, for the summary and `distribution_info.json`.
    """

    labels: npt.NDArray[np.float32]
    distances: Distances
    mislabelled: Mask
    summary: dict[str, Any]


def label_images(
    given: LabelInput,
    groups: Groups,
    found: Distances,
    *,
    min_images_per_id: int = 2,
    drop_top_percent: float = 0.0,
    exclude_mislabelled: bool = False,
    level_identities: bool = False,
    label_power: float = 1.0,
) -> Labelling:
    """Decides who gets a label, and which: drop first, then put the rest on the scale.

    Args:
        given: the list; whoever gets no label is given a reason.
        groups: positions of the images that took part.
        found: their distances, by position.
        min_images_per_id: identities with fewer images get no labels (their images still serve as
            outsiders of others).
        drop_top_percent: share of the best labels to drop; the rest is normalised again.
        exclude_mislabelled: drop images that look mislabelled.
        level_identities: take out of the labels what is the identity's (`with_level_identities`).
        label_power: of the labels, as shares of 100.

    Raises:
        ValueError: nobody is left, or all distances are equal.
    """
    images = len(groups)
    rows = groups.rows if groups.rows is not None else slice(0, images)
    sizes = np.repeat(groups.sizes(), groups.sizes())
    mislabelled = found.mislabelled()
    labelled = (sizes >= 2) & (sizes >= min_images_per_id)
    row_numbers = np.arange(images) if groups.rows is None else groups.rows
    given.leave_out(row_numbers[sizes < 2], "the only image of its identity")
    given.leave_out(
        row_numbers[~labelled], f"its identity has fewer than {min_images_per_id} images"
    )
    if exclude_mislabelled:
        given.leave_out(row_numbers[labelled & mislabelled], "looks mislabelled")
        labelled &= ~mislabelled
    w1 = with_level_identities(found.w1, groups.starts) if level_identities else found.w1
    labels = quality_labels(w1, labelled)
    dropped = drop_top(labels, labelled, drop_top_percent)
    if dropped.any():
        given.leave_out(row_numbers[dropped], f"among the best {drop_top_percent:g} %")
        labelled &= ~dropped
        labels = quality_labels(w1, labelled)
    if label_power != 1:
        labels = (100 * (labels / 100) ** label_power).astype(np.float32)

    def in_list_order(values: npt.NDArray[Any], absent: Any) -> npt.NDArray[Any]:
        if groups.rows is None and images == len(given.table):
            return values
        placed = np.full(len(given.table), absent, values.dtype)
        placed[rows] = values
        return placed

    mean_w1 = found.w1.mean(axis=1, dtype=np.float64).astype(np.float32)
    distances = Distances(
        in_list_order(mean_w1, np.nan)[:, None],
        *(in_list_order(values, np.nan) for values in (found.pos, found.neg, found.wrong)),
    )
    return Labelling(
        in_list_order(labels, np.nan), distances, in_list_order(mislabelled, False), {}
    )


def write_labels(out_dir: Path, given: LabelInput, result: Labelling) -> None:
    """Writes all text files of the step; the labels last, so that they stand for the rest."""
    distances, table = result.distances, given.table
    rows = np.flatnonzero(~np.isnan(result.labels))
    columns = (distances.w1[:, 0], distances.pos, distances.neg, distances.wrong)
    with replacing(out_dir / UNLABELLED) as file:
        without = np.flatnonzero(given.reasons)
        for row, path in zip(without, table.subset(without).paths(), strict=True):
            file.write(f"{path}\t{given.texts[given.reasons[row]]}\n")
    flagged = np.flatnonzero(result.mislabelled)
    write_columns(
        out_dir / MISLABELLED, table, flagged, [(column[flagged], 6) for column in columns[1:]]
    )
    write_columns(out_dir / W_DISTANCES, table, rows, [(column[rows], 6) for column in columns])
    write_json(out_dir / INFO, result.summary)
    write_columns(out_dir / PSEUDO_LABELS, table, rows, [(result.labels[rows], 4)])


def summarise(
    settings: dict[str, Any], given: LabelInput, groups: Groups, result: Labelling
) -> None:
    """Fills in the summary: how many, how far apart, who was left out."""
    rows = np.flatnonzero(~np.isnan(result.labels))
    labels, distances = result.labels[rows], result.distances
    marks = (0, 1, 5, 25, 50, 75, 95, 99, 100)
    result.summary.update(
        {
            "settings": settings,
            "images": len(given.table),
            "identities": int(np.count_nonzero(groups.sizes())),
            "labelled": len(rows),
            "left_out": given.counts(),
            "mislabelled": int(result.mislabelled.sum()),
            "wrong_way_bound": WRONG_WAY_BOUND,
            "label_percentiles": percentiles(labels, marks),
            "w1_percentiles": percentiles(distances.w1[rows, 0], marks),
            "mean_pos_sim": float(distances.pos[rows].mean(dtype=np.float64)),
            "mean_neg_sim": float(distances.neg[rows].mean(dtype=np.float64)),
            "label_histogram": np.histogram(labels, 50, (0, 100))[0].tolist(),
        }
    )


def percentiles(values: npt.NDArray[np.float32], marks: tuple[int, ...]) -> dict[str, float]:
    """Percent -> value."""
    found = np.percentile(values, marks)
    return {str(mark): round(float(value), 6) for mark, value in zip(marks, found, strict=True)}


def summary_lines(out_dir: Path, given: LabelInput, result: Labelling) -> str:
    """What the step did, for people."""
    summary = result.summary
    marks = summary["label_percentiles"]
    lines = [
        f"{summary['labelled']} of {summary['images']} images of {summary['identities']} "
        f"identities labelled: {out_dir / PSEUDO_LABELS}",
        f"labels: median {marks['50']:.1f}, middle half {marks['25']:.1f} to {marks['75']:.1f}; "
        f"mean Pos-Sim {summary['mean_pos_sim']:.3f}, mean Neg-Sim {summary['mean_neg_sim']:.3f}",
    ]
    if summary["left_out"]:
        causes = "; ".join(f"{count} {text}" for text, count in summary["left_out"].items())
        lines.append(f"left out: {causes}; listed in {out_dir / UNLABELLED}")
    if summary.get("overlapping"):
        error = summary.get("overlapping_w1_standard_error")
        measured = "compared with everybody" if error is None else f"W1 standard error {error:g}"
        lines.append(f"{summary['overlapping']} images have distributions that cross: {measured}")
    lines.append(
        f"{summary['mislabelled']} images look mislabelled (mean Pos-Sim below mean Neg-Sim, or "
        f"wrong-way share above {WRONG_WAY_BOUND:g}); listed in {out_dir / MISLABELLED}"
    )
    return "\n".join(lines)
