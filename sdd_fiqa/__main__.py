"""Scores the faces of photos, as CSV: `python -m sdd_fiqa a.jpg b.jpg`, or `sdd-fiqa a.jpg b.jpg`.

A row a face, `path#k` for the k-th largest one; a photo without a score has a row with its reason.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import signal
import sys
import warnings
from contextlib import suppress

from sdd_fiqa import __version__
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import cv2
from sdd_fiqa.names import for_table, printable
from sdd_fiqa.number import whole_number
from sdd_fiqa.scorer import fetch_detector, load
from sdd_fiqa.streams import open_streams

_HEADER = ("path", "score", "status", "percentile", "box_x", "box_y", "box_width", "box_height")
_DONE, _USER_ERROR, _SKIPPED, _INTERRUPTED = 0, 1, 3, 130


def command(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code, as eval.py's.

    0 done, 1 an error that the user can fix, 2 wrong usage, 3 some photos have no score, 130
    stopped by Ctrl-C, SIGTERM or SIGHUP; the photos before have their rows.
    """
    open_streams()
    if arguments is None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) != signal.SIG_IGN:  # nohup, &
                signal.signal(number, _stop)
    parser = argparse.ArgumentParser("sdd-fiqa", description="Scores the faces of photos, as CSV.")
    parser.add_argument("photo", nargs="*", help="image files")
    parser.add_argument(
        "--model",
        default="small",
        help="small (the shipped model, for research), or an .onnx file of export_onnx.py",
    )
    parser.add_argument("--detector", help="a YuNet .onnx file; by default that of the cache")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument("--threads", type=whole_number, help="cores to use; by default all")
    parser.add_argument(
        "--fetch", action="store_true", help="fetch the detector into the cache, for later runs"
    )
    parser.add_argument("--version", action="version", version=f"sdd-fiqa {__version__}")
    options = parser.parse_args(arguments)
    if not options.photo and not options.fetch:
        parser.error("name at least one photo, or --fetch")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sdd_fiqa").setLevel(logging.INFO)
    cv2.setNumThreads(0)  # photos are searched side by side
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module="PIL")  # damaged files have rows
    try:
        if options.fetch:
            fetch_detector()
        return _print_scores(options) if options.photo else _DONE
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return _USER_ERROR
    except BrokenPipeError:  # the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _DONE
    except OSError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for buffered text
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        return _USER_ERROR


def _stop(*_: object) -> None:
    """Ends at once: rows are flushed photo by photo."""
    with suppress(OSError):
        os.write(2, b"error: interrupted\n")
    os._exit(_INTERRUPTED)


def _print_scores(options: argparse.Namespace) -> int:
    """Prints a row for each face, and for each photo without one."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    scorer = load(options.model, options.detector, options.device, options.threads)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*_HEADER, "detector_score"])
    code = _DONE
    for photo, faces in zip(options.photo, scorer.map(options.photo), strict=True):
        path = printable(for_table(photo), sys.stdout)
        if isinstance(faces, UnreadableImage) or not faces:
            writer.writerow([path, "", faces or "no face", *[""] * 6])
            code = _SKIPPED
            continue
        for number, face in enumerate(faces, 1):
            percentile = "" if face.percentile is None else f"{face.percentile:.1f}"
            box = [f"{side:.1f}" for side in face.box]
            row = [f"{path}#{number}", f"{face.score:.4f}", "ok", percentile, *box]
            writer.writerow([*row, f"{face.detector_score:.4f}"])
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(command())
