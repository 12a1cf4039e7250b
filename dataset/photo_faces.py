"""The faces found in photos and in frames of videos, and cut out.

What is kept of a face is its row: which photo, which of its faces, where. A photo without a face,
or one that cannot be read, has a row too, so that every photo has at least one. A video has the
rows of each frame taken, which is called `clip.mp4#t=12.500`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.faces import Faces, Rows
from dataset.images import read_image
from dataset.journal import BEGINNING, Block, Key
from dataset.lists import ImageList
from dataset.loader import Batch, read_ahead
from dataset.scores import NumberColumn
from dataset.tracks import tracks_of
from dataset.video import frame_at, frames, is_video
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
ROW = np.dtype(
    [
        ("photo", "<i8"),  # row of the list
        ("number", "<i4"),  # 1 for the largest face of a photo; 0 where there is no face
        ("seen", "<f4"),  # how many faces the photo shows; NaN where it cannot be read
        ("place", "<f4", len(_PLACE)),
        ("time", "<f8"),  # of a frame, in seconds; NaN for photos
    ]
)
_DECIMALS = {"faces": 0, "turned": 0, "time": 3, "track": 0, "detector_score": 3}  # of others 1

Looks = Callable[[int, Image], list[list[DetectedFace]]]


@dataclass
class Photo:
    """What one look at a photo, or at a frame of a video, shows.

    Attributes:
        row: of the list.
        key: of the photo's file, before it was read; None without a journal.
        time: of the frame, in seconds; NaN for a photo.
        reason: why there is no face, where there is none.
        found: faces with their crops.
        seen: how many faces it shows; NaN where it could not be read.
    """

    row: int
    key: Key = None
    time: float = np.nan
    reason: str = NO_FACE
    found: list[tuple[DetectedFace, Image]] = field(default_factory=list)
    seen: float = np.nan


class PhotoFaces(Faces):
    """The faces of photos and videos: rows that grow as they are searched.

    Attributes:
        kept: (rows,) of type ROW, what is kept of each face.
    """

    def __init__(
        self,
        table: ImageList,
        all_faces: bool,
        batch_size: int,
        num_workers: int | None = None,
        frames_per_second: float | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            table: the list of photos.
            all_faces: every face of a photo, the largest first; else the largest alone.
            batch_size: faces a batch; the last one may be smaller.
            num_workers: threads that decode and detect; None takes one a core.
            frames_per_second: so many frames of each second of a video; None: there is no video.

        Raises:
            UserError: the detector is missing and cannot be fetched.
        """
        super().__init__(table, batch_size, num_workers)
        self.all_faces, self._rate = all_faces, frames_per_second
        self.fields = ("number", "seen", "place", *(() if self._rate is None else ("time",)))
        self.aligner = FaceAligner()
        self._looks: Looks = lambda _, image: [self.aligner.search(image, self.all_faces)]
        self._read_again = lru_cache(2)(_picture)  # a photo of many faces is decoded once
        self.kept = self._room = np.empty(0, ROW)  # _room has room for more rows at its end

    def again(self, photos: Rows, looks: Looks, all_faces: bool, section: str) -> PhotoFaces:
        """Some photos, to be searched in another way.

        Args:
            photos: (P,) rows of the list, rising.
            looks: gives the faces that each look at a photo shows, from its row of the list and its
                pixels.
            all_faces: as above.
            section: of the journal.
        """
        other = copy(self)
        other._photos, other._looks = photos, looks
        other.all_faces, other.section = all_faces, section
        other._unkept = {}
        other.kept = other._room = np.empty(0, ROW)
        return other

    def __len__(self) -> int:
        return len(self.kept)

    def listed(self, rows: Rows) -> Rows:
        """The photos of some rows."""
        return np.asarray(self.kept["photo"][rows], np.int64)

    def batches(self, photos: Rows) -> Iterator[Batch]:
        """Searches some photos, and yields the crops of their faces."""
        waiting: list[Photo] = []
        for looks in read_ahead(self._tasks(photos), self._workers):
            waiting += looks
            if sum(max(1, len(photo.found)) for photo in waiting) >= self._batch_size:
                yield from self._cut(waiting)
                waiting = []
        yield from self._cut(waiting)

    def _tasks(self, photos: Rows) -> Iterator[tuple[str, Callable[[], list[Photo]]]]:
        """What searches each photo or frame, and its path; frames are read here, in order."""
        for row, path in zip(photos.tolist(), self._table.paths_at(photos), strict=True):
            if self._rate is None or not is_video(path):
                yield path, partial(self._search, Photo(row), path)
                continue
            video = Photo(row, self._key(path))
            done = self.frame_before(len(self), row)  # what the journal had
            try:
                for time, image in frames(path, self._rate):
                    if time > done:
                        yield path, partial(self._search, replace(video, time=time), path, image)
            except UnreadableImage as error:
                yield path, partial(list, [replace(video, reason=str(error))])

    def _search(self, photo: Photo, path: str, image: Image | None = None) -> list[Photo]:
        """Finds the faces of a photo, which is read here, or of a frame."""
        most = None if self.all_faces else 1
        try:
            if image is None:
                photo.key = self._key(path)
                if path in self.unread:
                    raise UnreadableImage(self.unread[path])
                image = read_image(path)
            return [
                replace(photo, found=self.aligner.crops(image, faces[:most]), seen=len(faces))
                for faces in self._looks(photo.row, image)
            ]
        except UserError:  # the storage is gone, which is no fault of the photo
            raise
        except ValueError as error:  # unreadable; or five landmarks in one point
            return [replace(photo, reason=str(error))]

    def _cut(self, photos: list[Photo]) -> Iterator[Batch]:
        """Adds the rows of some photos, then yields their crops."""
        found = [(photo, n) for photo in photos for n in range(1, len(photo.found) + 1) or [0]]
        numbers = self._add(np.array([_row(*one) for one in found], ROW))
        blank = np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
        for start in range(0, len(found), self._batch_size):
            some = found[start : start + self._batch_size]
            yield Batch(
                rows=numbers[start : start + len(some)],
                faces=np.stack([photo.found[n - 1][1] if n else blank for photo, n in some]),
                failures={i: photo.reason for i, (photo, n) in enumerate(some) if not n},
                keys=[photo.key for photo, _ in some],
                last=start + len(some) == len(found),
            )

    def restored(self, photos: Rows, block: Block) -> Batch:
        """As for listed faces; adds the rows of the block."""
        rows = np.zeros(len(block.rows), ROW)
        rows["photo"], rows["time"] = photos[block.rows["image"]], np.nan
        for name in self.fields:
            rows[name] = block.rows[name]
        return super().restored(self._add(rows), block)

    def _add(self, rows: npt.NDArray[Any]) -> Rows:
        """Adds rows to those that are kept; returns their numbers."""
        first, count = len(self), len(self) + len(rows)
        if count > len(self._room):
            self._room = np.concatenate([self.kept, np.empty(count, ROW)])
        self._room[first:count] = rows
        self.kept = self._room[:count]
        return np.arange(first, count)

    def frame_before(self, row: int, photo: int) -> float:
        """As for listed faces."""
        same = row > 0 and self.kept["photo"][row - 1] == photo
        time = float(self.kept["time"][row - 1]) if same else np.nan
        return BEGINNING if np.isnan(time) else time

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """The photos' paths; after it `#t=1.500` of a frame, and `#k` of the k-th face of all."""
        some = np.fromiter(rows, np.int64)
        paths = self._table.paths_at(self.kept["photo"][some])
        numbers, times = self.kept["number"][some], self.kept["time"][some]
        for path, number, time in zip(paths, numbers, times, strict=True):
            frame = "" if np.isnan(time) else f"#t={time:.3f}"
            yield path + frame + (f"#{number}" if number and self.all_faces else "")

    def stills(self) -> npt.NDArray[np.bool_]:
        """(rows,) whether each is of a photo."""
        return np.asarray(np.isnan(self.kept["time"]), np.bool_)

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
        """The photo or the frame of a row again; raises UnreadableImage."""
        time = float(self.kept["time"][row])
        return self._read_again(self.photo_path(row), None if np.isnan(time) else time)

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """COLUMNS; empty where there is no face, `faces` where the photo could not be read.

        Boxes and landmarks are in pixels of the photo, with one decimal. Where there may be videos,
        also time (seconds) and track; empty for photos.
        """
        values = {"faces": self.kept["seen"], "time": self.kept["time"]}
        values |= zip(_PLACE, self.kept["place"].T, strict=True)
        wanted = [name for name in COLUMNS if self.all_faces or name not in LANDMARK_COLUMNS]
        if self._rate is not None:
            in_video = (self.kept["number"] > 0) & ~self.stills()
            faces = self.kept[in_video]
            boxes = faces["place"][:, :4]
            values["track"] = np.full(len(self), np.nan)
            values["track"][in_video] = tracks_of(faces["photo"], faces["time"], boxes, self._rate)
            wanted[2:2] = ["time", "track"]
        return [(name, NumberColumn(values[name], _DECIMALS.get(name, 1))) for name in wanted]

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


def _picture(path: str, time: float | None) -> Image:
    return read_image(path) if time is None else frame_at(path, time)


def _row(photo: Photo, number: int) -> tuple[Any, ...]:
    """What is kept of one face of a photo; 0: of a photo without a face."""
    place = [np.nan] * len(_PLACE)
    if number:
        face, _ = photo.found[number - 1]
        place = [*face.box, *face.landmarks.ravel().tolist(), face.detector_score, face.turned]
    return photo.row, number, photo.seen, place, photo.time
