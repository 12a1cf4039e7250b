"""What the degradations are made of: places, covers, grain and paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.images import FACE_SIZE, Image, cv2

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

GAMMA = 2.2  # from pixel values to light and back


def grid() -> tuple[Floats, Floats]:
    """Of every pixel's centre: x and y as shares of the side, (112, 112) each."""
    axis = (np.arange(FACE_SIZE) + 0.5) / FACE_SIZE
    x, y = np.meshgrid(axis, axis)
    return x, y


def cover(face: Image, where: Mask, colour: npt.NDArray[Any]) -> Image:
    """The face with one colour, (3,) of 0..255, where the (112, 112) mask says."""
    return np.where(where[:, :, None], colour.astype(np.uint8), face)


def grain(rng: np.random.Generator) -> Floats:
    """(112, 112, 3) noise of mean 0, standard deviation 1, a little smeared as by demosaicing."""
    smear = rng.uniform(0.3, 0.9)
    white = rng.standard_normal((FACE_SIZE, FACE_SIZE, 3), np.float32)
    noise = np.asarray(cv2.GaussianBlur(white, (0, 0), smear), np.float32)
    return noise / np.std(noise)


def to_bytes(signal: npt.NDArray[Any]) -> Image:
    """Values of 0..1, clipped to it, as uint8 pixels."""
    return np.clip(np.round(signal * 255), 0, 255).astype(np.uint8)


def smear(face: Image, x: Floats, y: Floats) -> Image:
    """A face moved during exposure along a path of equal times, x and y in pixels, (P,) each."""
    reach = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    # Each point of the path is spread over the four pixels around it.
    for dx in (0, 1):
        for dy in (0, 1):
            left, top = np.floor(x).astype(int), np.floor(y).astype(int)
            share = np.abs(1 - dx - (x - left)) * np.abs(1 - dy - (y - top))
            np.add.at(kernel, (reach + top + dy, reach + left + dx), share)
    smeared = cv2.filter2D(face, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(smeared, np.uint8)
