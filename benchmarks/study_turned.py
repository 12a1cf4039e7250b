"""How often are photos turned the right way, and how often wrongly?

    python benchmarks/study_turned.py --photos photos.tar --most 100

Each photo is scored as it is, and turned by 90, 180 and 270 degrees, as `eval.py --align` does. The
upright ones are all searched turned, as if every score were doubtful: what is turned there is
wrong. For each of the four ways it prints how many photos have a face, how many were turned by each
angle, and how far the score is from that of the upright photo.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from common.cli import EXIT_DONE, run_script
from dataset.find import find_images
from dataset.images import read_image
from dataset.left_out import Skipped
from dataset.lists import table_of
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores
from dataset.turned import turn_photos
from models import load_quality_model
from models.pretrained import DEFAULT_MODEL
from sdd_fiqa.images import cv2


def main(*, photos: str, model: str = DEFAULT_MODEL, most: int = 100) -> int:
    """Scores photos in four turns.

    Args:
        photos: a folder, list or container of upright photos.
        model: the quality network; it needs a calibration.
        most: photos taken, spread over all.
    """
    network = load_quality_model(model)
    assert network.calibration is not None
    lowest = network.calibration["percentiles"][1]

    def score(faces: PhotoFaces, count: int) -> tuple[Scores, bool]:
        batches = [np.where(batch.readable, network(batch.faces), np.nan) for batch in faces]
        return Scores(np.concatenate(batches or [np.empty(0)]).astype(np.float32)), False

    upright = None
    with tempfile.TemporaryDirectory() as folder:
        every = table_of(find_images([photos], Skipped()), Path(folder) / "all.txt")
        chosen = np.linspace(0, len(every) - 1, min(most, len(every))).astype(int)
        for lies in (0, 90, 180, 270):  # degrees counterclockwise
            copies = Path(folder) / str(lies)
            copies.mkdir()
            for number, path in enumerate(every.paths_at(chosen)):
                image = np.ascontiguousarray(np.rot90(read_image(path), lies // 90)[:, :, ::-1])
                cv2.imwrite(str(copies / f"{number:06}.png"), image)
            table = table_of(find_images([str(copies)], Skipped()), copies / "list.txt")
            faces = PhotoFaces(table, all_faces=False, batch_size=network.batch_size)
            before, _ = score(faces, len(table))
            after, _ = turn_photos(faces, before, lowest if lies else np.inf, score)
            upright = after.values if upright is None else upright
            turned = faces.kept["place"][:, -1]
            off = np.abs(after.values - upright)
            print(
                f"lies at {lies:3}: {np.isfinite(after.values).sum()} of {len(table)} have a face; "
                + ", ".join(f"{np.sum(turned == by)} turned by {by}" for by in (0, 90, 180, 270))
                + f"; score off by {np.nanmedian(off):.2f} (median), above 5 in {np.sum(off > 5)}"
            )
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
