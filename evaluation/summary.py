"""What eval.py prints at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import numpy as np
import numpy.typing as npt

from common.cli import note, printable
from dataset.faces import Faces
from dataset.left_out import Skipped
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores, calibrated_columns
from sdd_fiqa.calibration import ScoreInterpretation, seem_unaligned

_FEW = 20  # scores from which statistics say more than the numbers
_NAMED = 5  # images without a score that are named; scores.csv names all


def summarise(
    paths_at: Callable[[Iterable[int]], Iterator[str]],
    scores: Scores,
    images: int,
    skipped: Skipped,
    meaning: ScoreInterpretation,
    top: int,
    bottom: int,
    alone: bool,
    all_faces: bool,
    to: TextIO,
) -> None:
    """Prints one line for one image; for more, counts, quantiles, extremes and what went wrong.

    Args:
        paths_at: rows -> their paths.
        scores: of the rows.
        images: how many images were read; fewer than rows if photos have several faces.
        skipped: what the search for images left out.
        meaning: of the scores.
        top: how many of the best to print.
        bottom: how many of the worst.
        alone: one image was named by itself: a line a face and no statistics.
        all_faces: those lines say which face.
        to: where results go; what went wrong goes to stderr.
    """
    values, sentence = scores.values, meaning.sentence(scores.values)
    good = np.flatnonzero(np.isfinite(values))
    if alone or (len(values) == 1 and len(good)):
        columns = calibrated_columns(meaning, values)
        for row, path in zip(good.tolist(), paths_at(good), strict=True):
            parts = [f"{values[row]:.2f}", *(f"{name} {text[row]}" for name, text in columns)]
            print("\t".join([*parts, printable(path, to)] if all_faces else parts), file=to)
        if sentence:
            note(sentence)
    else:
        print(_counted(values, images), file=to)
        if sentence:
            print(sentence, file=to)
        order = good[np.argsort(values[good], kind="stable")]
        for word, rows in (("top", order[::-1][:top]), ("bottom", order[:bottom])):
            for row, path in zip(rows, paths_at(rows), strict=True):
                print(f"{word}\t{values[row]:.2f}\t{printable(path, to)}", file=to)
    failed = sorted(scores.reasons)
    for row, path in zip(failed[:_NAMED], paths_at(failed[:_NAMED]), strict=True):
        note(f"not scored: {path}: {scores.reasons[row]}")
    if len(failed) > _NAMED:
        note(f"not scored: {len(failed)} images in all; the status column says why")
    for text in skipped.lines():
        note(text)


def note_unaligned(faces: Faces, scores: Scores, meaning: ScoreInterpretation) -> None:
    """Notes where faces that were taken as aligned score as if they were not."""
    plain = not isinstance(faces, PhotoFaces) and not faces.like_photos  # noted already
    if plain and seem_unaligned(scores.values, meaning.calibration):
        note(
            "most score below 99 % of the calibration faces, as faces that are not aligned do: "
            "add --align unless they are"
        )


def _counted(values: npt.NDArray[np.float32], images: int) -> str:
    """How many faces or images have a score, and their scores or quantiles."""
    good = values[np.isfinite(values)]
    line = f"scored {len(good)} of {len(values)} images"
    if images != len(values):
        line = f"scored {len(good)} faces in {images} images"
    if len(good) >= _FEW:
        low, middle, high = np.percentile(good, [5, 50, 95])
        line += f": median {middle:.1f}, 5 % below {low:.1f}, 5 % above {high:.1f}"
    elif len(good):
        line += ": " + ", ".join(f"{value:.1f}" for value in np.sort(good)[::-1])
    return line
