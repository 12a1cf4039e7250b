"""Seventeen ways to degrade a face: what `dataset.degradations.degrade` calls.

Models are trained on the first nine. The others are kept for tests, and share little with these:
another optics, another path, another codec. A model that ranks them too has learned more than its
own copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.images import FACE_SIZE, Image, cv2

Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]

_GAMMA = 2.2  # from pixel values to light and back
_EYES = (51.6, 38.3, 73.5)  # of the alignment template: y of both, x of the left and the right one
_STRANDS = 50
_BIGGEST_TILE = 14  # px


def blur(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Defocus: Gaussian, standard deviation 8 px times strength."""
    return cv2.GaussianBlur(face, (0, 0), 8 * strength) if strength else face


def motion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A straight move during exposure, in any direction, of up to 32 px."""
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-16, 16, 321) * strength
    return _smear(face, along * np.cos(angle), along * np.sin(angle))


def low_resolution(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A face far away: 112 px a side down to 6, and up again by a drawn interpolation."""
    up = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
    method = up[int(rng.integers(len(up)))]
    side = round(FACE_SIZE * (6 / FACE_SIZE) ** strength)
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (FACE_SIZE, FACE_SIZE), interpolation=method)


def noise(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A sensor short of light: shot noise, whose variance follows the signal, and read noise.

    Up to about 65 % and 30 % of full scale (standard deviations).
    """
    shot, read = _grain(rng), _grain(rng)
    signal = face.astype(np.float32) / 255
    amount = strength**1.5  # the eye sees the first little noise best
    return _to_bytes(signal + amount * (0.65 * np.sqrt(signal) * shot + 0.3 * read))


def compression(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """JPEG, 4:2:0, quality 95 down to 2, its 8x8 grid at any offset."""
    left, top = (int(offset) for offset in rng.integers(0, 16, 2))
    padded = cv2.copyMakeBorder(face, top, 16 - top, left, 16 - left, cv2.BORDER_REFLECT_101)
    quality = round(95 * (2 / 95) ** strength)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), settings)
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
    return decoded[top : top + FACE_SIZE, left : left + FACE_SIZE]


def low_light(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Light falls by up to 10 stops; gain brings a drawn share back, and the noise with it."""
    brought_back = rng.uniform(0, 0.5)
    shot, read = _grain(rng), _grain(rng)
    stops = 10 * strength
    light = _light(face) * 2**-stops
    # A small sensor: 4,000 electrons fill a pixel, and reading it costs 6.
    noisy = light + strength * (np.sqrt(light / 4000) * shot + 6 / 4000 * read)
    return _from_light(noisy * 2 ** (brought_back * stops))


def occlusion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Something opaque in front: sunglasses, a mask, a hand or scarf from one side, or blocks."""
    shapes = (_sunglasses, _mask, _side, _blocks)
    reach = shapes[int(rng.integers(len(shapes)))](rng, *_grid())
    colour = rng.choice(
        [rng.integers(0, 50, 3), rng.integers(180, 256, 3), rng.integers(0, 256, 3)]
    )
    return _cover(face, reach <= strength, colour)


def black_border(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """The photo ends inside the crop, along one or two slanted edges: up to nine tenths black."""
    x, y = _grid()
    tilt, second = rng.uniform(-0.4, 0.4, 2), rng.uniform(0, 1)
    turn = int(rng.integers(4))
    first_edge = (x + tilt[0] * (y - 0.5)) / 0.85
    second_edge = (y + tilt[1] * (x - 0.5)) / 0.85
    other = second_edge / max(second, 1e-6) if second > 0.5 else np.full_like(x, np.inf)
    reach = np.minimum(first_edge, other)
    # The nearest corner has reach 0, so that any strength shows.
    reach = reach - min(0.0, float(reach.min()))
    return _cover(face, np.rot90(reach, turn) < strength, np.zeros(3))


def misalignment(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Landmarks found wrongly: up to 75 degrees of turn, 40 px of shift, a scale of up to 2."""
    turn, grow = rng.uniform(-1, 1, 2)
    direction, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
    border = (cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_REFLECT_101)
    beyond = border[int(rng.integers(len(border)))]
    centre = (FACE_SIZE - 1) / 2
    matrix: Any = cv2.getRotationMatrix2D(
        (centre, centre), 75 * strength * turn, 2 ** (strength * grow)
    )
    matrix[:, 2] += 40 * strength * far * np.array([np.cos(direction), np.sin(direction)])
    return cv2.warpAffine(
        face, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR, borderMode=beyond
    )


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
    return _smear(face, x - x.mean(), y - y.mean())


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
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
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
    return _to_bytes(signal + 0.02 * strength * grain)


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
    return _cover(face, reach < strength, colour)


def _grid() -> tuple[Floats, Floats]:
    """Of every pixel's centre: x and y as shares of the side, (112, 112) each."""
    axis = (np.arange(FACE_SIZE) + 0.5) / FACE_SIZE
    x, y = np.meshgrid(axis, axis)
    return x, y


def _cover(face: Image, where: Mask, colour: npt.NDArray[Any]) -> Image:
    """The face with one colour, (3,) of 0..255, where the (112, 112) mask says."""
    return np.where(where[:, :, None], colour.astype(np.uint8), face)


def _grain(rng: np.random.Generator) -> Floats:
    """(112, 112, 3) noise of mean 0, standard deviation 1, a little smeared as by demosaicing."""
    smear = rng.uniform(0.3, 0.9)
    white = rng.standard_normal((FACE_SIZE, FACE_SIZE, 3), np.float32)
    noise = np.asarray(cv2.GaussianBlur(white, (0, 0), smear), np.float32)
    return noise / np.std(noise)


def _to_bytes(signal: npt.NDArray[Any]) -> Image:
    """Values of 0..1, clipped to it, as uint8 pixels."""
    return np.clip(np.round(signal * 255), 0, 255).astype(np.uint8)


def _smear(face: Image, x: Floats, y: Floats) -> Image:
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


def _light(face: Image) -> Floats:
    """Pixel values as shares of the light that fills them, float32."""
    return (face.astype(np.float32) / 255) ** np.float32(_GAMMA)


def _from_light(light: Any) -> Any:
    return _to_bytes(np.clip(light, 0, 1) ** (1 / _GAMMA))


def _sunglasses(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Two glasses and a bar, that grow over brow and cheek. Values: the strength that covers."""
    eye_y, left, right = (value / FACE_SIZE for value in _EYES)
    glass = np.minimum(np.abs(x - left), np.abs(x - right))
    flat = rng.uniform(0.5, 0.8)
    return np.asarray(np.hypot(glass / 0.75, (y - eye_y) / (flat * 0.75)))


def _mask(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """From the chin upwards, higher over the nose."""
    bulge = rng.uniform(0.05, 0.2)
    return (1 - y + bulge * (2 * (x - 0.5)) ** 2) / 0.85


def _side(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """A straight edge that comes in from any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    along = along - np.min(along)
    return np.asarray(along / (0.8 * np.max(along)))


def _blocks(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """Three squares around random places, that grow into each other."""
    reach = np.full_like(x, np.inf)
    for centre_x, centre_y in rng.uniform(0.2, 0.8, (3, 2)):
        reach = np.minimum(reach, np.maximum(np.abs(x - centre_x), np.abs(y - centre_y)))
    return reach / 0.35
