"""The label step from checked settings to labels, with its errors in the user's words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Arrays, Float32
from generate_pseudo_labels.distance.blocks import Groups, group_by_identity
from generate_pseudo_labels.distance.embedded_set import UnusableRow
from generate_pseudo_labels.distance.results import EXCESS_BOUND, Distances, gather
from generate_pseudo_labels.label_files import LabelInput, Labelling
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.labels import assign_labels, doubt_identities
from generate_pseudo_labels.similarity_distance import DistanceResult, similarity_distances
from sdd_fiqa.errors import UserError

_DOUBTED = 0.5  # a larger share that looks mislabelled doubts the identities
_MARKS = (0, 1, 5, 25, 50, 75, 95, 99, 100)  # percentiles of the summary


def find_distances(
    inputs: LabelInput,
    settings: LabelSettings,
    arrays: Arrays,
    processes: ProcessGroup,
    threads: int,
) -> tuple[Groups, DistanceResult] | None:
    """Runs the estimator over this process's share; all results on rank 0, else None.

    Raises:
        UserError: rows without a direction, identities that look wrong, or too few outsiders.
    """
    groups = group_by_identity(inputs.identities, inputs.reasons == 0)
    if groups.rows is not None and np.any(np.diff(groups.rows) < 0):
        inputs.notes.append(
            f"{inputs.images.file}: images of one identity are not next to each other; reading "
            "their embeddings in that order takes several times as long as from a sorted list"
        )
    how = "make the list again with gen_datalist.py"
    if doubt := doubt_identities(inputs.images, groups.sizes(), settings, how):
        raise UserError(f"{inputs.images.file}: {doubt}")
    try:
        images, silent = len(groups) // processes.size, not processes.first
        with tqdm(
            total=images, unit=" images", unit_scale=True, smoothing=0.05, disable=silent
        ) as bar:
            part = similarity_distances(
                inputs.embeddings,
                groups,
                settings,
                arrays=arrays,
                processes=processes,
                threads=threads,
                progress=lambda count: bar.update(min(count, images - bar.n)),
            )
    except UnusableRow as error:
        raise inputs.unusable(error) from error
    crossing = processes.add_up(part.crossing)
    whole = gather(processes, part.begin, part.distances, len(groups))
    return None if whole is None else (groups, DistanceResult(0, whole, crossing))


def label(
    inputs: LabelInput, settings: LabelSettings, groups: Groups, result: DistanceResult
) -> Labelling:
    """Labels in list order, and the summary; images without a label are given a reason.

    Raises:
        UserError: no image is left to label, or all distances are equal.
    """
    try:
        labels, left_out = assign_labels(result.distances, groups, settings)
    except ValueError as error:
        raise UserError(f"{inputs.images.file}: {error}") from error
    for reason, which in left_out.items():
        inputs.leave_out(groups.rows_of(np.flatnonzero(which)), reason)

    def in_list_order(values: Float32) -> Float32:
        if groups.rows is None:
            return values
        placed = np.full(len(inputs.images), np.nan, np.float32)
        placed[groups.rows] = values
        return placed

    found = result.distances
    w1 = in_list_order(found.w1.mean(axis=1, dtype=np.float64).astype(np.float32))
    pos, neg, excess = map(in_list_order, (found.pos, found.neg, found.excess))
    distances, labels = Distances(w1[:, None], pos, neg, excess), in_list_order(labels)
    mislabelled, rows = distances.mislabelled(), np.flatnonzero(~np.isnan(labels))
    if np.count_nonzero(mislabelled[rows]) > _DOUBTED * len(rows):
        inputs.notes.append(
            "most images are hardly more similar to their identity than to others: do the rows of "
            f"the embeddings belong to {inputs.images.file}, and its numbers to people?"
        )
    summary: dict[str, Any] = {
        "settings": asdict(settings),
        "images": len(inputs.images),
        "identities": int(np.count_nonzero(groups.sizes())),
        "labelled": len(rows),
        "left_out": inputs.counts(),
        "mislabelled": int(mislabelled.sum()),
        "wrong_way_bound": EXCESS_BOUND,
        "label_percentiles": _percentiles(labels[rows]),
        "w1_percentiles": _percentiles(w1[rows]),
        "mean_pos_sim": float(pos[rows].mean(dtype=np.float64)),
        "mean_neg_sim": float(neg[rows].mean(dtype=np.float64)),
        "label_histogram": np.histogram(labels[rows], 50, (0, 100))[0].tolist(),
    }
    if settings.estimator == "exact":
        overlapping, checked, squares = result.crossing
        summary["overlapping"] = int(overlapping)
        if checked:
            deviation = np.sqrt(squares / checked)
            summary["overlapping_w1_standard_error"] = float(f"{deviation:.3g}")
    return Labelling(labels, distances, summary)


def _percentiles(values: Float32) -> dict[str, float]:
    """Percent -> value."""
    found = np.percentile(values, _MARKS)
    return {str(mark): round(float(value), 6) for mark, value in zip(_MARKS, found, strict=True)}
