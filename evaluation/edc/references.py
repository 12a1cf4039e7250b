"""Scores that cost nothing, to compare a model with: --reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from dataset.embeddings import EmbeddingsFile, read_norms
from dataset.lists import Identities, ImageList
from dataset.score_files import read_scores
from evaluation.edc.pairs import Values
from sdd_fiqa.errors import UserError

Reference = Literal["random", "norm", "sharpness", "labels", "ers"]
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R BT.601


def reference_scores(
    references: Sequence[Reference],
    images: ImageList,
    identities: Identities,
    features: Mapping[str, EmbeddingsFile],
    seed: int,
) -> dict[str, Values]:
    """By name, (N,) scores of the references, NaN where an image has none.

    Norms and labels depend on the embeddings, so there is one of each per recogniser.

    Raises:
        UserError: a reference lacks a file that it needs.
    """
    found: dict[str, Values] = {}
    for name in references:
        if name == "random":
            found[name] = random_scores(len(images), seed)
        elif name == "sharpness":
            found[name] = sharpness(images)
        elif name == "ers":
            path = images.file.with_name("ers_scores.txt")
            if not path.exists():
                raise UserError(f"{path}: is missing; make it with gen_ers_scores.py")
            found[name] = read_scores(path, images).values
        else:
            for recogniser, file in features.items():
                norm = name == "norm"
                values = read_norms(file.path, images) if norm else own_labels(file, identities)
                found[name if len(features) == 1 else f"{name} ({recogniser})"] = values
    return found


def is_label(name: str) -> bool:
    """Whether this is the name of --reference labels, for one of the recognisers."""
    return name == "labels" or name.startswith("labels (")


def random_scores(count: int, seed: int) -> Values:
    """(count,) random scores: a useless scorer."""
    return np.random.default_rng((seed, 0x5EED)).random(count)


def sharpness(images: ImageList) -> Values:
    """(N,) variance of the Laplacian of every image; NaN where it cannot be read."""
    from dataset.loader import batches

    found = np.full(len(images), np.nan)
    for batch in batches(images, np.arange(len(images)), 256):
        good = batch.readable
        found[batch.rows[good]] = laplacian_variance(batch.faces[good])
    if np.all(np.isnan(found)):
        raise UserError(f"{images.file}: no image can be read; --reference sharpness needs them")
    return found


def laplacian_variance(faces: npt.NDArray[np.uint8]) -> Values:
    """Sharpness of (B, H, W, 3) uint8 RGB faces: (B,) variance of the Laplacian of the grey image.

    The Laplacian uses four neighbours. At the border the image is mirrored; its edge is not
    repeated.
    """
    import cv2

    grey = faces @ np.array([_RED, _GREEN, _BLUE])
    return np.array([cv2.Laplacian(face, cv2.CV_64F).var() for face in grey])


def own_labels(features: EmbeddingsFile, identities: Identities) -> Values:
    """(N,) exact W1(P_i, N_i), from which labels are made: an oracle, because it sees identities.

    NaN for images without a mate and for images without an embedding.

    Raises:
        UserError: embeddings of only one identity.
    """
    from generate_pseudo_labels.distance.blocks import group_by_identity
    from generate_pseudo_labels.label_settings import LabelSettings
    from generate_pseudo_labels.similarity_distance import TooFewOutsiders, similarity_distances

    groups = group_by_identity(identities, features.usable_rows())
    try:
        found = similarity_distances(features, groups, LabelSettings("exact")).distances
    except TooFewOutsiders as error:
        raise UserError(f"{features.path}: gives no labels: {error}") from error
    labels = np.full(len(identities), np.nan)
    labels[groups.all_rows()] = found.w1[:, 0]
    return labels
