"""Embeddings by dlib's recogniser, a third one that made no label of this project.

    pip install dlib-bin
    python benchmarks/study_dlib_embeddings.py --image-list annotations/DATA.labelpath \
        --out-dir dlib --weights dlib_face_recognition_resnet_model_v1.dat

The weights (CC0) are in the package face_recognition_models 0.3.0, face_recognition_models/models/.
dlib compares its 128 numbers by Euclidean distance. Their lengths differ by 5 %, so cosines order
pairs nearly the same. dlib expects a crop ("chip") of 150x150: a similarity transform maps the eyes
of our 112x112 crop to the eyes of the chip. Pixels outside the crop repeat its edge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.cli import EXIT_DONE, run_script
from dataset.lists import read_table
from dataset.loader import batches
from sdd_fiqa.alignment import TEMPLATE
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import cv2

_SIDE = 150  # pixels, width and height of a chip
# Centres of the eyes in dlib's chip with a padding of .25, from its mean five landmarks.
_EYES = np.array([[47.73, 47.14], [100.28, 47.12]])


def main(*, image_list: Path, weights: Path, out_dir: Path) -> int:
    """Writes Embedding_Features.npy and Embedding_Norms.npy, row i = line i of the list.

    Args:
        image_list: DATA.labelpath of aligned faces.
        weights: dlib_face_recognition_resnet_model_v1.dat.
        out_dir: the folder for both files.
    """
    try:
        import dlib
    except ImportError as error:
        raise UserError("this needs the package dlib: pip install dlib-bin") from error
    if not weights.is_file():
        raise UserError(f"--weights {weights}: no such file")
    network = dlib.face_recognition_model_v1(str(weights))
    table = read_table(image_list)
    found = np.zeros((len(table), 128), np.float32)
    to_chip = chip_of_crop()
    with tqdm(total=len(table), unit=" images") as bar:
        for batch in batches(table, np.arange(len(table)), 64):
            chips = [
                cv2.warpAffine(
                    face,
                    to_chip,
                    (_SIDE, _SIDE),
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                for face in batch.faces
            ]
            found[batch.rows] = np.array(network.compute_face_descriptor(chips, 0))
            found[batch.rows[~batch.readable]] = 0
            bar.update(len(batch.rows))
    norms = np.linalg.norm(found, axis=1)
    out_dir.mkdir(parents=True, exist_ok=True)
    np.save(out_dir / "Embedding_Features.npy", found / np.maximum(norms, 1e-12)[:, None])
    np.save(out_dir / "Embedding_Norms.npy", norms)
    return EXIT_DONE


def chip_of_crop() -> npt.NDArray[np.float64]:
    """(2, 3) similarity transform from the eyes of our template to those of dlib's chip."""
    (a, b), (c, d) = TEMPLATE[:2], _EYES
    turn = complex(*(d - c)) / complex(*(b - a))
    matrix = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.column_stack([matrix, c - matrix @ a])


if __name__ == "__main__":
    run_script(main)
