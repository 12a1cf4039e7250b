"""Scores that cost nothing, to compare a model with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
