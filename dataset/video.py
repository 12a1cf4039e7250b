"""Frames of videos: some a second, each with its time, through OpenCV's FFmpeg.

A video is read on a thread of its own, so that a file that hangs stops nothing but itself.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Image, cv2

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # damage is reported here, once a video

START = 256  # bytes that tell the kind of a file
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".3gp", ".mpg", ".mpeg", ".wmv"),
        *(".flv", ".ts", ".mts", ".m2ts", ".ogv"),
    }
)
STALL_SECONDS = 60.0
_SLICES = 10
_END_SECONDS = 5.0  # for the frame that is being read when nobody wants more
_MOST_FAILURES = 60  # in a row: the end of the video, or of what can be read of it
_ROUNDING = 1e-4  # seconds
# How the files begin: MP4 and MOV (not HEIC, AVIF and CR3, which begin alike), AVI, Matroska and
# WebM, FLV, MPEG program stream, WMV, Ogg, MPEG transport stream of 188 or 192 bytes a packet.
_SIGNATURES = re.compile(
    rb".{4}(?:ftyp(?!M4[AB]|hei|hev|mif1|msf1|avi[fs]|crx )|moov|mdat|wide|free|skip)|RIFF.{4}AVI "
    rb"|\x1a\x45\xdf\xa3|FLV\x01|\x00\x00\x01[\xba\xb3]|\x30\x26\xb2\x75\x8e\x66\xcf\x11|OggS"
    rb"|\x47.{187}\x47|.{4}\x47.{191}\x47",
    re.DOTALL,
)


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video: by its first bytes; by its suffix if it is damaged from there."""
    start = first_bytes(path)
    return start is not None and begins_as_video(start, os.fspath(path))


def first_bytes(path: str | os.PathLike[str]) -> bytes | None:
    """The first START bytes of a file; None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(START)
    except OSError:
        return None


def begins_as_video(start: bytes, name: str) -> bool:
    """As `is_video`, from the first START bytes and the name."""
    suffix = os.path.splitext(name)[1].lower()
    known = _SIGNATURES.match(start) is not None and b"\0" in start  # a list may begin abc/free
    text = bool(start) and start.isascii() and b"\0" not in start
    return known or (suffix in VIDEO_SUFFIXES and not (text and suffix == ".ts"))  # TypeScript


def frames(path: str, per_second: float) -> Iterator[tuple[float, Image]]:
    """Some frames of a video: the first, and after that the first in each 1 / per_second seconds.

    The rotation that the file states is applied.

    Args:
        path: a file.
        per_second: how many frames of each second are wanted; all, if the video has fewer.

    Yields:
        The time in seconds, and the frame: (H, W, 3) uint8, RGB.

    Raises:
        UnreadableImage: no video; or, after the frames that could be read, what could not be.
    """
    reading = _Reading(path, per_second, queue.Queue(2))
    thread = threading.Thread(target=reading.run, name="video", daemon=True)
    thread.start()
    try:
        idle, known = 0, reading.time
        while True:
            try:
                item = reading.frames.get(timeout=STALL_SECONDS / _SLICES)
            except queue.Empty:
                # In slices: a process that was suspended must not stall when it continues.
                idle = idle + 1 if reading.time == known else 0
                known = reading.time
                if idle == _SLICES:
                    raise UnreadableImage(
                        f"stopped advancing for {STALL_SECONDS:g} s, at {known:.3f} s"
                    ) from None
                continue
            idle = 0
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item
    finally:
        reading.stopped = True
        with suppress(queue.Empty):
            while True:  # so that the thread is not held up
                reading.frames.get_nowait()
        thread.join(_END_SECONDS)  # Python must not end while OpenCV works in it: that aborts


def frame_at(path: str, seconds: float) -> Image:
    """One frame of a video again, by the time that `frames` gave it.

    Raises:
        UnreadableImage: there is no such frame any more.
    """
    capture = _open(path)
    for start in (seconds, 0.0):  # a seek may land behind the frame
        capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * start)
        for _, time in _grabbed(capture):
            if abs(time - seconds) < _ROUNDING and (frame := _retrieve(capture)) is not None:
                return frame
            if time > seconds:
                break
    raise UnreadableImage(f"has no frame at {seconds:.3f} s any more")


@dataclass
class _Reading:
    """A video that is being read.

    Attributes:
        frames: takes frames with their times; at last None, or why it ended.
        time: of the latest frame so far, in seconds.
        stopped: nobody waits for frames any more.
    """

    path: str
    per_second: float
    frames: queue.Queue[tuple[float, Image] | Exception | None]
    time: float = -1.0
    stopped: bool = False

    def run(self) -> None:
        end = None
        try:
            self._read()
        except Exception as error:  # raised again where the frames are waited for
            end = error
        self.frames.put(end)

    def _read(self) -> None:
        capture = _open(self.path)
        due, count, skipped = -np.inf, 0, 0
        for failures, time in _grabbed(capture):
            if self.stopped:
                return
            count, skipped = count + 1, skipped + failures
            if time <= self.time:
                continue
            self.time = time
            if time >= due - _ROUNDING:
                if (frame := _retrieve(capture)) is None:
                    count, skipped = count - 1, skipped + 1
                    continue
                due = (np.floor((time + _ROUNDING) * self.per_second) + 1) / self.per_second
                self.frames.put((time, frame))
        promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # some formats only estimate it
        if skipped or count < 0.98 * promised - 1:
            raise UnreadableImage(
                f"damaged: {max(promised - count, skipped)} of {max(promised, count + skipped)} "
                f"frames cannot be read; the last one that can is at {max(self.time, 0):.3f} s"
            )
        if not count:
            raise UnreadableImage("is a video without a frame that can be decoded")


def _open(path: str) -> cv2.VideoCapture:
    # The whole path: what begins with "http:" or "concat:" is a file here, and no protocol.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        reason = "is not a video that can be decoded" if os.path.exists(path) else "No such file"
        raise UnreadableImage(reason)
    return capture


def _grabbed(capture: cv2.VideoCapture) -> Iterator[tuple[int, float]]:
    """Steps from frame to frame: how many could not be read before it, and its time in seconds."""
    failures = 0
    while failures < _MOST_FAILURES:
        if capture.grab():
            yield failures, capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            failures = 0
        else:
            failures += 1


def _retrieve(capture: cv2.VideoCapture) -> Image | None:
    good, frame = capture.retrieve()
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8) if good else None
