"""Scores faces: any photo or aligned face in, a quality on 0..100 out.

    python eval.py faces/
    python eval.py photos/ --align --report report.html
    python eval.py faces/ --model checkpoints/sdd_fiqa/best.pth
    python eval.py albums/ --align --top 1 --per folder --copy-to best/
    python eval.py photos/ --all-faces --accept 0.95 --out - | head

writes scores.csv: path, score, status, in the order of the input.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from common.cli import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_SKIPPED,
    EXIT_USAGE,
    check_at_least,
    fail,
    run_script,
    uninterrupted,
)
from dataset.find import find_images, names_one_image
from dataset.left_out import Skipped
from dataset.lists import table_of
from dataset.photo_faces import PhotoFaces
from dataset.scores import calibrated_columns
from evaluation.best_shot import best_shots, check_copies, copy_best, key_of, print_best
from evaluation.outputs import check_targets, note_unaligned, summarise, write_csv, write_page
from evaluation.scoring import open_faces, open_journal, score, score_turned
from models import load_quality_model
from models.backbones import Backbone
from models.pretrained import DEFAULT_MODEL
from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import scratch_folder


def main(
    path: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PATH ...", help_behavior_hint=""),
    ],
    /,
    model: str = DEFAULT_MODEL,
    backbone: Backbone | None = None,
    out: str | None = None,
    report: Path | None = None,
    align: bool = False,
    all_faces: bool = False,
    frames_per_second: float | None = None,
    percentile: bool = False,
    accept: float | None = None,
    top: int = 0,
    bottom: int = 0,
    per: str | None = None,
    copy_to: Path | None = None,
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
        out: the CSV file to write; - for stdout; by default scores.csv, but none for one image
            named by itself, whose score is printed. After Ctrl-C an existing file is unchanged, and
            <out>.partial has what is scored so far.
        report: also write a page of the faces in order of their scores (an HTML file).
        align: find the largest face in each photo and align it before scoring; adds columns: how
            many faces were seen, the box, and the detector's score.
        all_faces: align and score every face of each photo: rows path#1, path#2, ..., the largest
            first, with its box and landmarks.
        frames_per_second: score the faces of so many frames of each second of videos (above 0, at
            most 100): rows clip.mp4#t=12.500. Implies --align; without it, videos are left out.
        percentile: add a column: how many percent of the model's calibration faces score lower.
        accept: the share of calibration faces to keep (0.95, say): prints the threshold that does,
            and adds a column of 1 (at or above it) and 0.
        top: print the N best.
        bottom: print the N worst.
        per: print the N best or worst of each group, and add a column with their ranks. Groups are
            the images of one folder (`folder`), of one part of the path (a number; -2 is the name
            of the image's folder) or of one track of a video (`track`).
        copy_to: copy the images that --top prints here, as <group>/<file name>; a face of several,
            of a video or of a container as PNG.
        batch_size: faces a batch; by default 16 a core on a CPU, 512 on a GPU.
        num_workers: decoding threads; by default one a core.
        precision: auto takes bf16 where the device is fast at it.
        device: auto, cpu, cuda or cuda:i.
    """
    if not path:
        return fail("name at least one image, folder, pattern or list file", EXIT_USAGE)
    check_at_least(1, {"--batch-size": batch_size, "--num-workers": num_workers})
    check_at_least(0, {"--top": top, "--bottom": bottom})
    if frames_per_second is not None and not 0 < frames_per_second <= 100:
        raise UserError(f"--frames-per-second {frames_per_second}: must be above 0, at most 100")
    videos = frames_per_second is not None
    alone = names_one_image(path, videos)
    if copy_to is not None and not top:
        raise UserError(f"--copy-to {copy_to}: needs --top, the number of the best to copy")
    out = out or (None if alone else "scores.csv")
    check_targets({"--out": None if out == "-" else out, "--report": report}, [*path, model])
    with scratch_folder() as folder:
        unread: dict[str, str] = {}
        skipped = Skipped(unread=unread, videos=videos)
        table = table_of(find_images(path, skipped), folder / "images.txt")
        key = None if per is None else key_of(per, table, videos)
        if copy_to is not None:
            check_copies(copy_to, path, table, key, all_faces)
        network = load_quality_model(model, backbone, device, precision)
        meaning = ScoreInterpretation.of(network.calibration, network.name, percentile, accept)
        size = batch_size or network.batch_size
        faces = open_faces(table, unread, size, num_workers, align, all_faces, frames_per_second)
        if out is not None and not alone:
            rate = frames_per_second
            faces.journal = open_journal(out, network, model, align, all_faces, rate, precision)
        scores, interrupted = score(faces, len(table), network)
        if isinstance(faces, PhotoFaces) and not interrupted:
            scores, interrupted = score_turned(faces, scores, network, meaning)
        shots = best_shots(faces, scores.values, key)
        ranks = [shots.column()] if per else []
        columns = [*calibrated_columns(meaning, scores.values), *ranks, *faces.columns()]
        if out is not None:
            with nullcontext() if out == "-" else uninterrupted():  # not while a pipe is full
                write_csv(out, interrupted, faces, scores, columns)
        to = sys.stderr if out == "-" else sys.stdout
        cut_short = interrupted and len(faces) != len(table)  # photos that were not looked into
        images = len(set(faces.listed(np.arange(len(faces))))) if cut_short else len(table)
        ends = (0, 0) if per else (top, bottom)
        each = alone and not (top or bottom)
        summarise(faces.paths_at, scores, images, skipped, meaning, *ends, each, all_faces, to)
        if per:
            threshold = meaning.threshold
            print_best(shots, scores.values, faces.paths_at, top, bottom, threshold, to)
        note_unaligned(faces, scores, meaning)
        gone = 0
        if copy_to is not None and not interrupted:
            gone = copy_best(copy_to, shots, top, faces, all_faces)
        if report is not None:
            write_page(report, faces, images, scores, network, meaning, model, shots, per)
        if faces.journal is not None:
            faces.journal.close(done=not interrupted)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SKIPPED if scores.reasons or skipped.problems or gone else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
