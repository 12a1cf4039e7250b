"""The faces to score that are listed, aligned already; dataset/photo_faces.py finds others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dataset.alignment_check import like_photos
from dataset.containers import read_run
from dataset.images import read_image
from dataset.journal import BEGINNING, Block, Forms, Journal
from dataset.lists import ImageList
from dataset.loader import Batch, batches
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import FACE_SIZE, Content, Image

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
        forms: what the journal keeps of each row, beside its score: columns of `kept`.
    """

    section = ""
    forms: ClassVar[Forms] = {}
    kept: npt.NDArray[Any] = np.empty(0)
    _done = 0

    def __init__(self, table: ImageList, batch_size: int, num_workers: int | None = None) -> None:
        """Nothing is read yet; arguments as for `dataset.loader.batches`."""
        self._table = table
        self._batch_size, self._workers = batch_size, num_workers
        self.like_photos = 0
        self.unread: Mapping[str, str] = {}
        self.journal: Journal | None = None
        self._unkept: dict[int, tuple[Batch, Values]] = {}  # by first row

    def __len__(self) -> int:
        """Rows so far."""
        return len(self._table)

    def __iter__(self) -> Iterator[Batch]:
        contents = self._contents if self.unread else read_run
        key = None if self.journal is None else self.journal.key
        rows = np.arange(len(self._table))
        for start, stop, block in self.runs(rows):
            some = rows[start:stop]
            if block is not None:
                self.like_photos += block.like_photos
                found: Iterable[Batch] = [scored_before(some, block)]
            else:
                found = batches(self._table, some, self._batch_size, self._workers, contents, key)
            for batch in found:
                self._done += len(batch.rows)
                self.like_photos += int(like_photos(batch.sizes).sum())
                yield batch

    def _contents(self, paths: Sequence[str]) -> Iterator[Content | UnreadableImage | None]:
        for path, content in zip(paths, read_run(paths), strict=False):
            why = self.unread.get(path)
            yield content if why is None else UnreadableImage(why)

    def searched(self) -> int:
        """How many listed images the batches so far are of."""
        return self._done

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
        keys = [key for part, _ in parts for key in part.keys]
        failures = [part.failures.get(i) for part, _ in parts for i in range(len(part.rows))]
        if any(key is None and why is None for key, why in zip(keys, failures, strict=True)):
            return  # a file that came while it was read
        photos = self.listed(rows)
        image = np.cumsum(np.diff(photos, prepend=photos[0]) != 0)
        firsts = np.unique(image, return_index=True)[1]
        paths = self._table.paths_at(photos[firsts])
        arrays = {"score": np.concatenate([some for _, some in parts]).astype("<f4")}
        arrays |= {"image": image.astype("<i4")}
        for name, (kind, _) in self.forms.items():
            arrays[name] = self.kept[name][rows].astype(kind)
        block = Block(
            images=[(path, keys[i]) for path, i in zip(paths, firsts.tolist(), strict=True)],
            reasons={i: why for i, why in enumerate(failures) if why is not None},
            like_photos=sum(int(like_photos(part.sizes).sum()) for part, _ in parts),
            after=self.frame_before(int(rows[0])),
            arrays=arrays,
        )
        self.journal.write(self.section, block)


def scored_before(rows: Rows, block: Block) -> Batch:
    """The batch of a block."""
    none = np.zeros((0, FACE_SIZE, FACE_SIZE, 3), np.uint8)
    sizes = np.zeros((len(rows), 2), np.int32)
    scores = block.arrays["score"]
    return Batch(rows, none, sizes, dict(block.reasons), scores=scores[np.isfinite(scores)])
