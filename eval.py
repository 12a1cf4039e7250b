"""Scores faces: any photo or aligned face in, a quality on 0..100 out.

    python eval.py faces/ --model checkpoints/sdd_fiqa/best.pth
    python eval.py photos/ --align --report report.html

writes scores.csv: path, score, status, in the order of the input.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TextIO

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from dataset.command_line import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SKIPPED,
    EXIT_USAGE,
    UserError,
    fail,
    note,
    run_script,
)
from dataset.files import make_parent, replacing
from dataset.images import FACE_SIZE, Image, UnreadableImage, read_image, thumbnail
from dataset.inputs import find_images
from dataset.lists import Table
from dataset.loader import batches
from dataset.scan import LeftOut, table_of
from dataset.scores import Scores, write_scores
from models.quality import QualityModel, load_quality_model


def main(
    path: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    model: str = "checkpoints/sdd_fiqa/best.pth",
    backbone: Literal["R_50", "MFN"] | None = None,
    out: str = "scores.csv",
    report: Path | None = None,
    align: bool = False,
    top: int = 0,
    bottom: int = 0,
    batch_size: int | None = None,
    num_workers: int | None = None,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: str = "auto",
) -> int:
    """Scores faces: 0 is the worst and 100 the best of the faces that the model learned from.

    Args:
        path: images, folders (searched below), patterns, or list files of one path a line.
        model: the quality network: a checkpoint of train.py, or in the published format.
        backbone: its architecture; found from the file when not given.
        out: the CSV file to write; - for stdout.
        report: also write a page of the faces in order of their scores (an HTML file).
        align: find the largest face in each photo and align it before scoring.
        top: print the N best.
        bottom: print the N worst.
        batch_size: faces a batch; by default 16 on the CPU, 512 on a GPU.
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
    for target in [report] if out == "-" else [out, report]:
        if target is not None:
            make_parent(target)  # now, not after an hour of scoring
    with tempfile.TemporaryDirectory(prefix="sdd-fiqa-") as folder:
        left_out = LeftOut()
        table = table_of(find_images(path, left_out), Path(folder) / "images.txt")
        network = load_quality_model(model, backbone, device, precision)
        read = _aligned_reader() if align else read_image
        scores, interrupted = score(table, network, read, batch_size, num_workers)
        write(out, table, scores)
        summarise(table, scores, left_out, top, bottom, to=sys.stderr if out == "-" else sys.stdout)
        if report is not None:
            make_report(report, table, scores, network, read)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SKIPPED if scores.reasons or left_out.troubles else EXIT_DONE


def score(
    table: Table,
    network: QualityModel,
    read: Callable[[str], Image],
    batch_size: int | None,
    num_workers: int | None,
) -> tuple[Scores, bool]:
    """Scores every image of a list; what cannot be scored gets its reason.

    Returns:
        The scores, and whether Ctrl-C cut them short: what was done until then is kept.
    """
    scores = Scores.none(len(table))
    size = batch_size or network.batch_size
    resized = 0
    bar = tqdm(total=len(table), desc="score", unit=" images", disable=len(table) == 1)
    try:
        with bar:
            for batch in batches(table, np.arange(len(table)), size, num_workers, read):
                values = network(batch.faces)
                values[~batch.readable] = np.nan
                scores.values[batch.rows] = values
                for position in np.flatnonzero(batch.readable & ~np.isfinite(values)).tolist():
                    batch.failures[position] = "the network's output is not finite"
                    scores.values[batch.rows[position]] = np.nan
                for position, reason in batch.failures.items():
                    scores.reasons[int(batch.rows[position])] = reason
                resized += int(_like_photos(batch.sizes).sum())
                bar.update(len(batch.rows))
    except KeyboardInterrupt:
        note("interrupted: what is scored so far is written")
        return scores, True
    if resized:
        note(
            f"{resized} of {len(table)} images look like photos, not aligned faces, and were "
            "resized as they are: unaligned faces score wrongly; add --align"
        )
    return scores, False


def write(out: str, table: Table, scores: Scores) -> None:
    """Writes the CSV file, or stdout where `out` is -."""
    if out == "-":
        write_scores(sys.stdout, table.paths(), scores)
        return
    with replacing(out) as file:
        write_scores(file, table.paths(), scores)


def summarise(
    table: Table, scores: Scores, left_out: LeftOut, top: int, bottom: int, to: TextIO
) -> None:
    """Prints one line for one image; else counts, quantiles, the extremes and what went wrong."""
    good = np.flatnonzero(np.isfinite(scores.values))
    if len(table) == 1 and len(good):
        print(f"{scores.values[0]:.2f}", file=to)
    else:
        _summarise_many(table, scores, good, top, bottom, to)
    failed = sorted(scores.reasons)
    for row, path in zip(failed[:5], table.paths_at(failed[:5]), strict=True):
        note(f"not scored: {path}: {scores.reasons[row]}")
    if len(failed) > 5:
        note(f"not scored: {len(failed)} images in all; the status column says why")
    for text in left_out.lines():
        note(text)


def _summarise_many(
    table: Table, scores: Scores, good: npt.NDArray[np.intp], top: int, bottom: int, to: TextIO
) -> None:
    line = f"scored {len(good)} of {len(table)} images"
    if len(good):
        low, middle, high = np.percentile(scores.values[good], [5, 50, 95])
        line += f": median {middle:.1f}, 5 % below {low:.1f}, 5 % above {high:.1f}"
    print(line, file=to)
    order = good[np.argsort(scores.values[good], kind="stable")]
    for word, rows in (("top", order[::-1][:top]), ("bottom", order[:bottom])):
        for row, path in zip(rows, table.paths_at(rows), strict=True):
            print(f"{word}\t{scores.values[row]:.2f}\t{path}", file=to)


def make_report(
    page: Path, table: Table, scores: Scores, network: QualityModel, read: Callable[[str], Image]
) -> None:
    """Writes the report page and prints where it is."""
    from evaluation.report import write_report

    def picture(row: int) -> bytes | None:
        try:
            return thumbnail(read(table.path(row)))
        except UnreadableImage:
            return None  # it has gone since it was scored

    write_report(
        page,
        paths=table,
        scores=scores.values.astype(np.float64),
        statuses=[scores.status(row) for row in range(len(table))],
        model_name=network.name,
        thumbnail=picture,
        calibration=network.calibration,
    )
    note(f"report: {page}")


def _aligned_reader() -> Callable[[str], Image]:
    """Reads a photo and cuts out its largest face."""
    from dataset.alignment import FaceAligner

    aligner = FaceAligner()

    def read(path: str) -> Image:
        faces = aligner.align(read_image(path), most=1)
        if not faces:
            raise UnreadableImage("no face")
        crop: Image = faces[0][1]
        return crop

    return read


def _like_photos(sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """(B, 2) heights and widths -> (B,) whether it is too large or too oblong for a face crop."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    photos: npt.NDArray[np.bool_] = (longer > 2 * FACE_SIZE) | (longer > 1.1 * shorter)
    return photos


def command() -> None:
    """The command `sdd-fiqa`."""
    run_script(main)


if __name__ == "__main__":
    command()
