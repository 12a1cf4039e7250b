"""Frontal faces and profiles of the same people, out of a list: a test set of pose.

    python benchmarks/study_poses.py --image-list annotations/DATA.labelpath --out-dir poses

The turn of a head is read off YuNet's landmarks on the aligned face: how far the nose lies beside
the line from between the eyes to the middle of the mouth, as a share of that line. 0 is frontal,
about .27 and more a profile. People with four of each or more give up to `most` of each, drawn by a
seed, to <out-dir>/DATA.labelpath, which extract_feats.py, heads.py and eval_edc.py read.
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

_MARGIN = 40  # pixels of black: the detector wants room around a face
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
    """Lists frontal faces and profiles.

    Args:
        image_list: DATA.labelpath of aligned faces.
        out_dir: gets the DATA.labelpath of the chosen.
        frontal: the largest turn of a frontal face.
        profile: the smallest turn of a profile.
        most: frontal faces, and profiles, of one person.
        seed: of the draw.
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
        raise UserError(f"{image_list}: {people} people with {_FEWEST} frontal faces and profiles")
    with replacing(out_dir / LABELPATH) as file:
        for row in sorted(chosen):
            file.write(f"{paths[row]}\t{identities[row]}\n")
    print(f"{out_dir / LABELPATH}: {len(chosen)} faces of {people} people")
    return EXIT_DONE


def turn_of(path: str, aligner: FaceAligner) -> float:
    """How far the head of an aligned face is turned aside; NaN where it is not found."""
    try:
        face = read_face(path)
    except UnreadableImage:
        return np.nan
    sides = (_MARGIN, _MARGIN)
    faces = aligner.detect(np.pad(face, (sides, sides, (0, 0))), most=1)
    return turn(faces[0].landmarks) if faces else np.nan


def turn(landmarks: Points) -> float:
    """The nose's distance from the line between eyes and mouth, as a share of its length."""
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    down, beside = mouth - eyes, landmarks[2] - eyes
    length: npt.NDArray[np.float64] = down @ down
    return float(abs(down[0] * beside[1] - down[1] * beside[0]) / max(float(length), 1.0))


if __name__ == "__main__":
    run_script(main)
