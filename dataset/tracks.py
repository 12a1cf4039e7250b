"""Who is who in a video: faces of neighbouring frames whose boxes overlap are one track."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy.typing as npt

from sdd_fiqa.alignment import shared_area

_OVERLAP = 0.3  # intersection over union of two boxes of one face, at least
# A face may be out of sight for the longer of these and is still the same track.
_GONE_SECONDS, _GONE_FRAMES = 2.0, 2


def tracks_of(
    videos: npt.NDArray[Any], times: npt.NDArray[Any], boxes: npt.NDArray[Any], per_second: float
) -> list[int]:
    """The tracks of (F,) faces: numbered from 1 in each video, by first sight.

    Args:
        videos: (F,) which video each is in; those of one video follow each other, by time.
        times: (F,) of their frames, in seconds.
        boxes: (F, 4) x, y, width, height.
        per_second: how many frames of each second were taken.
    """
    found: list[int] = []
    for _, faces in groupby(range(len(videos)), videos.__getitem__):
        tracks = Tracks(max(_GONE_SECONDS, _GONE_FRAMES / per_second))
        for time, frame in groupby(faces, times.__getitem__):
            found += tracks.follow(float(time), boxes[list(frame)].tolist())
    return found


class Tracks:
    """The faces of one video, followed from frame to frame."""

    def __init__(self, patience: float) -> None:
        """No face is known; one that is not seen for `patience` seconds has gone."""
        self._patience = patience
        self._last: dict[int, tuple[float, Sequence[float]]] = {}  # by track: when and where seen
        self._count = 0

    def follow(self, time: float, boxes: Sequence[Sequence[float]]) -> list[int]:
        """The tracks of the faces of the next frame: the boxes that overlap most are one face."""
        self._last = {
            track: seen
            for track, seen in self._last.items()
            if time - seen[0] <= self._patience + 1e-6
        }
        pairs = [
            (-_overlap(box, seen), index, track)
            for index, box in enumerate(boxes)
            for track, (_, seen) in self._last.items()
        ]
        found: dict[int, int] = {}
        for overlap, index, track in sorted(pairs):
            if -overlap >= _OVERLAP and index not in found and track not in found.values():
                found[index] = track
        for index, box in enumerate(boxes):
            if index not in found:
                self._count += 1
                found[index] = self._count
            self._last[found[index]] = (time, box)
        return [found[index] for index in range(len(boxes))]


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union."""
    shared = shared_area(a, b)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)
