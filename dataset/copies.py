"""What the commands that write copies of a folder's images share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, note
from dataset.find import walk_images
from dataset.left_out import Skipped
from dataset.loader import default_workers
from sdd_fiqa.errors import UnreadableImage, UserError

_AHEAD = 64  # copies under way at once
_SHOWN = 5

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def root_of(data_root: str) -> str:
    """The folder that --data-root names, without a `/` at its end.

    Raises:
        UserError: it is no folder.
    """
    if not Path(data_root).is_dir():
        raise UserError(f"--data-root {data_root}: is no folder; name the folder of images")
    return data_root.rstrip("/") or "/"


def images_below(root: str, out_dir: Path, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """The images of a folder, and their paths below it, without those of the out folder.

    Raises:
        UserError: there are none.
    """
    inside, found = out_dir.resolve(), False
    for path in walk_images(root, skipped):
        if inside not in Path(path).resolve().parents:  # the out folder may be below the root
            found = True
            yield path, path[len(root) + 1 :]
    if not found:
        same = os.path.realpath(root) == os.path.realpath(out_dir)
        why = "is --out-dir, of which nothing is read" if same else "has no images"
        raise UserError(f"{root}: {'; '.join([why, *skipped.lines()])}")


def in_order(
    tasks: Iterable[tuple[_Item, Callable[[], _Result | UnreadableImage]]],
    doing: str,
    num_workers: int | None = None,
) -> Iterator[tuple[_Item, _Result | UnreadableImage]]:
    """Runs tasks on threads, and yields what each is of, with its result or UnreadableImage."""

    def outcome(task: Callable[[], _Result | UnreadableImage]) -> _Result | UnreadableImage:
        try:
            return task()
        except UnreadableImage as error:
            return error

    waiting: deque[tuple[_Item, Future[_Result | UnreadableImage]]] = deque()
    pool = ThreadPoolExecutor(default_workers() if num_workers is None else num_workers)
    try:
        with tqdm(desc=doing, unit=" images") as bar:
            for item, task in tasks:
                waiting.append((item, pool.submit(outcome, task)))
                if len(waiting) >= _AHEAD:
                    done, result = waiting.popleft()
                    yield done, result.result()
                    bar.update()
            for done, result in waiting:
                yield done, result.result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun will not


def report(failures: Sequence[tuple[str, str]], skipped: Skipped, named: str = "") -> int:
    """Notes the (path, reason) of images without a copy, and what was skipped; the exit code."""
    for path, reason in failures[:_SHOWN]:
        note(f"skipped: {path}: {reason}")
    if failures:
        note(f"skipped: {len(failures)} images in all{named}")
    for line in skipped.lines():
        note(line)
    return EXIT_SKIPPED if failures or skipped.problems else EXIT_DONE
