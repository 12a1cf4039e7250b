"""Faces of photos: found and cut out ahead of the network by threads, the largest or all of them.

What is kept of a face is its row here: which photo, which of its faces, where. A row without a face
stands for a photo that has none or cannot be read, so that every photo has at least one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.containers import open_ahead
from dataset.images import read_image
from dataset.lists import ImageList
from dataset.loader import Batch, default_workers, result_or_stall
from dataset.scores import NumberColumn
from sdd_fiqa.alignment import Face, FaceAligner, align
from sdd_fiqa.errors import Stalled, UnreadableImage, UserError
from sdd_fiqa.images import FACE_SIZE, Image

NO_FACE = "no face"
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # as seen in the picture
COLUMNS = (
    *("box_x", "box_y", "box_width", "box_height"),
    *(f"{point}_{axis}" for point in _POINTS for axis in "xy"),
)
_CHUNK = 4  # photos a task
_PLACE = 14  # numbers that place a face: its box and five landmarks


@dataclass
class _Photo:
    """What was found in one photo."""

    row: int
    reason: str = NO_FACE  # why there is no face, where there is none
    found: list[tuple[Face, Image]] = field(default_factory=list)


class PhotoFaces:
    """The faces of listed photos: rows that grow as photos are searched.

    Iterating searches the photos, in order, and yields batches of face crops, whose `rows` count
    the faces from 0. What was found so far can then be asked for, row by row.
    """

    def __init__(
        self,
        photos: ImageList,
        all_faces: bool,
        batch_size: int,
        num_workers: int | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            photos: the list of photos.
            all_faces: every face of a photo, the largest first; else the largest alone.
            batch_size: faces a batch; the last one may be smaller.
            num_workers: threads that decode and detect; None takes one a core.

        Raises:
            UserError: the detector is missing and cannot be fetched.
        """
        self.photos, self.all_faces = photos, all_faces
        self._aligner = FaceAligner()
        self._again = lru_cache(2)(read_image)  # a photo of many faces is decoded once for them
        self._batch_size = batch_size
        self._workers = num_workers or default_workers()
        self._photo = _Growing((), np.int64)  # row of `photos`
        self._number = _Growing((), np.int32)  # 1 for the largest; 0 where there is no face
        self._place = _Growing((_PLACE,), np.float32)

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._photo)

    def __iter__(self) -> Iterator[Batch]:
        """Searches the photos; see the class.

        Raises:
            Stalled: a photo has not come back for a long time.
            UserError: the storage is gone (sdd_fiqa/storage.py).
        """
        waiting: list[_Photo] = []
        rows = 0
        for photo in self._searched():
            waiting.append(photo)
            rows += max(1, len(photo.found))
            if rows >= self._batch_size:
                yield from self._batches(waiting)
                waiting, rows = [], 0
        yield from self._batches(waiting)

    def searched(self) -> int:
        """How many photos the rows so far are of."""
        return int(self._photo.values[-1]) + 1 if len(self) else 0

    def path(self, row: int) -> str:
        """The photo's path, followed by `#k` for its k-th face when all faces are asked for."""
        return self._named(row, self.photo_path(row))

    def photo_path(self, row: int) -> str:
        """The photo's path."""
        return self.photos.path(int(self._photo.values[row]))

    def paths(self) -> Iterator[str]:
        """`path` of every row."""
        photos = self.photos.paths_at(self._photo.values)
        return (self._named(row, path) for row, path in enumerate(photos))

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """`path` of some rows, in the order asked for."""
        some = list(rows)
        photos = self.photos.paths_at(self._photo.values[some].tolist() if some else [])
        return (self._named(row, path) for row, path in zip(some, photos, strict=True))

    def crop(self, row: int) -> Image:
        """The face again, cut out of its photo: (112, 112, 3) uint8, RGB.

        Raises:
            UnreadableImage: the photo cannot be read any more, or the row has no face.
        """
        if self._number.values[row] == 0:
            raise UnreadableImage(NO_FACE)
        landmarks = self._place.values[row, 4:].reshape(5, 2).astype(np.float64)
        return align(self._again(self.photo_path(row)), landmarks)

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """COLUMNS for scores.csv when all faces are asked for; empty where there is no face.

        Pixels of the photo, with one decimal.
        """
        if not self.all_faces:
            return []
        return [(name, NumberColumn(self._place.values[:, i], 1)) for i, name in enumerate(COLUMNS)]

    def _named(self, row: int, path: str) -> str:
        number = int(self._number.values[row])
        return f"{path}#{number}" if self.all_faces and number else path

    def _searched(self) -> Iterator[_Photo]:
        """The photos in order, a bounded number of them ahead."""
        ahead: deque[tuple[int, Future[list[_Photo]]]] = deque()
        if len(self.photos):
            open_ahead(self.photos.path(0))
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="detect")
        ended = True  # no thread hangs in a read
        try:
            for start in range(0, len(self.photos), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(self.photos)))
                paths = list(self.photos.paths_at(rows))
                ahead.append((start, pool.submit(self._search, rows, paths)))
                if len(ahead) > 4 * self._workers:
                    yield from self._found(*ahead.popleft())
            while ahead:
                yield from self._found(*ahead.popleft())
        except Stalled:
            ended = False
            raise
        finally:
            pool.shutdown(wait=ended, cancel_futures=True)

    def _found(self, first: int, search: Future[list[_Photo]]) -> list[_Photo]:
        return result_or_stall(search, self.photos, first, _CHUNK)

    def _search(self, rows: range, paths: list[str]) -> list[_Photo]:
        most = None if self.all_faces else 1
        photos = []
        for row, path in zip(rows, paths, strict=True):
            photo = _Photo(row)
            try:
                photo.found = self._aligner.align(read_image(path), most)
            except UserError:  # the storage is gone: that is not this photo's trouble
                raise
            except ValueError as error:  # unreadable; or five landmarks in one point
                photo.reason = str(error)
            photos.append(photo)
        return photos

    def _batches(self, photos: list[_Photo]) -> Iterator[Batch]:
        """Notes the rows of some photos, then yields their crops."""
        first = len(self)
        crops: list[Image | None] = []
        failures: dict[int, str] = {}
        for photo in photos:
            if not photo.found:
                failures[len(crops)] = photo.reason
                crops.append(None)
                self._photo.add(photo.row)
                self._number.add(0)
                self._place.add(np.nan)
            for number, (face, crop) in enumerate(photo.found, start=1):
                crops.append(crop)
                self._photo.add(photo.row)
                self._number.add(number)
                self._place.add([*face.box, *face.landmarks.ravel().tolist()])
        blank = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        for start in range(0, len(crops), self._batch_size):
            some = crops[start : start + self._batch_size]
            faces = np.stack([blank if crop is None else crop for crop in some])
            yield Batch(
                rows=np.arange(first + start, first + start + len(some)),
                faces=faces,
                sizes=np.full((len(some), 2), FACE_SIZE, np.int32),
                failures={
                    i: failures[start + i] for i in range(len(some)) if start + i in failures
                },
            )


class _Growing:
    """An array that grows at its end."""

    def __init__(self, shape: tuple[int, ...], kind: Any) -> None:
        self._room = np.empty((64, *shape), kind)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        return self._room[: self._size]

    def add(self, value: Any) -> None:
        if self._size == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._size] = value
        self._size += 1
