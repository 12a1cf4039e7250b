"""Nine ways to degrade a face that models are trained on; see `dataset.degradations.degrade`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataset.degradations.effects import GAMMA, Floats, cover, grain, grid, smear, to_bytes
from sdd_fiqa.images import FACE_SIZE, Image, cv2

_EYES = (51.6, 38.3, 73.5)  # of the alignment template: y of both, x of the left and the right one


def blur(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Defocus: Gaussian, standard deviation 8 px times strength."""
    return cv2.GaussianBlur(face, (0, 0), 8 * strength) if strength else face


def motion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """A straight move during exposure, in any direction, of up to 32 px."""
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-16, 16, 321) * strength
    return smear(face, along * np.cos(angle), along * np.sin(angle))


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
    shot, read = grain(rng), grain(rng)
    signal = face.astype(np.float32) / 255
    amount = strength**1.5  # the eye sees the first little noise best
    return to_bytes(signal + amount * (0.65 * np.sqrt(signal) * shot + 0.3 * read))


def compression(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """JPEG, 4:2:0, quality 95 down to 2, its 8x8 grid at any offset."""
    left, top = (int(offset) for offset in rng.integers(0, 16, 2))
    padded = cv2.copyMakeBorder(face, top, 16 - top, left, 16 - left, cv2.BORDER_REFLECT_101)
    quality = round(95 * (2 / 95) ** strength)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), settings)
    decoded: Any = cv2.imdecode(content, cv2.IMREAD_COLOR)
    decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return decoded[top : top + FACE_SIZE, left : left + FACE_SIZE]


def low_light(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Light falls by up to 10 stops; gain brings a drawn share back, and the noise with it."""
    brought_back = rng.uniform(0, 0.5)
    shot, read = grain(rng), grain(rng)
    stops = 10 * strength
    light = (face.astype(np.float32) / 255) ** GAMMA * 2**-stops
    # A small sensor: 4,000 electrons fill a pixel, and reading it costs 6.
    noisy = light + strength * (np.sqrt(light / 4000) * shot + 6 / 4000 * read)
    return to_bytes(np.maximum(noisy * 2 ** (brought_back * stops), 0) ** (1 / GAMMA))


def occlusion(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """Something opaque in front: sunglasses, a mask, a hand or scarf from one side, or blocks."""
    shapes = (_sunglasses, _mask, _side, _blocks)
    reach = shapes[int(rng.integers(len(shapes)))](rng)
    colour = rng.choice(
        [rng.integers(0, 50, 3), rng.integers(180, 256, 3), rng.integers(0, 256, 3)]
    )
    return cover(face, reach <= strength, colour)


def black_border(face: Image, strength: float, rng: np.random.Generator) -> Any:
    """The photo ends inside the crop, along one or two slanted edges: up to nine tenths black."""
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
