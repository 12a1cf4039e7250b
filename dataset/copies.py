"""What the commands that write copies of a folder's images share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, note
from dataset.find import walk_images
from dataset.left_out import Skipped
from dataset.loader import read_ahead
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.number import count_of

_AHEAD = 64  # copies under way at once
_SHOWN = 5

_Item = TypeVar("_Item", bound=tuple[Any, ...])
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
    failures: list[tuple[str, str]],
    num_workers: int | None = None,
) -> Iterator[tuple[_Item, _Result]]:
    """Runs tasks on threads, and yields what each is of, with its result.

    What a task is of begins with the path of its image. That goes to `failures`, with the reason,
    where the task raises or returns UnreadableImage.
    """

    def outcome(
        item: _Item, task: Callable[[], _Result | UnreadableImage]
    ) -> tuple[_Item, _Result | UnreadableImage]:
        try:
            return item, task()
        except UnreadableImage as error:
            return item, error

    begun = ((item[0], partial(outcome, item, task)) for item, task in tasks)
    with tqdm(desc=doing, unit=" images") as bar:
        for item, result in read_ahead(begun, num_workers, _AHEAD):
            if isinstance(result, UnreadableImage):
                failures.append((item[0], str(result)))
            else:
                yield item, result
            bar.update()


def report(failures: Sequence[tuple[str, str]], skipped: Skipped, named: str = "") -> int:
    """Notes the (path, reason) of images without a copy, and what was skipped; the exit code."""
    for path, reason in failures[:_SHOWN]:
        note(f"skipped: {path}: {reason}")
    if failures:
        note(f"skipped: {count_of(len(failures), 'image')} in all{named}")
    for line in skipped.lines():
        note(line)
    return EXIT_SKIPPED if failures or skipped.problems else EXIT_DONE
