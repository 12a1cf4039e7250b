"""The faces found in photos and cut out.

What is kept of a photo's face is its row: which photo, which of its faces, where. A photo without a
face, or one that cannot be read, has a row too, so that every photo has at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dataset.faces import Faces, Rows, scored_before
from dataset.images import read_image
from dataset.journal import Block, Forms, Key
from dataset.lists import ImageList
from dataset.loader import Batch, read_ahead
from dataset.scores import NumberColumn
from sdd_fiqa.alignment import DetectedFace, FaceAligner, align
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import FACE_SIZE, Image

NO_FACE = "no face"
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # as seen in the picture
_BOX = ("box_x", "box_y", "box_width", "box_height")
LANDMARK_COLUMNS = tuple(f"{point}_{axis}" for point in _POINTS for axis in "xy")
# Of scores.csv, in this order; the landmarks with --all-faces alone.
COLUMNS = ("faces", "turned", *_BOX, *LANDMARK_COLUMNS, "detector_score")
_PLACE = (*_BOX, *LANDMARK_COLUMNS, "detector_score", "turned")  # what is kept of a face
# The row of the list; 1 for the largest face of a photo, 0 where there is no face; how many faces
# the photo shows, NaN where it cannot be read; where the face is; of a frame its time in seconds,
# NaN for photos; the track, 0 where there is none.
ROW = np.dtype(
    [
        *(("photo", "<i8"), ("number", "<i4"), ("seen", "<f4"), ("place", "<f4", len(_PLACE))),
        *(("time", "<f8"), ("track", "<i4")),
    ]
)
_DECIMALS = {"turned": 0, "detector_score": 3}  # of others 1
_CHUNK = 4  # photos a task


@dataclass
class Photo:
    """What was found in one photo, or in one frame of a video.

    Attributes:
        row: of the list.
        reason: why there is no face, where there is none.
        found: faces with their crops.
        seen: how many faces it shows; NaN where it could not be read.
        time: of the frame, in seconds; NaN for a photo.
        tracks: of the faces found in a frame.
        key: of the photo's file, before it was read; None without a journal.
    """

    row: int
    reason: str = NO_FACE
    found: list[tuple[DetectedFace, Image]] = field(default_factory=list)
    seen: float = np.nan
    time: float = np.nan
    tracks: list[int] = field(default_factory=list)
    key: Key = None


class PhotoFaces(Faces):
    """The faces of photos: rows that grow as photos are searched.

    Attributes:
        kept: (rows,) of type ROW, what is kept of each face.
    """

    forms: ClassVar[Forms] = {
        "number": ("<i4", ()),
        "seen": ("<f4", ()),
        "place": ("<f4", (len(_PLACE),)),
    }

    def __init__(
        self, table: ImageList, all_faces: bool, batch_size: int, num_workers: int | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            table: the list of photos.
            all_faces: every face of a photo, the largest first; else the largest alone.
            batch_size: faces a batch; the last one may be smaller.
            num_workers: threads that decode and detect; None takes one a core.

        Raises:
            UserError: the detector is missing and cannot be fetched.
        """
        super().__init__(table, batch_size, num_workers)
        self.all_faces = all_faces
        self.aligner = FaceAligner()
        self._read_again = lru_cache(2)(read_image)  # a photo of many faces is decoded once
        self.restart(np.arange(len(table)))

    def restart(self, photos: Rows) -> None:
        """Forgets all rows; the photos of these rows of the list, rising, are to be searched."""
        self._photos = photos  # rows of the list, rising
        self._unkept = {}  # not those of the faces that this is a copy of
        self.kept = np.empty(0, ROW)
        self._room = self.kept  # with room for more at its end

    def looks(self, photo: int, image: Image) -> list[list[DetectedFace]]:
        """The faces that each look at a photo shows."""
        return [self.aligner.search(image, self.all_faces)]

    def __len__(self) -> int:
        return len(self.kept)

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[Photo] = []
        for start, stop, block in self.runs(self._photos):
            if block is not None:
                yield from self.batches(waiting)
                waiting = []
                yield self._restore(self._photos[start:stop], block)
                continue
            for photos in read_ahead(self.tasks(start, stop), self._workers):
                for _, looks in groupby(photos, attrgetter("row")):  # of one photo
                    waiting += looks
                    if sum(max(1, len(photo.found)) for photo in waiting) >= self._batch_size:
                        yield from self.batches(waiting)
                        waiting = []
        yield from self.batches(waiting)

    def listed(self, rows: Rows) -> Rows:
        """The photos of some rows."""
        photos: Rows = self.kept["photo"][rows]
        return photos

    def _restore(self, photos: Rows, block: Block) -> Batch:
        """Adds the rows of a block."""
        images = photos[block.arrays["image"]]
        rows = np.zeros(len(images), ROW)
        rows["photo"], rows["time"] = images, np.nan
        for name in self.forms:
            rows[name] = block.arrays[name]
        return scored_before(self._add(rows), block)

    def _add(self, rows: npt.NDArray[Any]) -> Rows:
        """Adds rows to those that are kept; returns their numbers."""
        first, count = len(self), len(self) + len(rows)
        if count > len(self._room):
            self._room = np.concatenate([self.kept, np.empty(count, ROW)])
        self._room[first:count] = rows
        self.kept = self._room[:count]
        return np.arange(first, count)

    def searched(self) -> int:
        """How many photos the rows so far are of."""
        last = self.kept["photo"][-1:]
        return int(np.searchsorted(self._photos, last, side="right")[0]) if len(last) else 0

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """The photos' paths, followed by `#k` for the k-th face when all faces are asked for."""
        some = np.fromiter(rows, np.int64)
        for row, path in zip(
            some.tolist(), self._table.paths_at(self.kept["photo"][some]), strict=True
        ):
            number = self.kept["number"][row] if self.all_faces else 0
            yield self.picture(row, path) + (f"#{number}" if number else "")

    def picture(self, row: int, path: str) -> str:
        """What the picture of a row is called, whose photo has this path: a frame has a time."""
        time = self.kept["time"][row]
        return path if np.isnan(time) else f"{path}#t={time:.3f}"

    def stills(self) -> npt.NDArray[np.bool_]:
        """(rows,) whether each is of a photo."""
        stills: npt.NDArray[np.bool_] = np.isnan(self.kept["time"])
        return stills

    def turned_photos(self) -> int:
        """How many photos the rows show turned."""
        return int(np.count_nonzero(self.kept["place"][self.kept["number"] == 1, -1]))

    def crop(self, row: int) -> Image:
        """The face again, cut out of its photo: (112, 112, 3) uint8, RGB.

        Raises:
            UnreadableImage: the photo cannot be read any more, or the row has no face.
        """
        if self.kept["number"][row] == 0:
            raise UnreadableImage(NO_FACE)
        landmarks = self.kept["place"][row, 4:14].reshape(5, 2).astype(np.float64)
        return align(self.reread(row), landmarks)

    def reread(self, row: int) -> Image:
        """The picture of a row again; raises UnreadableImage."""
        return self._read_again(self.photo_path(row))

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """COLUMNS; empty where there is no face, `faces` where the photo could not be read.

        Boxes and landmarks are in pixels of the photo, with one decimal.
        """
        columns: dict[str, Sequence[str]] = {"faces": NumberColumn(self.kept["seen"], 0)}
        for name, values in zip(_PLACE, self.kept["place"].T, strict=True):
            columns[name] = NumberColumn(values, _DECIMALS.get(name, 1))
        wanted = (name for name in COLUMNS if self.all_faces or name not in LANDMARK_COLUMNS)
        return [(name, columns[name]) for name in wanted]

    def replace(self, other: PhotoFaces, rows: Rows) -> Rows:
        """Takes some rows of `other` in the place of all rows of the same photos.

        Returns:
            (N,) where each row here now is from: i for row i before; above, a row of `other` plus
            the number of rows before.
        """
        both = np.concatenate([self.kept, other.kept])
        kept = np.flatnonzero(~np.isin(self.kept["photo"], other.kept["photo"][rows]))
        source = np.concatenate([kept, len(self) + rows])
        source = source[np.argsort(both["photo"][source], kind="stable")]
        self.kept = self._room = both[source]
        return source

    def tasks(self, start: int, stop: int) -> Iterator[tuple[str, Callable[[], list[Photo]]]]:
        """The path of the photo that each task begins with, and what searches it.

        `start` and `stop` count the photos to be searched.
        """
        for at in range(start, stop, _CHUNK):
            rows = self._photos[at : min(at + _CHUNK, stop)]
            paths = list(self._table.paths_at(rows))
            yield paths[0], partial(self.search, rows, paths)

    def search(self, rows: Rows, paths: list[str]) -> list[Photo]:
        """Finds the faces of some photos: rows of the list, and their paths."""
        photos: list[Photo] = []
        for row, path in zip(rows.tolist(), paths, strict=True):
            key = None if self.journal is None else self.journal.key(path)
            try:
                if path in self.unread:
                    raise UnreadableImage(self.unread[path])
                image = read_image(path)
                found = [self.cut_out(row, image, faces) for faces in self.looks(row, image)]
            except UserError:  # the storage is gone, which is no fault of the photo
                raise
            except ValueError as error:  # unreadable; or five landmarks in one point
                found = [Photo(row, str(error))]
            for photo in found:
                photo.key = key
            photos += found
        return photos

    def _row(self, photo: Photo, number: int) -> tuple[Any, ...]:
        """What is kept of one face of a photo; 0: of a photo without a face."""
        place, track = [np.nan] * len(_PLACE), 0
        if number:
            face, _ = photo.found[number - 1]
            place = [*face.box, *face.landmarks.ravel().tolist()]
            place += [face.detector_score, face.turned]
            track = photo.tracks[number - 1] if photo.tracks else 0
        return photo.row, number, photo.seen, place, photo.time, track

    def cut_out(self, row: int, image: Image, faces: list[DetectedFace]) -> Photo:
        """The faces that a photo shows, with their crops: all, or the largest."""
        photo = Photo(row, seen=len(faces))
        for face in faces if self.all_faces else faces[:1]:
            exact = self.aligner.look_closer(image, face)
            photo.found.append((exact, align(image, exact.landmarks)))
        return photo

    def batches(self, photos: list[Photo]) -> Iterator[Batch]:
        """Notes the rows of some photos, then yields their crops."""
        rows = [(photo, n) for photo in photos for n in range(1, len(photo.found) + 1) or [0]]
        numbers = self._add(np.array([self._row(*row) for row in rows], ROW))
        blank = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        for start in range(0, len(rows), self._batch_size):
            some = rows[start : start + self._batch_size]
            yield Batch(
                rows=numbers[start : start + len(some)],
                faces=np.stack([photo.found[n - 1][1] if n else blank for photo, n in some]),
                sizes=np.full((len(some), 2), FACE_SIZE, np.int32),
                failures={i: photo.reason for i, (photo, n) in enumerate(some) if not n},
                keys=[photo.key for photo, _ in some],
                last=start + len(some) == len(rows),
            )
