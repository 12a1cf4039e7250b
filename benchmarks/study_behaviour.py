"""How a quality model behaves: on degraded faces, on pictures without a face, on small changes.

    python benchmarks/study_behaviour.py --faces checkpoints/sdd_fiqa/held_out.txt --model small

Prints three tables in Markdown:

1. For each kind of degradation: the share of faces whose score never rises with the strength (by
   more than a tolerance); the same with scores below 10 counted as 10; and the median score at each
   strength. Some kinds have random parts, so the score of a face is the median over several draws.
2. Pictures without a face, made by code or cut from next to faces: the share that scores below the
   5th percentile of the faces.
3. How much the score of a face changes if it is mirrored, or shifted by 2 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from common.cli import EXIT_DONE, run_script
from dataset.degradations import KINDS, TEST_KINDS, degrade
from dataset.images import read_face
from dataset.lists import read_table
from evaluation.by_kind import CLEAN, kind_of
from models import QualityModel, load_quality_model
from models.pretrained import DEFAULT_MODEL
from sdd_fiqa.images import FACE_SIZE, Image

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BAD = 10  # points: nobody keeps faces below this score, so their order does not matter
Faces = npt.NDArray[np.uint8]


def main(
    *,
    faces: Path,
    model: str = DEFAULT_MODEL,
    sample: int = 200,
    draws: int = 3,
    tolerance: float = 2.0,
    seed: int = 0,
) -> int:
    """Prints the tables.

    Args:
        faces: a list of aligned faces that the model has not seen; only undegraded ones are used.
        model: as for eval.py.
        sample: number of faces.
        draws: random draws for each face, kind and strength.
        tolerance: a rise of up to so many points is ignored.
        seed: random seed of the sample and of all draws.
    """
    network = load_quality_model(model)
    paths = [path for path in read_table(faces).paths() if kind_of(path) == CLEAN]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(paths), min(sample, len(paths)), replace=False)
    own: Faces = np.stack([read_face(paths[number]) for number in sorted(chosen.tolist())])
    scores = network(own)
    print(f"{network.name}: {len(own)} faces of {faces}\n")
    degradations(network, own, draws, tolerance, seed)
    non_faces(network, own, scores, seed)
    moves(network, own, scores)
    return EXIT_DONE


def degradations(
    network: QualityModel, faces: Faces, draws: int, tolerance: float, seed: int
) -> None:
    """The first table."""
    shown = " | ".join(f"{strength:g}" for strength in STRENGTHS)
    print(f"| degradation | never rises | above {BAD} | ends lower | {shown} |")
    print("| --- " * (4 + len(STRENGTHS)) + "|")
    for kind in KINDS:
        of = np.empty((draws, len(STRENGTHS), len(faces)), np.float32)
        for draw in range(draws):
            for place, strength in enumerate(STRENGTHS):
                rngs = (np.random.default_rng([seed, draw, row]) for row in range(len(faces)))
                degraded = [degrade(f, kind, strength, r) for f, r in zip(faces, rngs, strict=True)]
                of[draw, place] = network(np.stack(degraded))
        score = np.median(of, axis=0)  # (strengths, faces)
        lowest = np.minimum.accumulate(score, axis=0)
        falls, above = (
            np.all(
                np.maximum(score[1:], floor) <= np.maximum(lowest[:-1], floor) + tolerance, axis=0
            )
            for floor in (-np.inf, BAD)
        )
        ends = np.mean(score[-1] < score[0])
        medians = " | ".join(f"{value:.0f}" for value in np.median(score, axis=1))
        name = f"{kind} (not trained on)" if kind in TEST_KINDS else kind
        print(f"| {name} | {falls.mean():.1%} | {above.mean():.1%} | {ends:.1%} | {medians} |")


def non_faces(
    network: QualityModel, faces: Faces, scores: npt.NDArray[np.float32], seed: int
) -> None:
    """The second table."""
    limit = np.percentile(scores, 5)
    print(f"\n5th percentile of the faces: {limit:.1f}, median {np.median(scores):.1f}\n")
    print("| picture | median score | below the 5th percentile of faces |\n| --- | --- | --- |")
    for name, make in NON_FACES.items():
        rng = np.random.default_rng(seed)
        found = network(np.stack([make(face, rng) for face in faces]))
        print(f"| {name} | {np.median(found):.1f} | {np.mean(found < limit):.1%} |")


def moves(network: QualityModel, faces: Faces, scores: npt.NDArray[np.float32]) -> None:
    """The third table."""
    print("\n| change | median move | 95th percentile |\n| --- | --- | --- |")
    for name, changed in _changed(faces):
        by = np.abs(network(changed) - scores)
        print(f"| {name} | {np.median(by):.2f} | {np.percentile(by, 95):.2f} |")


def _changed(faces: Faces) -> Iterator[tuple[str, Faces]]:
    yield "mirrored", np.ascontiguousarray(faces[:, :, ::-1])
    for name, x, y in (("right", 2, 0), ("left", -2, 0), ("down", 0, 2), ("up", 0, -2)):
        wide = np.pad(faces, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
        size = FACE_SIZE
        yield f"shifted {name} by 2 px", wide[:, 2 - y : 2 - y + size, 2 - x : 2 - x + size]


def _white_noise(face: Image, rng: np.random.Generator) -> Image:
    return rng.integers(0, 256, face.shape, np.uint8)


def _texture(face: Image, rng: np.random.Generator) -> Image:
    """Noise at all scales, like clouds, stone and cloth."""
    picture = np.zeros(face.shape, np.float32)
    for side in (2, 4, 8, 16, 32, 64):
        layer = rng.uniform(-1, 1, (side, side, 3)).astype(np.float32)
        picture += cv2.resize(layer, (FACE_SIZE, FACE_SIZE)) * side ** -rng.uniform(0, 0.8)
    return _stretched(picture)


def _stripes(face: Image, rng: np.random.Generator) -> Image:
    """Two crossing waves."""
    y, x = np.mgrid[:FACE_SIZE, :FACE_SIZE].astype(np.float32)
    picture = np.zeros((FACE_SIZE, FACE_SIZE), np.float32)
    for _ in range(2):
        angle, length = rng.uniform(0, np.pi), rng.uniform(4, 60)
        picture += np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length)
    return _stretched(picture[:, :, None] * rng.uniform(0.2, 1, 3).astype(np.float32))


def _landscape(face: Image, rng: np.random.Generator) -> Image:
    """A sky that is lighter below, a sun, and three ranges of hills."""
    y, x = np.mgrid[:FACE_SIZE, :FACE_SIZE] / FACE_SIZE
    picture = np.array([90, 140, 210]) + 90 * y[:, :, None] * np.array([1, 0.8, 0.4])
    sun = np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 0.4)) < rng.uniform(0.03, 0.12)
    picture[sun] = (255, 240, 190)
    for depth in range(3):
        waves = rng.uniform(1, 9, 4), rng.uniform(0, 6, 4), rng.uniform(0.01, 0.08, 4)
        ridge = (
            0.4
            + 0.18 * depth
            + sum(h * np.sin(f * 2 * np.pi * x[0] + p) for f, p, h in zip(*waves, strict=True))
        )
        colour = np.array([90, 130, 90]) * rng.uniform(0.5, 1.2, 3) * (1 - 0.2 * depth)
        picture = np.where((y > ridge)[:, :, None], colour, picture)
    return _bytes(picture + rng.normal(0, 8, face.shape))


def _one_colour(face: Image, rng: np.random.Generator) -> Image:
    return np.broadcast_to(rng.integers(0, 256, 3, np.uint8), face.shape).copy()


def _beside_the_face(face: Image, rng: np.random.Generator) -> Image:
    """A corner of the crop, 28 px a side, enlarged: background, hair or collar."""
    top, left = (int(rng.integers(2)) * (FACE_SIZE - 28) for _ in range(2))
    corner = face[top : top + 28, left : left + 28]
    return np.asarray(cv2.resize(corner, (FACE_SIZE, FACE_SIZE)), np.uint8)


def _shuffled(face: Image, rng: np.random.Generator) -> Image:
    """The face cut into 16 tiles, in random order."""
    tiles = face.reshape(4, 28, 4, 28, 3).swapaxes(1, 2).reshape(16, 28, 28, 3)
    mixed = tiles[rng.permutation(16)].reshape(4, 4, 28, 28, 3).swapaxes(1, 2)
    return np.asarray(mixed.reshape(face.shape), np.uint8)


def _upside_down(face: Image, rng: np.random.Generator) -> Image:
    return face[::-1]


def _stretched(picture: npt.NDArray[np.float32]) -> Image:
    low, high = picture.min(), picture.max()
    return _bytes((picture - low) / (high - low) * 255)


def _bytes(picture: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.clip(picture, 0, 255), np.uint8)


NON_FACES: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "white noise": _white_noise,
    "texture": _texture,
    "stripes": _stripes,
    "landscape": _landscape,
    "one colour": _one_colour,
    "corner beside the face": _beside_the_face,
    "face in 16 tiles, shuffled": _shuffled,
    "face upside down": _upside_down,
}


if __name__ == "__main__":
    run_script(main)
