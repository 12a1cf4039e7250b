"""The faces to score when every listed image is one face; `dataset.faces` is the other case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dataset.images import read_image
from dataset.lists import ImageList
from dataset.loader import Batch, batches
from sdd_fiqa.images import FACE_SIZE, Image


class Faces(Protocol):
    """Faces to score, row by row: what eval.py needs to know of them."""

    def __len__(self) -> int:
        """Rows so far."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches of crops; their `rows` are those here, in order."""

    def searched(self) -> int:
        """How many listed images are done with."""

    def path(self, row: int) -> str:
        """What the row is called."""

    def paths(self) -> Iterator[str]:
        """`path` of every row."""

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """`path` of some rows, in the order asked for."""

    def photo_path(self, row: int) -> str:
        """The image file of a row."""

    def crop(self, row: int) -> Image:
        """The face of a row again; raises UnreadableImage."""

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """Columns of scores.csv that only these faces have."""


class ListedFaces:
    """One face an image, aligned already: the rows are those of the list."""

    def __init__(
        self,
        table: ImageList,
        batch_size: int,
        num_workers: int | None = None,
    ) -> None:
        """Nothing is read yet; arguments as for `dataset.loader.batches`."""
        self._table = table
        self._batch_size, self._workers = batch_size, num_workers
        self._done = 0
        self.like_photos = 0  # images so far that cannot be aligned crops

    def __len__(self) -> int:
        """All rows, from the start on."""
        return len(self._table)

    def __iter__(self) -> Iterator[Batch]:
        """Decodes the images, in order."""
        rows = np.arange(len(self._table))
        for batch in batches(self._table, rows, self._batch_size, self._workers):
            self._done += len(batch.rows)
            self.like_photos += int(_like_photos(batch.sizes).sum())
            yield batch

    def searched(self) -> int:
        """How many images are decoded."""
        return self._done

    def path(self, row: int) -> str:
        """The image's path."""
        return self._table.path(row)

    photo_path = path

    def paths(self) -> Iterator[str]:
        """`path` of every row."""
        return self._table.paths()

    def paths_at(self, rows: Iterable[int]) -> Iterator[str]:
        """`path` of some rows, in the order asked for."""
        return self._table.paths_at(rows)

    def crop(self, row: int) -> Image:
        """The image again; raises UnreadableImage."""
        return read_image(self._table.path(row))

    def columns(self) -> list[tuple[str, Sequence[str]]]:
        """None."""
        return []


def _like_photos(sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """(B, 2) heights and widths -> (B,) whether it is too large or too oblong for a face crop."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    photos: npt.NDArray[np.bool_] = (longer > 2 * FACE_SIZE) | (longer > 1.1 * shorter)
    return photos
