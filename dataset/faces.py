"""The faces to score that are listed, aligned already; dataset/photo_faces.py finds others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.images import read_image
from dataset.journal import BEGINNING, Block, Journal, Key
from dataset.lists import ImageList
from dataset.loader import Batch, batches
from sdd_fiqa.images import FACE_SIZE, Image

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]


class Faces:
    """Faces to score, row by row; here one an image, aligned already: the rows of the list.

    Iterating yields batches of crops, in order; their `rows` are those here. It raises Stalled
    where an image has not come back for a long time, UserError where the storage is gone.

    Attributes:
        like_photos: listed images so far that cannot be aligned crops, but were taken as such.
        unread: {path: why} of listed files that are not read; set it before iterating.
        journal: what is scored goes there, and what it holds is not read again; or None.
        section: of the journal.
        fields: of `kept`: what the journal keeps of each row, beside its score.
    """

    section = ""
    fields: tuple[str, ...] = ()
    kept: npt.NDArray[Any] = np.empty(0)

    def __init__(self, table: ImageList, batch_size: int, num_workers: int | None = None) -> None:
        """Nothing is read yet; arguments as for `dataset.loader.batches`."""
        self._table = table
        self._batch_size, self._workers = batch_size, num_workers
        self._photos: Rows = np.arange(len(table))  # rows of the list to be searched, rising
        self.like_photos = 0
        self.unread: Mapping[str, str] = {}
        self.journal: Journal | None = None
        self._unkept: dict[int, tuple[Batch, Values]] = {}  # by first row

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._table)

    def __iter__(self) -> Iterator[Batch]:
        runs: Iterable[tuple[int, int, Block | None]] = [(0, len(self._photos), None)]
        if self.journal is not None:
            runs = self.journal.runs(self.section, self._table, self._photos, self._form)
        for start, stop, block in runs:
            photos = self._photos[start:stop]
            found: Iterable[Batch]
            if block is None:
                found = self.batches(photos)
            else:
                self.like_photos += block.like_photos
                found = [self.restored(photos, block)]
            for batch in found:
                self.like_photos += len(batch.like_photos)
                yield batch

    def batches(self, photos: Rows) -> Iterator[Batch]:
        """Reads some images."""
        size, workers = self._batch_size, self._workers
        return batches(self._table, photos, size, workers, self.unread, self._key)

    def restored(self, photos: Rows, block: Block) -> Batch:
        """The batch of a block of the journal, of these images."""
        none = np.zeros((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)
        scores = block.rows["score"]
        return Batch(photos, none, dict(block.reasons), scores=scores[np.isfinite(scores)])

    def searched(self, batch: Batch) -> int:
        """How many listed images a batch and those before it are of."""
        return int(np.searchsorted(self._photos, self.listed(batch.rows[-1:]), side="right")[0])

    def listed(self, rows: Rows) -> Rows:
        """The row of the list of each of some rows."""
        return rows

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """What some rows are called, in the order asked for."""
        return self._table.paths_at(rows)

    def path(self, row: int) -> str:
        """What a row is called."""
        return next(self.paths_at([row]))

    def paths(self) -> Iterator[str]:
        """What every row is called."""
        return self.paths_at(range(len(self)))

    def photo_path(self, row: int) -> str:
        """The image file of a row."""
        return self._table.path(int(self.listed(np.array(row))))

    def crop(self, row: int) -> Image:
        """The face of a row again, uint8 RGB; raises UnreadableImage."""
        return read_image(self.photo_path(row))

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """Columns of scores.csv that only these faces have."""
        return []

    def frame_before(self, row: int, photo: int) -> float:
        """The time of the frame before a row, of this photo's video; else BEGINNING."""
        return BEGINNING

    def keep(self, batch: Batch, scores: Values) -> None:
        """Notes (B,) scores of a batch in the journal; those of one image at once."""
        if self.journal is None or batch.scores is not None:
            return
        self._unkept[int(batch.rows[0])] = batch, scores  # after Ctrl-C one may come again
        if not batch.last:
            return
        parts, self._unkept = list(self._unkept.values()), {}
        rows = np.concatenate([part.rows for part, _ in parts])
        keys = [key for part, _ in parts for key in part.keys]
        failures = [part.failures.get(i) for part, _ in parts for i in range(len(part.rows))]
        if any(key is None and why is None for key, why in zip(keys, failures, strict=True)):
            return  # a file that came while it was read
        photos = self.listed(rows)
        kept = np.empty(len(rows), self._form)
        kept["score"] = np.concatenate([some for _, some in parts])
        kept["image"] = np.cumsum(np.diff(photos, prepend=photos[0]) != 0)
        for name in self.fields:
            kept[name] = self.kept[name][rows]
        firsts = np.unique(kept["image"], return_index=True)[1]
        paths = self._table.paths_at(photos[firsts])
        block = Block(
            images=[(path, keys[i]) for path, i in zip(paths, firsts.tolist(), strict=True)],
            reasons={i: why for i, why in enumerate(failures) if why is not None},
            like_photos=sum(len(part.like_photos) for part, _ in parts),
            after=self.frame_before(int(rows[0]), int(photos[0])),
            rows=kept,
        )
        self.journal.write(self.section, block)

    @property
    def _form(self) -> np.dtype[Any]:
        """The type of a block's rows."""
        own = [(name, self.kept.dtype[name]) for name in self.fields]
        return np.dtype([("score", "<f4"), ("image", "<i4"), *own])

    def _key(self, path: str) -> Key:
        return None if self.journal is None else self.journal.key(path)
