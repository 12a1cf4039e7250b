"""Batches of faces, decoded ahead of the network by threads.

OpenCV decodes outside Python's global lock, so threads keep every core busy without the copies,
the start-up time and the shared memory of worker processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dataset.containers import open_ahead, read_run
from dataset.images import read_image
from dataset.lists import ImageList
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import Stalled, UnreadableImage
from sdd_fiqa.images import FACE_SIZE, Content, decode_image, resize_face

_CHUNK = 16  # images a task: large enough that handing it over costs nothing
_AHEAD = 2  # batches decoded ahead of the one in use
STALL_SECONDS = 300.0  # well above a chunk of reads that are all tried to the last
_STALL_SLICES = 10

_Result = TypeVar("_Result")
Contents = Callable[[Sequence[str]], Iterable[Content | None]]


@dataclass
class Batch:
    """Some records of a list, decoded.

    Attributes:
        rows: (B,) int64, their rows in the list.
        faces: (B, 112, 112, 3) uint8, RGB; zero where a record could not be read.
        sizes: (B, 2) int32, height and width before resizing; zero where not read.
        failures: {position in the batch: reason}.
    """

    rows: npt.NDArray[np.int64]
    faces: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int32]
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(B,) bool."""
        good = np.ones(len(self.rows), bool)
        good[list(self.failures)] = False
        return good


def default_workers() -> int:
    """Decoding threads: one a core of this process's share, at most 16."""
    return min(16, own_cores())


def batches(
    table: ImageList,
    rows: Sequence[int] | npt.NDArray[np.int64],
    batch_size: int,
    num_workers: int | None = None,
    contents: Contents = read_run,
) -> Generator[Batch, None, None]:
    """Decodes the images of some records of a list, batch by batch, in the order given.

    Args:
        table: the list; its paths are read from disk as they are needed.
        rows: which records.
        batch_size: images a batch; the last one may be smaller.
        num_workers: decoding threads; None takes `default_workers()`.
        contents: from some paths to the bytes of each image; None: its path is read on its own.

    Raises:
        Stalled: a read has not come back for STALL_SECONDS.
        UserError: the storage is gone (sdd_fiqa/storage.py).
    """
    order = np.asarray(rows, np.int64)
    workers = default_workers() if num_workers is None else max(1, num_workers)
    waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
    if len(order):
        open_ahead(table.path(int(order[0])))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ended = True  # no thread hangs in a read
    try:
        for start in range(0, len(order), batch_size):
            waiting.append(_begin(pool, table, order[start : start + batch_size], contents))
            if len(waiting) > _AHEAD:
                yield _finish(table, *waiting.popleft())
        while waiting:
            yield _finish(table, *waiting.popleft())
    except Stalled:
        ended = False
        raise
    finally:
        pool.shutdown(wait=ended, cancel_futures=True)


def _begin(
    pool: ThreadPoolExecutor,
    table: ImageList,
    rows: npt.NDArray[np.int64],
    contents: Contents,
) -> tuple[Batch, list[Future[None]]]:
    faces = np.zeros((len(rows), FACE_SIZE, FACE_SIZE, 3), np.uint8)
    batch = Batch(rows, faces, np.zeros((len(rows), 2), np.int32))
    paths = list(table.paths_at(rows))
    futures = [
        pool.submit(_read_chunk, batch, paths, start, contents)
        for start in range(0, len(rows), _CHUNK)
    ]
    return batch, futures


def _finish(table: ImageList, batch: Batch, futures: list[Future[None]]) -> Batch:
    for chunk, future in enumerate(futures):
        result_or_stall(future, table, int(batch.rows[chunk * _CHUNK]), _CHUNK)
    return batch


def result_or_stall(future: Future[_Result], table: ImageList, first: int, images: int) -> _Result:
    """The result of a task that reads `images` records of a table, from `first` on.

    Raises:
        Stalled: it has not come for STALL_SECONDS.
    """
    # In slices: a process that was stopped and goes on has lost one of them, not its patience.
    slices = 0
    while wait([future], STALL_SECONDS / _STALL_SLICES).not_done:
        slices += 1
        if slices == _STALL_SLICES:
            raise Stalled(
                f"{table.path(first)}: reading it, or one of the {images - 1} after it, has not "
                f"come back for {STALL_SECONDS:.0f} s; is the storage there? then run the same "
                "command"
            )
    return future.result()


def _read_chunk(batch: Batch, paths: list[str], start: int, contents: Contents) -> None:
    chunk = paths[start : start + _CHUNK]
    for position, path, content in zip(count(start), chunk, contents(chunk), strict=False):
        try:
            image = read_image(path) if content is None else decode_image(content)
            batch.sizes[position] = image.shape[:2]
            batch.faces[position] = resize_face(image)
        except UnreadableImage as error:
            batch.failures[position] = str(error)
