"""From distances to labels: who gets a label, and which one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dataset.containers import split_member
from dataset.identities import other_index
from dataset.lists import ImageList
from generate_pseudo_labels.distance.array_backend import Float32, Indices, Mask
from generate_pseudo_labels.distance.blocks import Groups, group_by_identity
from generate_pseudo_labels.distance.results import Distances
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.similarity_distance import lacking_outsiders, similarity_distances

_ROUNDING = 1e-5  # of a distance: sums of float32 products of unit rows


def pseudo_labels(
    embeddings: npt.ArrayLike, identities: npt.ArrayLike, settings: LabelSettings | None = None
) -> Float32:
    """SDD-FIQA quality labels (Ou et al., CVPR 2021) of embeddings in memory.

    The labels are those of gen_pseudo_labels.py for the same rows and settings.

    Args:
        embeddings: (N, D) floats, one row an image; rows are normalised here.
        identities: (N,) who is on each image: numbers or names.
        settings: None takes the published ones.

    Returns:
        (N,) float32, 0 to 100; NaN for an image without a label (the only one of its identity, or
        left out by the settings).

    Raises:
        ValueError: other shapes, a row without a direction (`UnusableRow`), fewer outsiders than
            negatives (`TooFewOutsiders`), no image to label, equal distances, or a setting out of
            its range (`UserError`).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> people = np.repeat(np.arange(20), 3)
        >>> labels = pseudo_labels(rng.standard_normal((60, 8)) + 9 * np.eye(20, 8)[people], people)
        >>> labels.shape, float(labels.min()) >= 0, float(labels.max()) <= 100
        ((60,), True, True)
    """
    rows, people = np.asarray(embeddings), np.asarray(identities)
    if rows.ndim != 2 or people.shape != rows.shape[:1] or rows.dtype.kind != "f":
        raise ValueError(
            f"embeddings {rows.dtype} {rows.shape} and identities {people.shape}: expected (N, D) "
            "floats and (N,) identities"
        )
    settings = settings or LabelSettings()
    settings.check()
    groups = group_by_identity(np.unique(people, return_inverse=True)[1].astype(np.int32))
    result = similarity_distances(rows, groups, settings)
    labels = np.full(len(rows), np.nan, np.float32)
    labels[groups.all_rows()] = assign_labels(result.distances, groups, settings)[0]
    return labels


def doubt_identities(
    images: ImageList, counts: Indices, settings: LabelSettings | None = None, how: str = "try"
) -> str:
    """Why identities with (C,) `counts` of images give no labels, with what to try; else empty.

    `how` as of `other_index`.
    """
    settings = settings or LabelSettings()
    total = int(counts.sum())
    if total > 1 and not 1 < len(counts) < total:
        found = f"each of the {total} images has an identity of its own"
        if len(counts) == 1:
            found = f"all {total} images have one identity"
        if split_member(images.path(0)):
            return f"{found}, as the container says; take one of more people"
        return f"{found}; {other_index(images.paths(), how)}"
    return lacking_outsiders(counts, settings)


def assign_labels(
    distances: Distances, groups: Groups, settings: LabelSettings
) -> tuple[Float32, dict[str, Mask]]:
    """Decides which images get a label, and which label.

    The best are dropped first; the rest is then put on the scale again. Distances are by position.

    Returns:
        (n,) labels by position, NaN without one, and for each reason to have none the images that
        it holds for. The first reason of an image counts.

    Raises:
        ValueError: no image is left, or all distances are equal.
    """
    sizes = np.repeat(groups.sizes(), groups.sizes())
    few = settings.min_images_per_id
    left_out = {
        "the only image of its identity": sizes < 2,
        f"its identity has fewer than {few} images": sizes < few,
    }
    if settings.exclude_mislabelled:
        left_out["looks mislabelled"] = distances.mislabelled()
    labelled = ~np.logical_or.reduce(list(left_out.values()))
    w1 = distances.w1
    if settings.level_identities:
        w1 = with_level_identities(w1, groups.starts, settings.level_share)
    labels = quality_labels(w1, labelled)
    dropped = drop_top(labels, labelled, settings.drop_top_percent)
    if dropped.any():
        left_out[f"among the best {settings.drop_top_percent:g} %"] = dropped
        labels = quality_labels(w1, labelled & ~dropped)
    if settings.label_power != 1:
        labels = (100 * (labels / 100) ** settings.label_power).astype(np.float32)
    return labels, left_out


def quality_labels(w1: Float32, labelled: Mask) -> Float32:
    """Distances (n, K) -> (n,) labels 0..100: min-max per repeat, then the mean.

    Images that are not `labelled`, (n,), get NaN, and do not set the range.

    Raises:
        ValueError: in some repeat all distances are equal up to rounding (or there are none).
    """
    if not labelled.any():
        raise ValueError(
            "no image is left to label: an identity needs two readable images or more, and at "
            "least --min-images-per-id; add images, or lower that number"
        )
    labels = np.zeros(len(w1), np.float64)
    for k in range(w1.shape[1]):
        column = w1[labelled, k].astype(np.float64)
        low, high = column.min(), column.max()
        if not high - low > _ROUNDING:
            raise ValueError(
                "all distances are equal up to rounding, so they cannot be put on a scale; look at "
                "the embeddings"
            )
        labels[labelled] += (column - low) * (100 / (high - low) / w1.shape[1])
    labels[~labelled] = np.nan
    return labels.astype(np.float32)


def with_level_identities(w1: Float32, starts: Indices, share: float = 1.0) -> Float32:
    """Distances on one scale for all identities: each identity's upper quartile becomes the same.

    How similar the pictures of a person are depends on the person too (taken years apart, or in one
    film). One picture does not show that, so a network that learns such labels learns people. Zero
    stays zero: such a face is as far from its own identity as from others.

    Args:
        w1: (n, K).
        starts: (C + 1,) identity c is the rows starts[c] .. starts[c + 1].
        share: the power of each identity's factor; below 1 the quartiles only come nearer.

    Returns:
        (n, K): each identity's distances times (the mean of all identities' upper quartiles over
        its own) ** share; an identity without any distance above zero is unchanged.
    """
    sizes = np.diff(starts)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    mean = np.zeros(len(w1), np.float32)
    for k in range(w1.shape[1]):
        mean += w1[:, k] / w1.shape[1]
    ordered = mean[np.lexsort((mean, identity))]
    quartile = ordered[starts[:-1] + 3 * (sizes - 1) // 4].astype(np.float64)
    known = quartile > 0  # False for NaN, too
    if not known.any():
        return w1
    factor = np.ones(len(sizes))
    factor[known] = (quartile[known].mean() / quartile[known]) ** share
    levelled: Float32 = w1 * np.repeat(factor, sizes)[:, None].astype(np.float32)
    return levelled


def drop_top(labels: Float32, labelled: Mask, percent: float) -> Mask:
    """(n,) the best `percent` of the labelled images; of equal labels, the later ones."""
    dropped = np.zeros(len(labels), bool)
    count = int(np.floor(np.count_nonzero(labelled) * percent / 100))
    if count:
        rows = np.flatnonzero(labelled)
        dropped[rows[np.argsort(labels[rows], kind="stable")[-count:]]] = True
    return dropped
