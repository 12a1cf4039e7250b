"""The faces of photos and videos: rows as of photos, for each frame taken, and who is who in them.

A frame is called `clip.mp4#t=12.500`. Faces of neighbouring frames whose boxes overlap are one
track. Tracks are numbered from 1 in each video, by first sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dataset.faces import Rows
from dataset.journal import BEGINNING, Block, Forms
from dataset.lists import ImageList
from dataset.loader import Batch
from dataset.photo_faces import Photo, PhotoFaces
from dataset.scores import NumberColumn
from dataset.video import frame_at, frames, is_video
from sdd_fiqa.alignment import shared_area
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Image

_OVERLAP = 0.3  # intersection over union of two boxes of one face, at least
# A face may be out of sight for the longer of these and is still the same track.
_GONE_SECONDS, _GONE_FRAMES = 2.0, 2
_CHUNK = 4  # photos a task

Box = tuple[float, float, float, float]


class VideoFaces(PhotoFaces):
    """The faces of photos and of frames of videos."""

    forms: ClassVar[Forms] = {**PhotoFaces.forms, "time": ("<f8", ()), "track": ("<i4", ())}

    def __init__(
        self,
        table: ImageList,
        all_faces: bool,
        batch_size: int,
        num_workers: int | None = None,
        *,
        frames_per_second: float,
    ) -> None:
        """Nothing is read yet; as PhotoFaces, of so many frames of each second."""
        super().__init__(table, all_faces, batch_size, num_workers)
        self._rate = frames_per_second
        self._frame_again = lru_cache(2)(frame_at)
        self._tracks = Tracks(0)
        self._tracked = -1  # row of the list

    def tasks(self, start: int, stop: int) -> Iterator[tuple[str, Callable[[], list[Photo]]]]:
        """As of photos; a task a frame, which is read here, in order."""
        rows: list[int] = []
        paths: list[str] = []
        for row, path in enumerate(self._table.paths(start, stop), start):
            video = is_video(path)
            if rows and (video or len(rows) == _CHUNK):
                yield paths[0], partial(self.search, np.array(rows), paths)
                rows, paths = [], []
            if video:
                yield from self._frame_tasks(row, path)
            else:
                rows.append(row)
                paths.append(path)
        if rows:
            yield paths[0], partial(self.search, np.array(rows), paths)

    def _frame_tasks(self, row: int, path: str) -> Iterator[tuple[str, Callable[[], list[Photo]]]]:
        key = None if self.journal is None else self.journal.key(path)
        done = self._frame_after(len(self) - 1, row)  # what the journal had
        try:
            for time, image in frames(path, self._rate):
                if time > done:
                    some = Photo(row, time=time, key=key)
                    yield path, partial(self._search_frame, some, image)
        except UnreadableImage as error:
            rest = [Photo(row, str(error), key=key)]
            yield path, lambda: rest

    def _search_frame(self, frame: Photo, image: Image) -> list[Photo]:
        try:
            (faces,) = self.looks(frame.row, image)
            found = self.cut_out(frame.row, image, faces)
            return [replace(found, time=frame.time, key=frame.key)]
        except ValueError as error:  # five landmarks in one point
            return [replace(frame, reason=str(error))]

    def batches(self, photos: list[Photo]) -> Iterator[Batch]:
        """As of photos, and follows the faces of videos."""
        for photo in photos:
            if not np.isnan(photo.time):
                boxes = np.array([face.box for face, _ in photo.found], np.float32)
                photo.tracks = self._follow(photo.row, photo.time, boxes)
        yield from super().batches(photos)

    def _follow(self, photo: int, time: float, boxes: npt.NDArray[np.float32]) -> list[int]:
        """The tracks of the faces of a video's next frame; boxes as they are kept, (F, 4)."""
        if photo != self._tracked:
            self._tracked = photo
            self._tracks = Tracks(max(_GONE_SECONDS, _GONE_FRAMES / self._rate))
        return self._tracks.follow(time, [(x, y, w, h) for x, y, w, h in boxes.tolist()])

    def _restore(self, photos: Rows, block: Block) -> Batch:
        batch = super()._restore(photos, block)
        photo, time = self.kept["photo"], self.kept["time"]
        frames = groupby(batch.rows.tolist(), key=lambda row: (int(photo[row]), float(time[row])))
        for frame, rows in frames:
            if not np.isnan(frame[1]):
                found = [row for row in rows if self.kept["number"][row]]
                self._follow(*frame, self.kept["place"][found, :4])
        return batch

    def frame_before(self, row: int) -> float:
        """As of photos."""
        return self._frame_after(row - 1, int(self.kept["photo"][row]))

    def _frame_after(self, row: int, photo: int) -> float:
        """The time of a row if it is a frame of a photo's video, else BEGINNING."""
        if row < 0 or self.kept["photo"][row] != photo or np.isnan(self.kept["time"][row]):
            return BEGINNING
        return float(self.kept["time"][row])

    def reread(self, row: int) -> Image:
        """The photo or the frame again; raises UnreadableImage."""
        time = float(self.kept["time"][row])
        if np.isnan(time):
            return super().reread(row)
        return self._frame_again(self.photo_path(row), time)

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """As of photos, with time (seconds) and track; empty for photos."""
        columns = super().columns()
        tracks = np.where(self.kept["track"] > 0, self.kept["track"], np.nan)
        columns[2:2] = [
            ("time", NumberColumn(self.kept["time"], 3)),
            ("track", NumberColumn(tracks, 0)),
        ]
        return columns


class Tracks:
    """The faces of one video, followed from frame to frame."""

    def __init__(self, patience: float) -> None:
        """No face is known; one that is not seen for `patience` seconds has gone."""
        self._patience = patience
        self._last: dict[int, tuple[float, Box]] = {}  # by track: when and where it was seen
        self._count = 0

    def follow(self, time: float, boxes: Sequence[Box]) -> list[int]:
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
        for index in range(len(boxes)):
            if index not in found:
                self._count += 1
                found[index] = self._count
            self._last[found[index]] = (time, boxes[index])
        return [found[index] for index in range(len(boxes))]


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    shared = shared_area(a, b)
    return shared / max(a[2] * a[3] + b[2] * b[3] - shared, 1e-9)
