"""Batches of faces, decoded ahead of the network by threads.

OpenCV decodes outside Python's global lock, so threads keep every core busy without the copies,
the start-up time and the shared memory of worker processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dataset.alignment_check import like_photo
from dataset.containers import open_ahead, read_run
from dataset.images import read_image
from dataset.lists import ImageList
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import Stalled, UnreadableImage
from sdd_fiqa.images import FACE_SIZE, decode_image, resize_face

_CHUNK = 16  # images a task: large enough that handing it over costs nothing
_AHEAD = 2  # batches decoded ahead of the one in use
STALL_SECONDS = 300.0  # well above a chunk of reads that are all tried to the last
_STALL_SLICES = 10

_Result = TypeVar("_Result")


@dataclass
class Batch:
    """Some records of a list, decoded.

    Attributes:
        rows: (B,) int64, their rows in the list.
        faces: (B, 112, 112, 3) uint8, RGB; zero where a record could not be read.
        failures: {position in the batch: reason}.
        like_photos: positions of listed faces that are too large or too oblong for a crop.
        keys: of each record's image, before it was read; empty unless a `Journal` is kept.
        last: whether the next batch begins with another image.
        scores: of a journal; the faces are left out. None: the records are to be scored.
    """

    rows: npt.NDArray[np.int64]
    faces: npt.NDArray[np.uint8]
    failures: dict[int, str] = field(default_factory=dict)
    like_photos: list[int] = field(default_factory=list)
    keys: list[list[int] | None] = field(default_factory=list)
    last: bool = True
    scores: npt.NDArray[np.float32] | None = None

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
    unread: Mapping[str, str] = {},
    key: Callable[[str], list[int] | None] | None = None,
) -> Generator[Batch, None, None]:
    """Decodes the images of some records of a list, batch by batch, in the order given.

    Args:
        table: the list; its paths are read from disk as they are needed.
        rows: which records.
        batch_size: images a batch; the last one may be smaller.
        num_workers: decoding threads; None takes `default_workers()`.
        unread: {path: why} of images that are not read.
        key: gives the `keys` of a batch, from paths.

    Raises:
        Stalled: a read has not come back for STALL_SECONDS.
        UserError: the storage is gone (sdd_fiqa/storage.py).
    """
    order = np.asarray(rows, np.int64)
    chunks = -(-batch_size // _CHUNK)

    def read_chunk(batch: Batch, paths: list[str], start: int) -> Batch | None:
        """Decodes some images of a batch; returns the batch with its last images."""
        chunk = paths[start : start + _CHUNK]
        if key is not None:
            batch.keys[start : start + _CHUNK] = map(key, chunk)
        for position, path, content in zip(count(start), chunk, read_run(chunk), strict=False):
            try:
                if path in unread:
                    raise UnreadableImage(unread[path])
                image = read_image(path) if content is None else decode_image(content)
                if like_photo(image):
                    batch.like_photos.append(position)
                batch.faces[position] = resize_face(image)
            except UnreadableImage as error:
                batch.failures[position] = str(error)
        return batch if start + _CHUNK >= len(paths) else None

    def tasks() -> Iterator[tuple[str, Callable[[], Batch | None]]]:
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            batch = Batch(some, np.zeros((len(some), FACE_SIZE, FACE_SIZE, 3), np.uint8))
            if key is not None:
                batch.keys = [None] * len(some)
            paths = list(table.paths_at(some))
            for at in range(0, len(some), _CHUNK):
                yield paths[at], partial(read_chunk, batch, paths, at)

    for batch in read_ahead(tasks(), num_workers, _AHEAD * chunks):
        if batch is not None:
            yield batch


def read_ahead(
    tasks: Iterable[tuple[str, Callable[[], _Result]]],
    num_workers: int | None,
    ahead: int | None = None,
) -> Generator[_Result, None, None]:
    """Runs tasks that read images on threads; yields their results in order.

    Args:
        tasks: the path of the first image that each reads, and what reads it.
        num_workers: threads; None takes `default_workers()`.
        ahead: tasks begun before the result of the first is used; None takes 4 a thread.

    Raises:
        Stalled: a task has not ended for STALL_SECONDS.
        UserError: the storage is gone (sdd_fiqa/storage.py).
    """
    workers = default_workers() if num_workers is None else max(1, num_workers)
    ahead = 4 * workers if ahead is None else ahead
    waiting: deque[tuple[str, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    ended = True  # no thread hangs in a read
    try:
        for path, task in tasks:
            if not waiting:
                open_ahead(path)
            waiting.append((path, pool.submit(task)))
            if len(waiting) > ahead:
                yield _result_or_stall(*waiting.popleft())
        while waiting:
            yield _result_or_stall(*waiting.popleft())
    except Stalled:
        ended = False
        raise
    finally:
        pool.shutdown(wait=ended, cancel_futures=True)


def one_behind(begun: Iterable[_Result]) -> Iterator[_Result]:
    """Yields each item after the next one was made, so that a device always has work.

    Each item holds work that has begun. While its result is fetched, the device does the next.
    Ctrl-C in between yields the last item too.
    """
    last: list[_Result] = []
    try:
        for item in begun:
            last.append(item)
            if len(last) > 1:
                yield last.pop(0)
    except KeyboardInterrupt:
        yield from last
        raise
    yield from last


def _result_or_stall(path: str, future: Future[_Result]) -> _Result:
    # In slices: a process that was suspended must not stall when it continues.
    slices = 0
    while wait([future], STALL_SECONDS / _STALL_SLICES).not_done:
        slices += 1
        if slices == _STALL_SLICES:
            raise Stalled(
                f"{path}: reading it, or an image soon after it, has not come back for "
                f"{STALL_SECONDS:.0f} s; is the storage there? then run the same command"
            )
    return future.result()
