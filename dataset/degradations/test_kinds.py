"""Eight ways to degrade a face that are kept for tests; strengths as in `dataset.degradations`.

They share little with the kinds that models are trained on: another optics, another path, another
codec. A model that ranks them too has learned more than its own copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dataset.degradations.effects import GAMMA, Floats, cover, smear, to_bytes
from sdd_fiqa.images import FACE_SIZE, Image, cv2

_STRANDS = 50
_BIGGEST_TILE = 14  # px


def defocus(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A lens out of focus: a disc of light for every point."""
    radius = 15 * strength
    y, x = np.mgrid[-16:17, -16:17]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    disc[16, 16] = 1
    light = _light(face)
    return _from_light(cv2.filter2D(light, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE))


def shake(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A hand's tremor: a curved path of up to 60 px."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.9, 12))
    step = 60 / 240 * strength
    angle = np.repeat(heading, 20)
    x, y = np.cumsum(step * np.cos(angle)), np.cumsum(step * np.sin(angle))
    return smear(face, x - x.mean(), y - y.mean())


def mosaic(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Squares of one colour, as made to hide a face, of up to 14 px."""
    side = 1 + round((_BIGGEST_TILE - 1) * strength)
    left, top = rng.integers(0, _BIGGEST_TILE, 2) % side
    tiles = FACE_SIZE // side + 2
    below, right = (tiles * side - FACE_SIZE - int(start) for start in (top, left))
    wide = cv2.copyMakeBorder(face, int(top), below, int(left), right, cv2.BORDER_REPLICATE)
    small = cv2.resize(wide, (tiles, tiles), interpolation=cv2.INTER_AREA)
    squares = np.repeat(np.repeat(small, side, axis=0), side, axis=1)
    return squares[top : top + FACE_SIZE, left : left + FACE_SIZE]


def impulse(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Dead and hot pixels, whole ones or single colours; up to two thirds of all."""
    chance = rng.random((FACE_SIZE, FACE_SIZE, 3))
    if rng.random() < 0.5:
        chance = np.repeat(chance[:, :, :1], 3, axis=2)
    value = np.where(rng.random(chance.shape[:2])[:, :, None] < 0.5, 0, 255)
    return np.where(chance < strength**1.5 * 2 / 3, value, face)


def webp(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A video call on a bad line: few pixels, WebP at quality 80 down to 1."""
    side = round(FACE_SIZE * (12 / FACE_SIZE) ** strength)
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_WEBP_QUALITY, max(1, round(80 * (1 - strength)))]
    _, content = cv2.imencode(".webp", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return cv2.resize(decoded, (FACE_SIZE, FACE_SIZE), interpolation=cv2.INTER_CUBIC)


def exposure(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Too much light, by up to 5 stops: clipped, and glowing into its surroundings."""
    glow = rng.uniform(2, 8)
    light = _light(face) * 2 ** (5 * strength)
    spill = cv2.GaussianBlur(np.maximum(light - 1, 0), (0, 0), glow)
    return _from_light(light + 0.05 * spill)


def haze(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Fog, smoke or a dirty lens: its own light takes the place of the face's."""
    veil = rng.uniform(0.5, 0.95) + rng.uniform(-0.05, 0.05, 3)
    grain = rng.standard_normal((FACE_SIZE, FACE_SIZE, 1))
    through = (1 - strength) ** 1.5
    signal = face / 255 * through + veil * (1 - through)
    return to_bytes(signal + 0.02 * strength * grain)


def strands(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Hair, branches or a fence in front: 50 bent lines, one after another."""
    # Of each pixel: the strength at which it is covered.
    reach: Floats = np.full((FACE_SIZE, FACE_SIZE), np.inf, np.float32)
    ends = rng.uniform(-0.3, 1.3, (_STRANDS, 3, 2)) * FACE_SIZE
    widths = rng.integers(1, 4, _STRANDS)
    lean = rng.uniform(-1, 1, 2) * FACE_SIZE  # they hang together
    for number in range(_STRANDS - 1, -1, -1):
        start, bend, _ = ends[number]  # without the third, a seed would give other copies
        points = [start, (start + bend) / 2 + lean / 3, bend + lean]
        line = np.array([points], np.int32).reshape(-1, 1, 2)
        cv2.polylines(reach, [line], False, number / _STRANDS, int(widths[number]))
    colour = rng.integers(0, 60, 3) if rng.random() < 0.5 else rng.integers(60, 256, 3)
    return cover(face, reach < strength, colour)


def _light(face: Image) -> Floats:
    """Pixel values as shares of the light that fills them, float32."""
    return (face.astype(np.float32) / 255) ** np.float32(GAMMA)


def _from_light(light: Any) -> Any:
    return to_bytes(np.clip(light, 0, 1) ** (1 / GAMMA))
