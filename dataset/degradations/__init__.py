"""Degradations of an aligned face, drawn by a seed, as cameras, networks and the world make them.

Every kind takes a strength from 0 (the face as it is) to 1 (about beyond recognition). With the
same random numbers, more strength changes more. All lengths are pixels of a 112x112 face. The
ranges are set so that a recogniser's cosine between a face and its copy falls below 0.2 at
strength 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataset.degradations import kinds
from sdd_fiqa.images import FACE_SIZE, Image

Degradation = Callable[[Image, float, np.random.Generator], Any]

# To train on, in the order in which the draws of a seed count them.
TRAINING_KINDS = (
    *("blur", "motion", "low_resolution", "noise", "compression", "low_light", "occlusion"),
    *("black_border", "misalignment"),
)
# Never to train on: what shows whether a model knows bad faces, or its own training copies.
TEST_KINDS = ("defocus", "shake", "mosaic", "impulse", "webp", "exposure", "haze", "strands")
KINDS: dict[str, Degradation] = {kind: vars(kinds)[kind] for kind in (*TRAINING_KINDS, *TEST_KINDS)}

# From the scene through the lens and the sensor to the file: the order of several kinds at once.
_ALONG_THE_WAY = (
    *("misalignment", "occlusion", "strands", "haze", "low_light", "exposure"),
    *("blur", "defocus", "motion", "shake", "noise", "impulse"),
    *("low_resolution", "mosaic", "black_border", "compression", "webp"),
)


def degrade(face: Image, kind: str, strength: float, rng: np.random.Generator) -> Image:
    """A degraded copy of an aligned face: a new array, (112, 112, 3) uint8, RGB; grey stays grey.

    Args:
        face: (112, 112, 3) uint8, RGB.
        kind: one of `KINDS`; the function of that name says what it does.
        strength: in [0, 1].
        rng: its numbers choose direction, shape, colour and noise; as many are drawn whatever the
            strength.

    Raises:
        ValueError: unknown kind, strength outside [0, 1], or another shape or type of face.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known ones: {', '.join(KINDS)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if face.shape != (FACE_SIZE, FACE_SIZE, 3) or face.dtype != np.uint8:
        raise ValueError(
            f"expected a ({FACE_SIZE}, {FACE_SIZE}, 3) uint8 face, got {face.shape} {face.dtype}"
        )
    degraded = np.asarray(KINDS[kind](face, float(strength), rng), np.uint8)
    if strength == 0:
        return face.copy()
    is_grey = bool(np.all(face == face[:, :, :1]))
    return np.repeat(degraded[:, :, 1:2], 3, axis=2) if is_grey else degraded


def degrade_by(face: Image, strengths: Mapping[str, float], rng: np.random.Generator) -> Image:
    """As `degrade`, in several ways: {kind: strength}, in the order in which they happen."""
    degraded = face.copy()
    for kind in sorted(strengths, key=_ALONG_THE_WAY.index):
        degraded = degrade(degraded, kind, strengths[kind], rng)
    return degraded
