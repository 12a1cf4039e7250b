"""Mean scores by pose, eye distance, mask and light: do they fall where a picture gets worse?

    python -m benchmarks.study_variation --faces checkpoints/small/held_out.txt --model small

Prints a line for each variation, in Markdown: the mean score in each bin, from the best to the
worst, and the largest rise from a bin to the next worse one. The poses are those of the faces
themselves; the other variations are made from the same faces, so each face is in every bin:

- pose: the yaw of the head in bins of 15 degrees (`yaw`);
- eye distance: the face reduced until its eyes are so many pixels apart, and enlarged again;
- mask: a drawn mask from the chin up to the mouth, to the nose, and to the lower eyelids;
- light: the linear light of the picture divided by 2, 4, 8, 16 and 32.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from benchmarks.study_poses import turn_of
from common.cli import EXIT_DONE, run_script
from dataset.images import read_face
from dataset.lists import read_table
from evaluation.by_kind import CLEAN, kind_of
from models import load_quality_model
from models.pretrained import DEFAULT_MODEL
from sdd_fiqa.alignment import TEMPLATE, FaceAligner
from sdd_fiqa.cores import own_cores
from sdd_fiqa.images import FACE_SIZE, Image

EYES = float(TEMPLATE[1, 0] - TEMPLATE[0, 0])  # pixels between the eyes of an aligned face
DISTANCES = (40, 24, 16, 12, 8)  # an aligned face has 35: 40 leaves it as it is
MASKS = (None, 84, 66, 56)  # pixel row of the upper edge: none, mouth, nose, below the eyes
LIGHT = (1, 2, 4, 8, 16, 32)
POSES = (15, 30, 45, 60)
# How far a nose stands out from the line between the middle of the eyes and of the mouth, as a
# share of that line's length (35 mm of 65 mm).
_NOSE = 0.54


def main(
    *, faces: Path, model: str = DEFAULT_MODEL, poses: Path | None = None, sample: int = 500
) -> int:
    """Prints the table.

    Args:
        faces: a list of aligned faces; only undegraded ones are used.
        model: as for eval.py.
        poses: another list for the poses, which need many faces; None takes `faces`.
        sample: at most so many faces for the other variations, spread evenly over the list.
    """
    network = load_quality_model(model)
    paths = [path for path in read_table(faces).paths() if kind_of(path) == CLEAN]
    own = [read_face(path) for path in paths[:: max(1, len(paths) // sample)]]
    print(f"{network.name}: {len(own)} faces of {faces}\n")
    print("| variation | bins, best first | mean score | largest rise |\n| --- | --- | --- | --- |")

    def show(name: str, bins: list[str], means: list[float]) -> None:
        rise = max(0.0, *np.diff(means).tolist())
        shown = " / ".join(f"{mean:.1f}" for mean in means)
        print(f"| {name} | {' / '.join(bins)} | {shown} | {rise:.1f} |")

    listed = paths if poses is None else list(read_table(poses).paths())
    with ThreadPoolExecutor(own_cores()) as pool:
        turned = np.fromiter(
            pool.map(partial(yaw, aligner=FaceAligner(score_threshold=0.3)), listed), np.float64
        )
    known = np.flatnonzero(~np.isnan(turned))
    scores = np.concatenate(
        [
            network(np.stack([read_face(listed[row]) for row in rows]))
            for rows in np.array_split(known, max(1, len(known) // 256))
        ]
    )
    bins = np.digitize(turned[known], POSES)
    filled = [number for number in range(len(POSES) + 1) if (bins == number).sum() >= 20]
    names = [f"{low}+ degrees ({(bins == k).sum()})" for k, low in enumerate((0, *POSES))]
    show("pose", [names[k] for k in filled], [float(scores[bins == k].mean()) for k in filled])
    made = {
        "eye distance": ([f"{d} px" for d in DISTANCES], [reduced(d) for d in DISTANCES]),
        "mask": (
            ["none", "to the mouth", "to the nose", "to the eyes"],
            [masked(r) for r in MASKS],
        ),
        "light": ([f"1/{share}" for share in LIGHT], [darkened(share) for share in LIGHT]),
    }
    for name, (labels, changes) in made.items():
        show(name, labels, [float(network(np.stack([c(f) for f in own])).mean()) for c in changes])
    return EXIT_DONE


def yaw(path: str, aligner: FaceAligner) -> float:
    """Degrees that a head is turned by, from five landmarks; NaN where no face is found."""
    return float(np.degrees(np.arcsin(min(1.0, turn_of(path, aligner) / _NOSE))))


def reduced(distance: int) -> Callable[[Image], Image]:
    """Makes faces whose eyes are `distance` pixels apart, on crops of the usual size."""
    side = round(FACE_SIZE * distance / EYES)

    def change(face: Image) -> Image:
        if side >= FACE_SIZE:
            return face
        small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (FACE_SIZE, FACE_SIZE)), np.uint8)

    return change


def masked(upper: int | None) -> Callable[[Image], Image]:
    """Draws a light blue mask over the lower part of faces, up to the row `upper`."""
    left, right, chin = 20, 92, 118
    edges = [] if upper is None else [(left, upper + 6), (56, upper), (right, upper + 6)]
    outline = np.array([*edges, (right - 6, 100), (56, chin), (left + 6, 100)], np.int32)

    def change(face: Image) -> Image:
        if upper is None:
            return face
        return np.asarray(cv2.fillPoly(face.copy(), [outline], (170, 195, 215)), np.uint8)

    return change


def darkened(share: int) -> Callable[[Image], Image]:
    """Divides the linear light of faces: pixels to the power of 2.2."""
    table = 255 * (np.arange(256) / 255) / share ** (1 / 2.2)
    return lambda face: np.asarray(table.round().astype(np.uint8)[face], np.uint8)


if __name__ == "__main__":
    run_script(main)
