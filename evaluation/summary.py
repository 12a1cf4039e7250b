"""What a run of eval.py says at its end, and what a model's calibration adds to each score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

import numpy as np
import numpy.typing as npt

from dataset.command_line import UserError, note
from dataset.scan import LeftOut
from dataset.scores import Scores
from evaluation.calibration import (
    Calibration,
    percentiles_of,
    reaches,
    threshold_that_keeps,
    usable,
)

_NAMED = 5  # images without a score that are named; the CSV file names all


class _Names(Protocol):
    def paths_at(self, rows: Iterable[int]) -> Iterator[str]: ...


@dataclass(frozen=True)
class Meaning:
    """What was asked of the calibration.

    Attributes:
        calibration: the model's, for the report page too; None where it has none.
        percentile: whether each score gets its percentile.
        accept: the share of calibration faces to keep, or None.
    """

    calibration: Calibration | None
    percentile: bool
    accept: float | None

    @classmethod
    def of(cls, calibration: object, model: str, percentile: bool, accept: float | None) -> Meaning:
        """Checks it before anything is scored.

        Raises:
            UserError: a share outside (0, 1]; or something is asked of a model whose calibration is
                missing or damaged.
        """
        if accept is not None and not 0 < accept <= 1:
            raise UserError(f"--accept {accept}: must be above 0 and at most 1; 0.95 keeps 95 %")
        if percentile or accept is not None:
            return cls(usable(calibration, model), percentile, accept)
        try:
            return cls(usable(calibration, model) if calibration else None, percentile, accept)
        except UserError as error:  # nothing was asked of it: no reason to stop
            note(str(error))
            return cls(None, percentile, accept)

    @property
    def threshold(self) -> float | None:
        """The score from which on a face is accepted."""
        if self.accept is None or self.calibration is None:
            return None
        return threshold_that_keeps(self.accept, self.calibration)

    def columns(self, values: npt.NDArray[np.float32]) -> list[tuple[str, Sequence[str]]]:
        """Columns of scores.csv for (N,) scores: percentile, accept (1 or 0); empty without one."""
        columns: list[tuple[str, Sequence[str]]] = []
        good = np.isfinite(values).tolist()
        if self.percentile and self.calibration is not None:
            shares = percentiles_of(values, self.calibration).tolist()
            text = [f"{share:.1f}" if ok else "" for share, ok in zip(shares, good, strict=True)]
            columns.append(("percentile", text))
        if self.threshold is not None:
            accepted = reaches(values, self.threshold).tolist()
            text = [str(int(yes)) if ok else "" for yes, ok in zip(accepted, good, strict=True)]
            columns.append(("accept", text))
        return columns

    def sentence(self, values: npt.NDArray[np.float32]) -> str | None:
        """For people: the threshold, and how many of (N,) scores reach it."""
        if self.threshold is None:
            return None
        reached, scored = int(reaches(values, self.threshold).sum()), int(np.isfinite(values).sum())
        return (
            f"accept {self.accept:g}: threshold {self.threshold:g}; "
            f"{reached} of {scored} scored faces reach it"
        )


def summarise(
    names: _Names,
    scores: Scores,
    images: int,
    left_out: LeftOut,
    meaning: Meaning,
    top: int,
    bottom: int,
    to: TextIO,
) -> None:
    """Prints one line for one image; else counts, quantiles, the extremes and what went wrong.

    Args:
        names: of the rows.
        scores: of the rows.
        images: how many were looked at; fewer than rows where photos have several faces.
        left_out: what the search for images did not take.
        meaning: of the scores.
        top: how many of the best to print.
        bottom: how many of the worst.
        to: where results go; what went wrong goes to stderr.
    """
    good = np.flatnonzero(np.isfinite(scores.values))
    if len(scores.values) == 1 and len(good):
        parts = [f"{scores.values[0]:.2f}"]
        parts += [f"{name} {text[0]}" for name, text in meaning.columns(scores.values)]
        print("\t".join(parts), file=to)
    else:
        _summarise_many(names, scores, images, meaning, top, bottom, to)
    failed = sorted(scores.reasons)
    for row, path in zip(failed[:_NAMED], names.paths_at(failed[:_NAMED]), strict=True):
        note(f"not scored: {path}: {scores.reasons[row]}")
    if len(failed) > _NAMED:
        note(f"not scored: {len(failed)} images in all; the status column says why")
    for text in left_out.lines():
        note(text)


def _summarise_many(
    names: _Names,
    scores: Scores,
    images: int,
    meaning: Meaning,
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
        for row, path in zip(rows, names.paths_at(rows), strict=True):
            print(f"{word}\t{scores.values[row]:.2f}\t{path}", file=to)
