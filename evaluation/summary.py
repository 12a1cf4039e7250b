"""What eval.py prints at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import numpy as np

from common.cli import note
from dataset.left_out import Skipped
from dataset.scores import Scores, calibrated_columns
from sdd_fiqa.calibration import ScoreInterpretation

_NAMED = 5  # images without a score that are named; scores.csv names all


def summarise(
    paths_at: Callable[[Iterable[int]], Iterator[str]],
    scores: Scores,
    images: int,
    skipped: Skipped,
    meaning: ScoreInterpretation,
    top: int,
    bottom: int,
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
        to: where results go; what went wrong goes to stderr.
    """
    good = np.flatnonzero(np.isfinite(scores.values))
    if len(scores.values) == 1 and len(good):
        parts = [f"{scores.values[0]:.2f}"]
        parts += [f"{name} {text[0]}" for name, text in calibrated_columns(meaning, scores.values)]
        print("\t".join(parts), file=to)
        if (sentence := meaning.sentence(scores.values)) is not None:
            note(sentence)
    else:
        _summarise_many(paths_at, scores, images, meaning, top, bottom, to)
    failed = sorted(scores.reasons)
    for row, path in zip(failed[:_NAMED], paths_at(failed[:_NAMED]), strict=True):
        note(f"not scored: {path}: {scores.reasons[row]}")
    if len(failed) > _NAMED:
        note(f"not scored: {len(failed)} images in all; the status column says why")
    for text in skipped.lines():
        note(text)


def _summarise_many(
    paths_at: Callable[[Iterable[int]], Iterator[str]],
    scores: Scores,
    images: int,
    meaning: ScoreInterpretation,
    top: int,
    bottom: int,
    to: TextIO,
) -> None:
    good = np.flatnonzero(np.isfinite(scores.values))
    line = f"scored {len(good)} of {len(scores.values)} images"
    if images != len(scores.values):
        line = f"scored {len(good)} faces in {images} images"
    if len(good):
        low, middle, high = np.percentile(scores.values[good], [5, 50, 95])
        line += f": median {middle:.1f}, 5 % below {low:.1f}, 5 % above {high:.1f}"
    print(line, file=to)
    sentence = meaning.sentence(scores.values)
    if sentence:
        print(sentence, file=to)
    order = good[np.argsort(scores.values[good], kind="stable")]
    for word, rows in (("top", order[::-1][:top]), ("bottom", order[:bottom])):
        for row, path in zip(rows, paths_at(rows), strict=True):
            print(f"{word}\t{scores.values[row]:.2f}\t{path}", file=to)
