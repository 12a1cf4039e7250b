"""The faces to score: every listed image is one, or they are found in photos and cut out.

What is kept of a photo's face is its row: which photo, which of its faces, where. A photo without a
face, or one that cannot be read, has a row too, so that every photo has at least one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dataset.alignment_check import like_photos
from dataset.containers import read_run
from dataset.images import read_image
from dataset.journal import BEGINNING, Block, Forms, Journal, Key
from dataset.lists import ImageList
from dataset.loader import Batch, batches, read_ahead
from dataset.scores import NumberColumn
from sdd_fiqa.alignment import DetectedFace, FaceAligner, align
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import FACE_SIZE, Content, Image

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

NO_FACE = "no face"
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # as seen in the picture
_BOX = ("box_x", "box_y", "box_width", "box_height")
LANDMARK_COLUMNS = tuple(f"{point}_{axis}" for point in _POINTS for axis in "xy")
# Of scores.csv, in this order; the landmarks with --all-faces alone.
COLUMNS = ("faces", "turned", *_BOX, *LANDMARK_COLUMNS, "detector_score")
_PLACE = (*_BOX, *LANDMARK_COLUMNS, "detector_score", "turned")  # what is kept of a face
_CHUNK = 4  # photos a task


class Faces(ABC):
    """Faces to score, row by row.

    Iterating yields batches of crops, in order; their `rows` are those here.

    Attributes:
        like_photos: listed images so far that cannot be aligned crops, but were taken as such.
        unread: {path: why} of listed files that are not read; set it before iterating.
        journal: what is scored goes there, and what it holds is not read again; or None.
        section: of the journal.
        forms: what the journal keeps of each row, beside its score.
    """

    section = ""
    forms: ClassVar[Forms] = {}

    def __init__(self, table: ImageList, batch_size: int, num_workers: int | None = None) -> None:
        """Nothing is read yet; arguments as for `dataset.loader.batches`."""
        self._table = table
        self._batch_size, self._workers = batch_size, num_workers
        self.like_photos = 0
        self.unread: Mapping[str, str] = {}
        self.journal: Journal | None = None
        self._unkept: dict[int, tuple[Batch, Values]] = {}  # by first row

    @abstractmethod
    def __len__(self) -> int:
        """Rows so far."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Reads the images.

        Raises:
            Stalled: an image has not come back for a long time.
            UserError: the storage is gone (sdd_fiqa/storage.py).
        """

    @abstractmethod
    def searched(self) -> int:
        """How many listed images the batches so far are of."""

    @abstractmethod
    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """What some rows are called, in the order asked for."""

    @abstractmethod
    def photo_path(self, row: int) -> str:
        """The image file of a row."""

    @abstractmethod
    def crop(self, row: int) -> Image:
        """The face of a row again, uint8 RGB; raises UnreadableImage."""

    @abstractmethod
    def listed(self, rows: Rows) -> Rows:
        """The row of the list of each of some rows."""

    def kept(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `forms`, of some rows."""
        return {}

    def frame_before(self, row: int) -> float:
        """The time of the frame before a row, of the same video; else BEGINNING."""
        return BEGINNING

    def runs(self, photos: Rows) -> Iterator[tuple[int, int, Block | None]]:
        """`Journal.runs` of these rows of the list; without a journal, one run of all."""
        if self.journal is None:
            return iter([(0, len(photos), None)])
        return self.journal.runs(self.section, self._table, photos, self.forms)

    def keep(self, batch: Batch, scores: Values) -> None:
        """Notes (B,) scores of a batch in the journal; those of one image at once."""
        if self.journal is None or batch.scores is not None:
            return
        self._unkept[int(batch.rows[0])] = batch, scores  # after Ctrl-C one may come again
        if not batch.last:
            return
        parts, self._unkept = list(self._unkept.values()), {}
        rows = np.concatenate([part.rows for part, _ in parts])
        values = np.concatenate([some for _, some in parts])
        keys = [key for part, _ in parts for key in part.keys]
        failures = [part.failures.get(i) for part, _ in parts for i in range(len(part.rows))]
        photos = self.listed(rows)
        image = np.cumsum(np.diff(photos, prepend=photos[0]) != 0)
        firsts = np.unique(image, return_index=True)[1]
        if any(key is None and why is None for key, why in zip(keys, failures, strict=True)):
            return  # a file that came while it was read
        paths = self._table.paths_at(photos[firsts])
        block = Block(
            images=[(path, keys[i]) for path, i in zip(paths, firsts.tolist(), strict=True)],
            reasons={i: why for i, why in enumerate(failures) if why is not None},
            like_photos=sum(int(like_photos(part.sizes).sum()) for part, _ in parts),
            after=self.frame_before(int(rows[0])),
            arrays={
                "score": values.astype("<f4"),
                "image": image.astype("<i4"),
                **self.kept(rows),
            },
        )
        self.journal.write(self.section, block)

    def path(self, row: int) -> str:
        """What a row is called."""
        return next(self.paths_at([row]))

    def paths(self) -> Iterator[str]:
        """What every row is called."""
        return self.paths_at(range(len(self)))

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """Columns of scores.csv that only these faces have."""
        return []


class ListedFaces(Faces):
    """One face an image, aligned already: the rows are those of the list."""

    _done = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Batch]:
        rows = np.arange(len(self._table))
        contents = self._contents if self.unread else read_run
        key = None if self.journal is None else self.journal.key
        for start, stop, block in self.runs(rows):
            some = rows[start:stop]
            if block is not None:
                self._done += len(some)
                self.like_photos += block.like_photos
                yield _scored(some, block)
                continue
            for batch in batches(self._table, some, self._batch_size, self._workers, contents, key):
                self._done += len(batch.rows)
                self.like_photos += int(like_photos(batch.sizes).sum())
                yield batch

    def _contents(self, paths: Sequence[str]) -> Iterator[Content | UnreadableImage | None]:
        for path, content in zip(paths, read_run(paths), strict=False):
            why = self.unread.get(path)
            yield content if why is None else UnreadableImage(why)

    def listed(self, rows: Rows) -> Rows:
        """The same rows."""
        return rows

    def searched(self) -> int:
        """How many images are decoded."""
        return self._done

    def paths(self) -> Iterator[str]:
        """The images' paths."""
        return self._table.paths()  # in blocks, unlike paths_at

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """The paths of some images."""
        return self._table.paths_at(rows)

    def photo_path(self, row: int) -> str:
        """The image's path."""
        return self._table.path(row)

    def crop(self, row: int) -> Image:
        """The image again, as it is."""
        return read_image(self._table.path(row))


def _scored(rows: Rows, block: Block) -> Batch:
    """The batch of a block."""
    none = np.zeros((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)
    sizes = np.zeros((len(rows), 2), np.int32)
    scores = block.arrays["score"]
    return Batch(rows, none, sizes, dict(block.reasons), scores=scores[np.isfinite(scores)])


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
        photo: of each row, the row of the list.
        number: 1 for the largest face of a photo; 0 where there is no face.
        seen: how many faces the photo shows; NaN where it cannot be read.
        place: (rows, 16): box, landmarks, the detector's score, by how much the photo was turned.
    """

    forms: ClassVar[Forms] = {
        "number": ("<i4", ()),
        "seen": ("<f4", ()),
        "place": ("<f4", (len(_PLACE),)),
    }

    def __init__(
        self,
        table: ImageList,
        all_faces: bool,
        batch_size: int,
        num_workers: int | None = None,
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
        self.photo = Growing((), np.int64)
        self.number = Growing((), np.int32)
        self.seen = Growing((), np.float32)
        self.place = Growing((len(_PLACE),), np.float32)

    def looks(self, photo: int, image: Image) -> list[list[DetectedFace]]:
        """The faces that each look at a photo shows."""
        return [self.aligner.search(image, self.all_faces)]

    def __len__(self) -> int:
        return len(self.photo)

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[Photo] = []
        rows = 0
        for start, stop, block in self.runs(self._photos):
            if block is not None:
                yield from self.batches(waiting)
                waiting, rows = [], 0
                yield self._restore(self._photos[start:stop], block)
                continue
            for photos in read_ahead(self.tasks(start, stop), self._table, _CHUNK, self._workers):
                for photo, following in pairwise([*photos, None]):
                    assert photo is not None
                    waiting.append(photo)
                    rows += max(1, len(photo.found))
                    more = following is not None and following.row == photo.row  # turned
                    if rows >= self._batch_size and not more:
                        yield from self.batches(waiting)
                        waiting, rows = [], 0
        yield from self.batches(waiting)

    def listed(self, rows: Rows) -> Rows:
        """The photos of some rows."""
        photos: Rows = self.photo.values[rows]
        return photos

    def kept(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Where the faces of some rows are."""
        return {
            name: getattr(self, name).values[rows].astype(kind)
            for name, (kind, _) in self.forms.items()
        }

    def _restore(self, photos: Rows, block: Block) -> Batch:
        """Adds the rows of a block."""
        first = len(self)
        for row, image in enumerate(block.arrays["image"].tolist()):
            self.photo.add(photos[image])
            for name in self.forms:
                getattr(self, name).add(block.arrays[name][row])
        return _scored(np.arange(first, len(self)), block)

    def searched(self) -> int:
        """How many photos the rows so far are of."""
        last = self.photo.values[-1:]
        return int(np.searchsorted(self._photos, last, side="right")[0]) if len(last) else 0

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """The photos' paths, followed by `#k` for the k-th face when all faces are asked for."""
        some = np.fromiter(rows, np.int64)
        for row, path in zip(
            some.tolist(), self._table.paths_at(self.photo.values[some]), strict=True
        ):
            number = self.number.values[row] if self.all_faces else 0
            yield self.picture(row, path) + (f"#{number}" if number else "")

    def picture(self, row: int, path: str) -> str:
        """What the picture of a row is called, whose photo has this path."""
        return path

    def stills(self) -> npt.NDArray[np.bool_]:
        """(rows,) whether each is of a photo."""
        return np.ones(len(self), np.bool_)

    def turned_photos(self) -> int:
        """How many photos the rows show turned."""
        return int(np.count_nonzero(self.place.values[self.number.values == 1, -1]))

    def photo_path(self, row: int) -> str:
        """The photo's path."""
        return self._table.path(int(self.photo.values[row]))

    def crop(self, row: int) -> Image:
        """The face again, cut out of its photo: (112, 112, 3) uint8, RGB.

        Raises:
            UnreadableImage: the photo cannot be read any more, or the row has no face.
        """
        if self.number.values[row] == 0:
            raise UnreadableImage(NO_FACE)
        landmarks = self.place.values[row, 4:14].reshape(5, 2).astype(np.float64)
        return align(self.reread(row), landmarks)

    def reread(self, row: int) -> Image:
        """The picture of a row again; raises UnreadableImage."""
        return self._read_again(self.photo_path(row))

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """COLUMNS; empty where there is no face, `faces` where the photo could not be read.

        Boxes and landmarks are in pixels of the photo, with one decimal.
        """
        place = dict(zip(_PLACE, self.place.values.T, strict=True))
        columns: list[tuple[str, Sequence[str]]]
        columns = [("faces", NumberColumn(self.seen.values, 0))]
        columns.append(("turned", NumberColumn(place["turned"], 0)))
        columns += [(name, NumberColumn(place[name], 1)) for name in _BOX]
        if self.all_faces:
            columns += [(name, NumberColumn(place[name], 1)) for name in LANDMARK_COLUMNS]
        columns.append(("detector_score", NumberColumn(place["detector_score"], 3)))
        return columns

    def replace(self, other: PhotoFaces, rows: Rows) -> Rows:
        """Takes some rows of `other` in the place of all rows of the same photos.

        Returns:
            (N,) where each row here now is from: i for row i before; above, a row of `other` plus
            the number of rows before.
        """
        kept = np.flatnonzero(~np.isin(self.photo.values, other.photo.values[rows]))
        source = np.concatenate([kept, len(self) + rows])
        photos = np.concatenate([self.photo.values, other.photo.values])[source]
        source = source[np.argsort(photos, kind="stable")]
        for name in ("photo", "number", "seen", "place"):
            mine, theirs = getattr(self, name), getattr(other, name)
            mine.values = np.concatenate([mine.values, theirs.values])[source]
        return source

    def tasks(self, start: int, stop: int) -> Iterator[tuple[int, Callable[[], list[Photo]]]]:
        """The row of the list that each task begins with, and what searches it.

        Args:
            start: the first of the photos, counted in those to be searched.
            stop: the one after the last.
        """
        for at in range(start, stop, _CHUNK):
            rows = self._photos[at : min(at + _CHUNK, stop)]
            yield int(rows[0]), partial(self.search, rows, list(self._table.paths_at(rows)))

    def search(self, rows: Rows, paths: list[str]) -> list[Photo]:
        """Finds the faces of some photos: rows of the list, and their paths."""
        photos: list[Photo] = []
        for row, path in zip(rows.tolist(), paths, strict=True):
            key = None if self.journal is None else self.journal.key(path)
            before = len(photos)
            try:
                if path in self.unread:
                    raise UnreadableImage(self.unread[path])
                image = read_image(path)
                for faces in self.looks(row, image):
                    photos.append(self.cut_out(row, image, faces))
            except UserError:  # the storage is gone, which is no fault of the photo
                raise
            except ValueError as error:  # unreadable; or five landmarks in one point
                photos.append(Photo(row, str(error)))
            for photo in photos[before:]:
                photo.key = key
        return photos

    def note(self, photo: Photo, number: int) -> None:
        """Adds a row for one face of a photo; 0: for a photo without a face."""
        self.photo.add(photo.row)
        self.number.add(number)
        self.seen.add(photo.seen)
        if number == 0:
            self.place.add(np.nan)
            return
        face, _ = photo.found[number - 1]
        place = [*face.box, *face.landmarks.ravel().tolist()]
        self.place.add([*place, face.detector_score, face.turned])

    def cut_out(self, row: int, image: Image, faces: list[DetectedFace]) -> Photo:
        """The faces that a photo shows, with their crops: all, or the largest."""
        photo = Photo(row, seen=len(faces))
        for face in faces if self.all_faces else faces[:1]:
            exact = self.aligner.look_closer(image, face)
            photo.found.append((exact, align(image, exact.landmarks)))
        return photo

    def batches(self, photos: list[Photo]) -> Iterator[Batch]:
        """Notes the rows of some photos, then yields their crops."""
        first = len(self)
        crops: list[Image | None] = []
        failures: dict[int, str] = {}
        keys: list[Key] = []
        for photo in photos:
            keys += [photo.key] * max(1, len(photo.found))
            if not photo.found:
                failures[len(crops)] = photo.reason
                crops.append(None)
                self.note(photo, 0)
            for number, (_, crop) in enumerate(photo.found, start=1):
                crops.append(crop)
                self.note(photo, number)
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
                keys=keys[start : start + len(some)],
                last=start + len(some) == len(crops),
            )


class Growing:
    """An array that grows at its end."""

    def __init__(self, shape: tuple[int, ...], kind: Any) -> None:
        self._room = np.empty((64, *shape), kind)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> npt.NDArray[Any]:
        """What was added; may be set as a whole."""
        return self._room[: self._size]

    @values.setter
    def values(self, values: npt.NDArray[Any]) -> None:
        self._room, self._size = values, len(values)

    def add(self, value: Any) -> None:
        """Adds one entry."""
        if self._size == len(self._room):
            self._room = np.concatenate([self._room, np.empty_like(self._room)])
        self._room[self._size] = value
        self._size += 1
