"""Selects frontal faces and profiles of the same people from a list: a test set for pose.

    python benchmarks/study_poses.py --image-list annotations/DATA.labelpath --out-dir poses

The turn of a head is measured from YuNet's landmarks on the aligned face. It is the distance of the
nose from the line between the middle of the eyes and the middle of the mouth, divided by the length
of that line: 0 is frontal, about .27 and more is a profile. People need at least four faces of each
kind. Up to `most` of each kind are drawn and written to <out-dir>/DATA.labelpath, which
extract_feats.py, study_heads.py and eval_edc.py read.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.cli import EXIT_DONE, run_script
from dataset.images import read_face
from dataset.lists import LABELPATH, read_labelpath
from sdd_fiqa.alignment import FaceAligner, Points
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import replacing

_MARGIN = 40  # pixels of black: the detector needs room around a face
_FEWEST = 4


def main(
    *,
    image_list: Path,
    out_dir: Path,
    frontal: float = 0.07,
    profile: float = 0.27,
    most: int = 15,
    seed: int = 0,
) -> int:
    """Writes the list of frontal faces and profiles.

    Args:
        image_list: DATA.labelpath of aligned faces.
        out_dir: the DATA.labelpath of the chosen faces is written here.
        frontal: the largest turn of a frontal face.
        profile: the smallest turn of a profile.
        most: at most so many frontal faces, and so many profiles, of one person.
        seed: random seed of the draw.
    """
    if (out_dir / LABELPATH).resolve() == image_list.resolve():
        raise UserError(
            f"--out-dir {out_dir}: would overwrite the list itself; name another folder"
        )
    table, identities = read_labelpath(image_list)
    paths = list(table.paths())
    aligner = FaceAligner(score_threshold=0.3)
    with ThreadPoolExecutor(own_cores()) as pool:
        turning = pool.map(partial(turn_of, aligner=aligner), paths)
        turns = np.array(list(tqdm(turning, desc="poses", total=len(paths), unit=" faces")))
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    people = 0
    for identity in np.unique(identities):
        own = np.flatnonzero(identities == identity)
        kinds = [own[turns[own] <= frontal], own[turns[own] >= profile]]
        if min(map(len, kinds)) >= _FEWEST:
            people += 1
            chosen += [row for kind in kinds for row in rng.permutation(kind)[:most].tolist()]
    if people < 2:
        raise UserError(f"{image_list}: {people} people with {_FEWEST} faces of each kind; needs 2")
    with replacing(out_dir / LABELPATH) as file:
        for row in sorted(chosen):
            file.write(f"{paths[row]}\t{identities[row]}\n")
    print(f"{out_dir / LABELPATH}: {len(chosen)} faces of {people} people")
    return EXIT_DONE


def turn_of(path: str, aligner: FaceAligner) -> float:
    """The turn of the head on an aligned face; NaN if no face is found."""
    try:
        face = read_face(path)
    except UnreadableImage:
        return np.nan
    sides = (_MARGIN, _MARGIN)
    faces = aligner.align(np.pad(face, (sides, sides, (0, 0))), most=1)
    return turn(faces[0][0].landmarks) if faces else np.nan


def turn(landmarks: Points) -> float:
    """Distance of the nose from the line between eyes and mouth, divided by its length."""
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    down, beside = mouth - eyes, landmarks[2] - eyes
    length: npt.NDArray[np.float64] = down @ down
    return float(abs(down[0] * beside[1] - down[1] * beside[0]) / max(float(length), 1.0))


if __name__ == "__main__":
    run_script(main)
