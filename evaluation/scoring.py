"""The loop that scores faces: a device that always has the next batch, and what Ctrl-C keeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.faces import Faces
from dataset.journal import Journal
from dataset.lists import ImageList
from dataset.loader import Batch, one_behind
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores
from dataset.turned import turn_photos
from models import QualityModel
from models.pretrained import find_model
from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.files import sha256_of
from sdd_fiqa.number import count_of
from sdd_fiqa.turned import lowest_upright

Begun = tuple[Batch, Callable[[], npt.NDArray[np.float32]]]


def open_faces(
    table: ImageList,
    unread: Mapping[str, str],
    batch_size: int,
    num_workers: int | None,
    align: bool,
    all_faces: bool,
    frames_per_second: float | None = None,
) -> Faces:
    """The listed images as faces: as they are, or found and aligned, in videos too.

    Those in `unread` get their reason.
    """
    faces: Faces
    if align or all_faces or frames_per_second is not None:
        faces = PhotoFaces(table, all_faces, batch_size, num_workers, frames_per_second)
    else:
        faces = Faces(table, batch_size, num_workers)
    faces.unread = unread
    return faces


def open_journal(
    out: str,
    network: QualityModel,
    model: str,
    align: bool,
    all_faces: bool,
    frames_per_second: float | None,
    precision: str,
) -> Journal | None:
    """The journal beside a table of scores; None where the table is no ordinary file.

    Raises:
        UserError: a file of another kind has its name.
    """
    if out == "-" or (os.path.exists(out) and not os.path.isfile(out)):
        return None
    about = {
        "model": f"{network.name} {sha256_of(find_model(model))}",
        "--align": align or all_faces,
        "--all-faces": all_faces,
        "--frames-per-second": frames_per_second,
        "--precision": precision,
    }
    return Journal(Path(f"{out}.journal"), about)


def score(
    faces: Faces, images: int, network: QualityModel, doing: str = "score"
) -> tuple[Scores, bool]:
    """Scores every face; what cannot be scored gets its reason.

    Returns:
        The scores, and whether Ctrl-C cut them short: what was done until then is kept.
    """
    found: dict[int, npt.NDArray[np.float32]] = {}  # by first row
    reasons: dict[int, str] = {}
    bar = None
    if images > 1:
        from tqdm import tqdm  # takes .05 s, and one image shows no bar

        bar = tqdm(total=images, desc=doing, unit=" images")
    interrupted = False

    def finish(batch: Batch, scored: Callable[[], npt.NDArray[np.float32]]) -> None:
        values = np.full(len(batch.rows), np.nan, np.float32)
        values[batch.readable] = scored()
        for position in np.flatnonzero(batch.readable & ~np.isfinite(values)).tolist():
            batch.failures[position] = "the network's output is not finite"
            values[position] = np.nan
        for position, reason in batch.failures.items():
            reasons[int(batch.rows[position])] = reason
        found[int(batch.rows[0])] = values
        faces.keep(batch, values)
        if bar is not None:
            bar.update(faces.searched(batch) - bar.n)

    def begin() -> Iterator[Begun]:
        for batch in faces:
            if batch.scores is not None:
                yield batch, partial(np.asarray, batch.scores)
                continue
            good = batch.readable
            yield batch, network.begin(batch.faces if good.all() else batch.faces[good])

    begun: Begun | None = None
    try:
        with bar or nullcontext():
            for begun in one_behind(begin()):
                finish(*begun)
                begun = None
    except KeyboardInterrupt:
        note("interrupted: what is scored so far is written")
        interrupted = True
        if begun is not None:
            finish(*begun)
    scores = Scores.none(len(faces))
    for first, values in found.items():
        scores.values[first : first + len(values)] = values
    scores.reasons.update(reasons)
    if faces.like_photos and not interrupted:
        some = f"{faces.like_photos} of {count_of(images, 'image')}"
        note(
            f"look like photos, not aligned faces, and were resized as they are: {some}; unaligned "
            "faces score wrongly: add --align"
        )
    return scores, interrupted


def score_turned(
    faces: PhotoFaces, scores: Scores, network: QualityModel, meaning: ScoreInterpretation
) -> tuple[Scores, bool]:
    """Scores photos that may lie on their side or upside down again, turned; returns as `score`.

    The rows of `faces` are changed (see `turn_photos`).
    """
    lowest = lowest_upright(meaning.calibration)
    again = partial(score, network=network, doing="turned")
    scores, interrupted = turn_photos(faces, scores, lowest, again)
    if count := faces.turned_photos():
        note(f"turned (column `turned`): {count_of(count, 'photo')} on the side or upside down")
    return scores, interrupted
