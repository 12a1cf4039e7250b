"""What eval.py writes and prints, and what it must not write over."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.containers import split_member
from dataset.faces import Faces
from dataset.images import thumbnail
from dataset.left_out import Skipped
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores, calibrated_columns, write_scores
from dataset.video import first_bytes
from evaluation.best_shot import BestShots
from models import QualityModel
from models.pretrained import PRETRAINED
from sdd_fiqa.calibration import ScoreInterpretation, seem_unaligned
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import make_parent, replacing
from sdd_fiqa.names import printable
from sdd_fiqa.number import count_of

_FEW = 20  # scores from which statistics say more than the numbers
_NAMED = 5  # images without a score that are named; scores.csv names all


def check_targets(targets: Mapping[str, str | Path | None], read: Sequence[str]) -> None:
    """Refuses what cannot be written, or must not be: now, not after an hour of scoring.

    Args:
        targets: flags and the files that they name; None is not written.
        read: what is read, so far as it names files.
    """
    taken = {os.path.realpath(name): "is read" for name in read if os.path.isfile(name)}
    starts = {"--out": b"path,score,status", "--report": b"<!doctype html"}
    for flag, target in targets.items():
        if target is None:
            continue
        make_parent(target)
        place = os.path.realpath(target)
        start = first_bytes(place) if os.path.isfile(place) else None
        # What it wrote before may go; an image, a container, a model's .json, ... may not.
        if start and not start.lower().startswith(starts[flag]):
            taken.setdefault(place, "is a file of another kind")
        if place in taken:
            raise UserError(f"{flag} {target}: {taken[place]}; name another file")
        if os.path.isfile(place) or not os.path.exists(place):  # /dev/null may be named twice
            taken[place] = "is written by --out"


def write_csv(
    out: str,
    interrupted: bool,
    faces: Faces,
    scores: Scores,
    columns: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Writes the CSV file, or stdout where `out` is -.

    The scores of an interrupted run do not replace a file: it may be of a run that was not.
    """
    if out == "-":
        try:
            paths = (printable(path, sys.stdout) for path in faces.paths())
            write_scores(sys.stdout, paths, scores, columns)
            sys.stdout.flush()
        except BrokenPipeError:
            raise  # the reader has seen enough
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
            raise UserError(f"--out -: cannot be written ({error.strerror or error})") from error
        return
    if interrupted and os.path.isfile(out):
        note(f"{out}: is unchanged; {out}.partial has what is scored so far")
        out += ".partial"
    with replacing(out) as file:
        write_scores(file, faces.paths(), scores, columns)
    if not interrupted:
        with suppress(OSError):
            os.unlink(f"{out}.partial")  # of a run that was


def write_page(
    page: Path,
    faces: Faces,
    images: int,
    scores: Scores,
    network: QualityModel,
    meaning: ScoreInterpretation,
    model: str,
    shots: BestShots,
    per: str | None,
) -> None:
    """Writes the report page of scored faces of so many images, and prints where it is.

    `network` scored them; `model` and `per` are what --model and --per say.
    """
    from evaluation.report.contents import FacePlaces, Report
    from evaluation.report.page import write_report

    def file_of(row: int) -> str | None:
        path = faces.photo_path(row)
        return path if split_member(path) is None else None  # nothing to open in a container

    def picture(row: int) -> bytes | None:
        try:
            return thumbnail(faces.crop(row))
        except UnreadableImage:
            return None  # it has gone since it was scored

    places = None
    if isinstance(faces, PhotoFaces):
        seen = np.where(faces.stills(), faces.kept["seen"], np.nan).astype(np.float32)
        boxes = faces.kept["place"][:, :4]
        places = FacePlaces(faces.kept["photo"], seen, boxes, faces.photo_path, faces.reread)
    names = None
    if per is not None:
        of_group = [*shots.names, ""]  # -1: in none
        names = [of_group[group] for group in shots.group.tolist()]
    shipped = model in PRETRAINED
    report = Report(
        scores=scores.values.astype(np.float64),
        statuses=[scores.status(row) for row in range(len(faces))],
        path_of=faces.path,
        link_path=file_of,
        thumbnail=picture,
        model_name=model if shipped else network.name,
        command=shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        made=datetime.now().astimezone(),
        model_about="the model that comes with SDD-FIQA" if shipped else "",
        kind="face" if len(faces) != images else "image",
        calibration=meaning.calibration,
        threshold=meaning.threshold,
        accept=meaning.accept,
        group_names=names,
        group_word=per if per in ("folder", "track") else "group",
        places=places,
    )
    write_report(page, report)
    note(f"report: {page}")


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

    Rows are more than images if photos have several faces. Where one image was named `alone`, each
    face has a line, which names it if all faces were asked for, and there are no statistics. What
    went wrong goes to stderr.
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
        note(f"not scored: {count_of(len(failed), 'image')} in all; the status column says why")
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
    line = f"scored {len(good):,} of {count_of(len(values), 'image')}"
    if images != len(values):
        line = f"scored {count_of(len(good), 'face')} in {count_of(images, 'image')}"
    if len(good) >= _FEW:
        low, middle, high = np.percentile(good, [5, 50, 95])
        line += f": median {middle:.1f}, 5 % below {low:.1f}, 5 % above {high:.1f}"
    elif len(good):
        line += ": " + ", ".join(f"{value:.1f}" for value in np.sort(good)[::-1])
    return line
