"""What eval.py writes: the CSV file and the report page, and what it must not write over."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import numpy as np

from common.cli import note, printable
from dataset.containers import split_member
from dataset.faces import Faces
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores, write_scores
from evaluation.best_shot import BestShots
from models import QualityModel
from models.pretrained import PRETRAINED
from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import make_parent, replacing
from sdd_fiqa.images import thumbnail


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
        if place not in taken and os.path.isfile(place) and os.path.getsize(place):
            with suppress(OSError), open(place, "rb") as file:
                # What it wrote before may go; an image, a container, a model's .json, ... may not.
                if not file.read(100).lower().startswith(starts[flag]):
                    taken[place] = "is a file of another kind"
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


def write_page(
    page: Path,
    faces: Faces,
    images: int,
    scores: Scores,
    network: QualityModel,
    meaning: ScoreInterpretation,
    model: str,
    groups: BestShots | None,
    per: str | None,
) -> None:
    """Writes the report page and prints where it is.

    Args:
        page: the file to write.
        faces: scored.
        images: how many images they are of.
        scores: of the faces.
        network: what scored them.
        meaning: of the scores.
        model: as --model names it.
        groups: of the faces, or None.
        per: what they are grouped by, as --per says it.
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
    if groups is not None:
        names = [groups.names[group] if group >= 0 else "" for group in groups.group.tolist()]
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
