"""Scores that cost nothing, to compare a model with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.embeddings import open_embeddings
from dataset.lists import Identities, ImageList
from sdd_fiqa.errors import UserError

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601


def laplacian_variance(faces: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Sharpness of (B, H, W, 3) uint8 RGB faces: (B,) variance of the Laplacian of the grey image.

    The four-neighbour Laplacian; at the border the image is mirrored without repeating its edge.
    """
    grey = faces @ np.array([_RED, _GREEN, _BLUE])
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    neighbours = (
        padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    )
    return np.asarray((neighbours - 4 * grey).var(axis=(1, 2)))


def random_scores(count: int, seed: int) -> npt.NDArray[np.float64]:
    """(count,) scores that say nothing."""
    return np.random.default_rng((seed, 0x5EED)).random(count)


def own_labels(path: Path, table: ImageList, identities: Identities) -> npt.NDArray[np.float64]:
    """(N,) exact W1(P_i, N_i), what the labels are made of: an oracle, since it sees identities.

    NaN for images without a mate, and for those without an embedding.

    Args:
        path: embeddings, row i = line i of the list.
        table: the list.
        identities: its (N,) identities.

    Raises:
        UserError: embeddings of another list, or of one identity alone.
    """
    from generate_pseudo_labels.distance.blocks import group_by_identity
    from generate_pseudo_labels.similarity_distance import TooFewOutsiders, similarity_distances

    features, _ = open_embeddings(path, table)
    groups = group_by_identity(identities, features.usable_rows())
    try:
        found = similarity_distances(features, groups, estimator="exact").distances
    except TooFewOutsiders as error:
        raise UserError(f"{path}: gives no labels: {error}") from error
    labels = np.full(len(table), np.nan)
    labels[groups.all_rows()] = found.w1[:, 0]
    return labels
