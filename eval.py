"""Scores faces: any photo or aligned face in, a quality on 0..100 out.

    python eval.py faces/
    python eval.py photos/ --align --report report.html
    python eval.py faces/ --model checkpoints/sdd_fiqa/best.pth
    python eval.py photos/ --all-faces --accept 0.95 --out - | head

writes scores.csv: path, score, status, in the order of the input.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SKIPPED, EXIT_USAGE, fail, note, run_script
from dataset.containers import split_member
from dataset.faces import Faces, ListedFaces, PhotoFaces
from dataset.find import find_images, table_of
from dataset.left_out import Skipped
from dataset.lists import ImageList
from dataset.loader import Batch, one_behind
from dataset.scores import Scores, calibrated_columns, write_scores
from evaluation.summary import summarise
from models import QualityModel, load_quality_model
from models.backbones import Backbone
from models.pretrained import DEFAULT_MODEL
from sdd_fiqa.calibration import ScoreInterpretation, seem_unaligned
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import make_parent, replacing
from sdd_fiqa.images import thumbnail

Begun = tuple[Batch, int, Callable[[], npt.NDArray[np.float32]]]


def main(
    path: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH ...")],
    /,
    model: str = DEFAULT_MODEL,
    backbone: Backbone | None = None,
    out: str = "scores.csv",
    report: Path | None = None,
    align: bool = False,
    all_faces: bool = False,
    percentile: bool = False,
    accept: float | None = None,
    top: int = 0,
    bottom: int = 0,
    batch_size: int | None = None,
    num_workers: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> int:
    """Scores faces: 0 is the worst and 100 the best of the faces that the model learned from.

    Args:
        path: images, folders (searched below), patterns, .rec, .tar or .bin files, or list files of
            one path a line.
        model: the quality network: a shipped one by name; a checkpoint of train.py or in the
            published format; or an .onnx file of export_onnx.py.
        backbone: its architecture; found from the file when not given.
        out: the CSV file to write; - for stdout. Ctrl-C leaves a file that stands there, and writes
            what is scored so far beside it, as <out>.partial.
        report: also write a page of the faces in order of their scores (an HTML file).
        align: find the largest face in each photo and align it before scoring.
        all_faces: align and score every face of each photo: rows path#1, path#2, ..., the largest
            first, with its box and landmarks.
        percentile: add a column: how many percent of the model's calibration faces score lower.
        accept: the share of calibration faces to keep (0.95, say): prints the threshold that does,
            and adds a column of 1 (at or above it) and 0.
        top: print the N best.
        bottom: print the N worst.
        batch_size: faces a batch; by default 16 a core on a CPU, 512 on a GPU.
        num_workers: decoding threads; by default one a core.
        precision: auto takes bf16 where the device is fast at it.
        device: auto, cpu, cuda or cuda:i.
    """
    if not path:
        return fail("name at least one image, folder, pattern or list file", EXIT_USAGE)
    counts = [("batch-size", batch_size, 1), ("num-workers", num_workers, 1)]
    for name, value, least in [*counts, ("top", top, 0), ("bottom", bottom, 0)]:
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be {least} or more")
    check_targets({"--out": None if out == "-" else out, "--report": report}, [*path, model])
    with tempfile.TemporaryDirectory(prefix="sdd-fiqa-") as folder:
        skipped = Skipped()
        table = table_of(find_images(path, skipped), Path(folder) / "images.txt")
        network = load_quality_model(model, backbone, device, precision)
        meaning = ScoreInterpretation.of(network.calibration, network.name, percentile, accept)
        size = batch_size or network.batch_size
        faces = open_faces(table, size, num_workers, align, all_faces)
        scores, interrupted = score(faces, len(table), network)
        if interrupted and os.path.isfile(out):  # maybe of a run that was not
            note(f"{out}: stands as it was; {out}.partial has what is scored so far")
            out += ".partial"
        write(out, faces, scores, meaning)
        results = sys.stderr if out == "-" else sys.stdout
        cut_short = interrupted and len(faces) != len(table)  # photos that were not looked into
        images = faces.searched() if cut_short else len(table)
        summarise(faces.paths_at, scores, images, skipped, meaning, top, bottom, to=results)
        plain = isinstance(faces, ListedFaces) and not faces.like_photos
        if plain and seem_unaligned(scores.values, meaning.calibration):
            note(
                "most score below 99 % of the calibration faces, as faces that are not aligned do: "
                "add --align unless they are"
            )
        if report is not None:
            make_report(report, faces, images, scores, network, meaning)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SKIPPED if scores.reasons or skipped.problems else EXIT_DONE


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


def open_faces(
    table: ImageList, batch_size: int, num_workers: int | None, align: bool, all_faces: bool
) -> Faces:
    """The listed images as faces: as they are, or found and aligned."""
    if not (align or all_faces):
        return ListedFaces(table, batch_size, num_workers)
    return PhotoFaces(table, all_faces, batch_size, num_workers)


def score(faces: Faces, images: int, network: QualityModel) -> tuple[Scores, bool]:
    """Scores every face; what cannot be scored gets its reason.

    Returns:
        The scores, and whether Ctrl-C cut them short: what was done until then is kept.
    """
    found: dict[int, npt.NDArray[np.float32]] = {}  # by first row
    reasons: dict[int, str] = {}
    bar = tqdm(total=images, desc="score", unit=" images", disable=images == 1)
    interrupted = False

    def finish(batch: Batch, searched: int, scored: Callable[[], npt.NDArray[np.float32]]) -> None:
        values = np.full(len(batch.rows), np.nan, np.float32)
        values[batch.readable] = scored()
        for position in np.flatnonzero(batch.readable & ~np.isfinite(values)).tolist():
            batch.failures[position] = "the network's output is not finite"
            values[position] = np.nan
        for position, reason in batch.failures.items():
            reasons[int(batch.rows[position])] = reason
        found[int(batch.rows[0])] = values
        bar.update(searched - bar.n)

    def begin() -> Iterator[Begun]:
        for batch in faces:
            good = batch.readable
            scored = network.begin(batch.faces if good.all() else batch.faces[good])
            yield batch, faces.searched(), scored

    begun: Begun | None = None
    try:
        with bar:
            for begun in one_behind(begin()):
                finish(*begun)
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
        note(
            f"{faces.like_photos} of {images} images look like photos, not aligned faces, and were "
            "resized as they are: unaligned faces score wrongly; add --align"
        )
    return scores, interrupted


def write(out: str, faces: Faces, scores: Scores, meaning: ScoreInterpretation) -> None:
    """Writes the CSV file, or stdout where `out` is -."""
    columns = [*calibrated_columns(meaning, scores.values), *faces.columns()]
    if out == "-":
        try:
            write_scores(sys.stdout, faces.paths(), scores, columns)
            sys.stdout.flush()
        except BrokenPipeError:
            raise  # the reader has seen enough
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
            raise UserError(f"--out -: cannot be written ({error.strerror or error})") from error
        return
    with replacing(out) as file:
        write_scores(file, faces.paths(), scores, columns)


def make_report(
    page: Path,
    faces: Faces,
    images: int,
    scores: Scores,
    network: QualityModel,
    meaning: ScoreInterpretation,
) -> None:
    """Writes the report page and prints where it is."""
    from evaluation.report.page import write_report

    def file_of(row: int) -> str | None:
        path = faces.photo_path(row)
        return path if split_member(path) is None else None  # nothing to open in a container

    def picture(row: int) -> bytes | None:
        try:
            return thumbnail(faces.crop(row))
        except UnreadableImage:
            return None  # it has gone since it was scored

    sentence = meaning.sentence(scores.values)
    write_report(
        page,
        path_of=faces.path,
        scores=scores.values.astype(np.float64),
        statuses=[scores.status(row) for row in range(len(faces))],
        model_name=network.name,
        thumbnail=picture,
        link_path=file_of,
        kind="face" if len(faces) != images else "image",
        calibration=meaning.calibration,
        notes=[sentence] if sentence else [],
    )
    note(f"report: {page}")


def command() -> None:
    """The command `sdd-fiqa`."""
    run_script(main)


if __name__ == "__main__":
    command()
