"""Embeddings on disk, read in blocks: never mapped, never held whole.

The pages of a mapped file count as memory of the process. Plain reads into a block do not, whatever
the size of the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dataset.lists import ImageList
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json
from sdd_fiqa.number import count_of

EMBEDDINGS = "feats_npy/Embedding_Features.npy"

NORMS = "Embedding_Norms.npy"  # next to the embeddings
_BLOCK = 8192  # rows

Rows = npt.NDArray[Any]  # (n, D), of the file's own type
Indices = npt.NDArray[np.int64]


def embeddings_in(path: str | os.PathLike[str]) -> Path:
    """The embeddings in a folder that extract_feats has written to; else the path itself."""
    names = (Path(path, name) for name in (EMBEDDINGS, Path(EMBEDDINGS).name))
    return next(filter(Path.is_file, names), Path(path))


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether it is stored by column, and the type that a .npy file states.

    Raises:
        ValueError: it is none, or a length is not a whole number from 0 on. Others too: a header is
            parsed as Python.
    """
    version = np.lib.format.read_magic(file)
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, by_column, dtype = header(file)
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return shape, by_column, dtype


class EmbeddingsFile:
    """The rows of a .npy file of shape (N, D); threads may read at the same time.

    Attributes:
        path: the file; of a folder, the one that extract_feats writes there.
        shape: (N, D).
        dtype: as stored.
        unreadable: {row: reason} of images that could not be read; their rows are zero. This and
            `note` are what `open_embeddings` finds.
        note: a line about what could not be checked, or empty.

    Raises:
        UserError: missing, no .npy, not two-dimensional, not numbers with a fraction, truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = embeddings_in(path)
        self.unreadable: dict[int, str] = {}
        self.note = ""
        try:
            file = open(path, "rb")  # noqa: SIM115  (open as long as this object)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}); extract the embeddings first"
            ) from error
        self._file = file
        try:
            shape, by_column, self.dtype = read_header(file)
        except Exception as error:  # a damaged header is parsed as Python: it raises many kinds
            raise UserError(f"{path}: is not a .npy file; extract the embeddings again") from error
        if self.dtype.kind != "f" or len(shape) != 2 or 0 in shape:
            raise UserError(
                f"{path}: holds {self.dtype} of shape {shape}; embeddings are one row of floats "
                "for each image"
            )
        self.shape: tuple[int, int] = (int(shape[0]), int(shape[1]))
        if by_column and 1 not in self.shape:
            raise UserError(
                f"{path}: is stored by column; save numpy.ascontiguousarray(embeddings) instead"
            )
        self._row_bytes = self.shape[1] * self.dtype.itemsize
        self._offset = file.tell()
        size = os.fstat(file.fileno()).st_size - self._offset
        if size < self.shape[0] * self._row_bytes:
            raise UserError(
                f"{path}: is truncated: its header says {count_of(self.shape[0], 'row')}, it holds "
                f"{size // self._row_bytes}; extract the embeddings again"
            )

    def read(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop`, (stop - start, D)."""
        rows = np.empty((stop - start, self.shape[1]), self.dtype)
        view = rows.reshape(-1).view(np.uint8).data
        offset = self._offset + start * self._row_bytes
        while len(view):
            count = os.preadv(self._file.fileno(), [view], offset)
            if count == 0:
                raise UserError(f"{self.path}: ends early; another program may be writing it")
            view = view[count:]
            offset += count
        return rows

    def take(self, rows: Indices) -> Rows:
        """Some rows, (len(rows), D), in the order asked for; neighbours are read together."""
        if len(rows) == 0:
            return np.empty((0, self.shape[1]), self.dtype)
        begins = np.flatnonzero(np.diff(rows, prepend=rows[0]) != 1)  # of neighbours
        if len(begins) == 1:
            return self.read(int(rows[0]), int(rows[-1]) + 1)
        counts = np.diff(begins, append=len(rows))
        handle, pread = self._file.fileno(), os.pread
        starts = (rows[begins] * self._row_bytes + self._offset).tolist()
        sizes = (counts * self._row_bytes).tolist()
        # One read a run: bytes joined cost a third of reading into a slice each.
        content = b"".join([pread(handle, *place) for place in zip(sizes, starts, strict=True)])
        if len(content) < len(rows) * self._row_bytes:  # some read came back short
            return np.concatenate([self.read(row, row + 1) for row in rows.tolist()])
        return np.frombuffer(content, self.dtype).reshape(len(rows), self.shape[1])

    def __getitem__(self, rows: slice | Indices) -> Rows:
        """As of an array: `start:stop`, or rows by their numbers."""
        return self.read(rows.start, rows.stop) if isinstance(rows, slice) else self.take(rows)

    def usable_rows(self) -> npt.NDArray[np.bool_]:
        """(N,) False where a row is zero (an unreadable image), not finite or above float32."""
        usable = np.empty(self.shape[0], np.bool_)
        for start in range(0, len(usable), _BLOCK):
            rows = self.read(start, min(start + _BLOCK, len(usable)))
            with np.errstate(over="ignore", invalid="ignore"):  # such a row is not usable
                length = np.linalg.norm(rows.astype(np.float32), axis=1)
            usable[start : start + _BLOCK] = np.isfinite(length) & (length > 0)
        return usable


def open_embeddings(path: Path, table: ImageList) -> EmbeddingsFile:
    """Opens the embeddings of a list: row i belongs to line i.

    Raises:
        UserError: as `EmbeddingsFile`; embeddings of another list, or unfinished, by their shape
            and the .json beside them.
    """
    file = EmbeddingsFile(path)
    path = file.path
    rows, columns = file.shape
    if rows != len(table):
        raise UserError(
            f"{path}: has {count_of(rows, 'row')}, but {table.file} has "
            f"{count_of(len(table), 'line')}; extract the embeddings of this list"
        )
    described = path.with_suffix(".json")
    if not described.exists():
        file.note = (
            f"{path} has no .json beside it: that its rows belong to {table.file}, in this order, "
            "could not be checked"
        )
        return file
    content = read_json(described)
    try:
        sha256, done = content["list"]["sha256"], int(content["rows_done"])
        listed = content.get("unreadable", [])
        file.unreadable = {int(entry["row"]): str(entry["reason"]) for entry in listed}
        outside = any(not 0 <= row < rows for row in file.unreadable)
        if outside or int(content.get("dimension", columns)) != columns:
            raise ValueError("it describes others")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{described}: is not what extract_feats writes beside these embeddings; extract them "
            "again, or remove it if they were made elsewhere"
        ) from error
    if sha256 != table.sha256:
        raise UserError(
            f"{path}: belongs to another list than {table.file} (its sha256 differs); extract "
            "the embeddings of this list"
        )
    if done != rows:
        raise UserError(
            f"{path}: is unfinished, {done} of {rows} rows; run the extraction again, it resumes"
        )
    return file


def read_norms(path: Path, table: ImageList) -> npt.NDArray[np.float64]:
    """The norms before normalisation, (N,), from the file beside the embeddings `path`."""
    norms_path = path.with_name(NORMS)
    if not norms_path.exists():
        raise UserError(f"{norms_path}: is missing; --reference norm reads it from beside --feats")
    try:
        norms = np.lib.format.open_memmap(norms_path, mode="r")
    except Exception as error:  # as in EmbeddingsFile
        raise UserError(f"{norms_path}: is not a whole .npy array ({error})") from error
    if norms.shape != (len(table),) or norms.dtype.kind != "f":
        raise UserError(
            f"{norms_path}: holds {norms.dtype} of shape {norms.shape}; norms are one float for "
            f"each of the {count_of(len(table), 'line')} of {table.file}"
        )
    return norms.astype(np.float64)
