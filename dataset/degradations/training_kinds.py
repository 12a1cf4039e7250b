"""Seeded ways to spoil an aligned face, as cameras, networks and the world spoil it.

Every kind takes a strength from 0 (the face as it is) to 1 (about beyond recognition), and grows
with it: with the same random numbers, more strength changes more. All lengths are pixels of a
112x112 face. The ranges are set so that a recogniser's cosine between a face and its copy falls to
below 0.2 at strength 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataset.degradations import test_kinds as degrade_more
from dataset.degradations.effects import GAMMA, Floats, cover, grain, grid, smear, to_bytes
from sdd_fiqa.images import FACE_SIZE, Image, cv2

_EYES = (51.6, 38.3, 73.5)  # of the alignment template: y of both, x of the left and the right one


def degrade(face: Image, kind: str, strength: float, rng: np.random.Generator) -> Image:
    """A spoilt copy of an aligned face.

    Args:
        face: (112, 112, 3) uint8, RGB.
        kind: one of `KINDS`:

            * blur: defocus; Gaussian, standard deviation 8 px times strength.
            * motion: a straight move during exposure, in any direction, of up to 32 px.
            * low_resolution: a face far away: 112 px a side down to 6, and up again by a drawn
              interpolation.
            * noise: a sensor short of light: shot noise, whose variance follows the signal, and
              read noise; up to about 65 % and 30 % of full scale (standard deviations).
            * compression: JPEG, 4:2:0, quality 95 down to 2, its 8x8 grid at any offset.
            * low_light: light falls by up to 10 stops; the camera's gain brings a drawn share of
              it back, and the noise with it.
            * occlusion: something opaque in front: sunglasses, a mask, a hand or scarf from one
              side, or blocks; from nothing to nearly all of the face.
            * black_border: the photo ends inside the crop, along one or two slanted edges; up to
              some nine tenths of the crop are black.
            * misalignment: landmarks found wrongly; turned by up to 75 degrees, shifted by up to 40
              px, scaled by up to 2.
            * defocus, shake, mosaic, impulse, webp, exposure, haze, strands: see
              `dataset.degradations.test_kinds`; TEST_KINDS.
        strength: in [0, 1].
        rng: its numbers choose direction, shape, colour and noise; as many are drawn whatever the
            strength.

    Returns:
        (112, 112, 3) uint8, RGB, a new array. A grey face stays grey.

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
    spoilt = np.asarray(KINDS[kind](face, float(strength), rng), np.uint8)
    if strength == 0:
        return face.copy()
    is_grey = bool(np.all(face == face[:, :, :1]))
    return np.repeat(spoilt[:, :, 1:2], 3, axis=2) if is_grey else spoilt


def _blur(face: Image, strength: float, rng: np.random.Generator) -> Any:
    return cv2.GaussianBlur(face, (0, 0), 8 * strength) if strength else face


def _motion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-16, 16, 321) * strength
    return smear(face, along * np.cos(angle), along * np.sin(angle))


def _low_resolution(face: Image, strength: float, rng: np.random.Generator) -> Any:
    up = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    method = up[int(rng.integers(len(up)))]
    side = round(FACE_SIZE * (6 / FACE_SIZE) ** strength)
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=method)


def _noise(face: Image, strength: float, rng: np.random.Generator) -> Any:
    shot, read = grain(rng), grain(rng)
    signal = face.astype(np.float32) / 255
    amount = strength**1.5  # the eye sees the first little noise best
    return to_bytes(signal + amount * (0.65 * np.sqrt(signal) * shot + 0.3 * read))


def _compression(face: Image, strength: float, rng: np.random.Generator) -> Any:
    left, top = (int(offset) for offset in rng.integers(0, 16, 2))
    padded = cv2.copyMakeBorder(face, top, 16 - top, left, 16 - left, cv2.BORDER_REFLECT_101)
    quality = round(95 * (2 / 95) ** strength)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), settings)
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return decoded[top : top + FACE_SIZE, left : left + FACE_SIZE]


def _low_light(face: Image, strength: float, rng: np.random.Generator) -> Any:
    brought_back = rng.uniform(0, 0.5)
    shot, read = grain(rng), grain(rng)
    stops = 10 * strength
    light = (face.astype(np.float32) / 255) ** GAMMA * 2**-stops
    # A small sensor: 4,000 electrons fill a pixel, and reading it costs 6.
    noisy = light + strength * (np.sqrt(light / 4000) * shot + 6 / 4000 * read)
    return to_bytes(np.maximum(noisy * 2 ** (brought_back * stops), 0) ** (1 / GAMMA))


def _occlusion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    shapes = (_sunglasses, _mask, _side, _blocks)
    reach = shapes[int(rng.integers(len(shapes)))](rng)
    colour = rng.choice(
        [rng.integers(0, 50, 3), rng.integers(180, 256, 3), rng.integers(0, 256, 3)]
    )
    return cover(face, reach <= strength, colour)


def _black_border(face: Image, strength: float, rng: np.random.Generator) -> Any:
    x, y = grid()
    tilt, second = rng.uniform(-0.4, 0.4, 2), rng.uniform(0, 1)
    turn = int(rng.integers(4))
    first_edge = (x + tilt[0] * (y - 0.5)) / 0.85
    second_edge = (y + tilt[1] * (x - 0.5)) / 0.85
    other = second_edge / max(second, 1e-6) if second > 0.5 else np.full_like(x, np.inf)
    reach = np.minimum(first_edge, other)
    # The nearest corner has reach 0, so that any strength shows.
    reach = reach - min(0.0, float(reach.min()))
    return cover(face, np.rot90(reach, turn) < strength, np.zeros(3))


def _sunglasses(rng: np.random.Generator) -> Floats:
    """Two glasses and a bar, that grow over brow and cheek. Values: the strength that covers."""
    x, y = grid()
    eye_y, left, right = (value / FACE_SIZE for value in _EYES)
    glass = np.minimum(np.abs(x - left), np.abs(x - right))
    flat = rng.uniform(0.5, 0.8)
    return np.asarray(np.hypot(glass / 0.75, (y - eye_y) / (flat * 0.75)))


def _mask(rng: np.random.Generator) -> Floats:
    """From the chin upwards, higher over the nose."""
    x, y = grid()
    bulge = rng.uniform(0.05, 0.2)
    return (1 - y + bulge * (2 * (x - 0.5)) ** 2) / 0.85


def _side(rng: np.random.Generator) -> Floats:
    """A straight edge that comes in from any direction."""
    x, y = grid()
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    along = along - np.min(along)
    return np.asarray(along / (0.8 * np.max(along)))


def _blocks(rng: np.random.Generator) -> Floats:
    """Three squares around random places, that grow into each other."""
    x, y = grid()
    reach = np.full_like(x, np.inf)
    for centre_x, centre_y in rng.uniform(0.2, 0.8, (3, 2)):
        reach = np.minimum(reach, np.maximum(np.abs(x - centre_x), np.abs(y - centre_y)))
    return reach / 0.35


Degradation = Callable[[Image, float, np.random.Generator], Any]

# To train on, in the order in which the draws of a seed count them.
_TRAINING: dict[str, Degradation] = {
    "blur": _blur,
    "motion": _motion,
    "low_resolution": _low_resolution,
    "noise": _noise,
    "compression": _compression,
    "low_light": _low_light,
    "occlusion": _occlusion,
    "black_border": _black_border,
    "misalignment": degrade_more.misalignment,
}
# Never to train on: what shows whether a model knows bad faces, or its own training copies.
_TEST: dict[str, Degradation] = {
    "defocus": degrade_more.defocus,
    "shake": degrade_more.shake,
    "mosaic": degrade_more.mosaic,
    "impulse": degrade_more.impulse,
    "webp": degrade_more.webp,
    "exposure": degrade_more.exposure,
    "haze": degrade_more.haze,
    "strands": degrade_more.strands,
}
KINDS = _TRAINING | _TEST
TRAINING_KINDS, TEST_KINDS = tuple(_TRAINING), tuple(_TEST)

# From the scene through the lens and the sensor to the file: the order of several kinds at once.
_ALONG_THE_WAY = (
    *("misalignment", "occlusion", "strands", "haze", "low_light", "exposure"),
    *("blur", "defocus", "motion", "shake", "noise", "impulse"),
    *("low_resolution", "mosaic", "black_border", "compression", "webp"),
)


def degrade_by(face: Image, strengths: Mapping[str, float], rng: np.random.Generator) -> Image:
    """A copy spoilt in several ways, in the order in which they happen to a picture.

    Args:
        face: (112, 112, 3) uint8, RGB.
        strengths: {kind: strength in [0, 1]}, in any order.
        rng: as for `degrade`.

    Returns:
        (112, 112, 3) uint8, RGB, a new array.

    Raises:
        ValueError: as `degrade`.
    """
    spoilt = face.copy()
    for kind in sorted(strengths, key=_ALONG_THE_WAY.index):
        spoilt = degrade(spoilt, kind, strengths[kind], rng)
    return spoilt
