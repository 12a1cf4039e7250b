"""Made-up sets whose error-versus-discard curves can be computed exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluation.edc.curves import Rules

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

FOUR = [
    Rules("recomputed", "images"),
    Rules("recomputed", "pairs"),
    Rules("fixed", "images"),
    Rules("fixed", "pairs"),
]


def faces(images: int, identities: int, seed: int) -> tuple[Floats, Ids, npt.NDArray[np.float64]]:
    """Embeddings of +-1/16, whose dot products are exact in float32, with their qualities.

    An image is its identity's code with some signs turned: the more, the worse its quality.
    """
    generator = np.random.default_rng(seed)
    ids = generator.integers(identities, size=images)
    codes = generator.choice([-1.0, 1.0], size=(identities, 256))
    turned = generator.uniform(0.05, 0.5, size=images)
    signs = np.where(generator.random((images, 256)) < turned[:, None], -1.0, 1.0)
    return (codes[ids] * signs / 16).astype(np.float32), ids, -turned
