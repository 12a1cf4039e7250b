"""The journal of a scoring run: a killed run loses only the batches that were being scored.

Each block holds the rows of some images of the list that follow each other: their scores, and
where their faces are. A block is used again if all its images are still in the list, in the same
order, with the same size and time of change. Else all of them are scored anew. The last image of a
block may be a video of which it holds some frames; the next block goes on after them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.containers import split_member
from dataset.lists import ImageList
from sdd_fiqa import __version__
from sdd_fiqa.errors import UserError

Key = list[int] | None  # size and time of change of one file or more; None: a file is missing

BEGINNING = -1.0  # what comes before the first frame of a video
_START = b"sdd-fiqa journal of scores 1"
_SYNC_SECONDS = 10.0  # a power cut loses at most so much
_DECODERS = ("opencv-python-headless", "opencv-python", "simplejpeg", "pillow", "pillow-heif")


@dataclass
class Block:
    """The rows of some images.

    Attributes:
        images: paths and keys.
        reasons: {row in the block: why it has no score}.
        like_photos: see `dataset.faces.Faces`.
        after: the time of the frame before the first row, if that is one of the same video.
        rows: `score` (float32; NaN: none), `image` (its place in `images`), and other fields; of
            frames also `time`, in seconds.
    """

    images: list[tuple[str, Key]]
    reasons: dict[int, str]
    like_photos: int
    after: float
    rows: npt.NDArray[Any]


class Journal:
    """The journal of one table of scores; an unfinished run's is continued.

    The file is a first line, then a line a block: the CRC-32 of its JSON, in hexadecimal, and the
    JSON. The first block is `about`. Lines that are torn or damaged are left out.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        """Opens the journal, or begins it.

        Args:
            file: the journal.
            about: what must be equal for a block to be used again, by name. It is one level of
                JSON. The versions of what decodes the images are added.

        Raises:
            UserError: the file is something else.
        """
        self._file = file
        self._places: dict[tuple[str, str], list[int]] = {}  # of lines, by section and first image
        self._container_key = cache(_container_key)
        self._handle: IO[bytes] | None = None
        self._synced = time.monotonic()
        about = {**about, "the decoder's version": decoder_version()}
        try:
            fresh = not self._continues(about)
            if fresh:
                file.unlink(missing_ok=True)
            self._handle = open(file, "a+b")  # noqa: SIM115  (open as long as this object)
            if fresh:
                self._handle.write(_START)
                self._append(about)
        except OSError as error:
            self._give_up(error)

    def key(self, path: str) -> Key:
        """The key of an image; its path, size and time of change tell it from others.

        For the member of a container, that of the container and its index, at first sight.
        """
        parts = split_member(path)
        return state_of(path) if parts is None else self._container_key(parts[0])

    def runs(
        self, section: str, table: ImageList, rows: npt.NDArray[np.int64], form: np.dtype[Any]
    ) -> Iterator[tuple[int, int, Block | None]]:
        """Divides some records of a list into those of a section's blocks and those to be scored.

        The rows of a block must have a `form`: score, image, and what the section keeps.

        Yields:
            start, stop: a part of `rows`, in order; and its block, or None. Where a block ends with
            a frame, the next part begins with the same video.
        """
        start = at = 0
        after = BEGINNING
        while at < len(rows) and self._places:
            block = self._block_at(section, table, rows[at:], form, after)
            before, after = after, BEGINNING
            if block is None:
                at += 1
                continue
            if start < at:
                yield start, at, None
            start, at = at, at + len(block.images)
            yield start, at, block
            last = block.rows["time"][-1] if "time" in (form.names or ()) else np.nan
            if last > (before if len(block.images) == 1 else BEGINNING):
                at, after = at - 1, float(last)
            start = at
        if start < len(rows):
            yield start, len(rows), None

    def write(self, section: str, block: Block) -> None:
        """Adds a block. Where it cannot be written, a note says so and no more are."""
        if self._handle is None:
            return
        content: dict[str, Any] = {"section": section, **vars(block)}
        rows = content.pop("rows")
        content["arrays"] = {
            name: base64.b64encode(rows[name].tobytes()).decode() for name in rows.dtype.names
        }
        try:
            self._append(content)
        except OSError as error:
            self._give_up(error)

    def close(self, done: bool) -> None:
        """Closes the file; removes it if the work is done."""
        if self._handle is not None:
            with suppress(OSError):
                self._handle.close()
                if done:
                    self._file.unlink(missing_ok=True)
            self._handle = None

    def _continues(self, about: Mapping[str, Any]) -> bool:
        """Finds the blocks of an unfinished run of the same kind; says whether there is one."""
        if not self._file.exists():
            return False
        with self._file.open("rb") as file:
            first = file.readline(100).rstrip(b"\n")
            if not _START.startswith(first):
                raise UserError(
                    f"{self._file}: is no journal of scores; name another --out, or move it away"
                )
            head = _read(file.readline())
            if not head:
                note(f"{self._file}: is damaged; all is scored anew")
                return False
            other = [name for name, value in about.items() if head.get(name) != value]
            if other:
                note(f"{self._file}: is of a run with another {' and '.join(other)}; starts anew")
                return False
            for line in file:
                with suppress(ValueError, TypeError, LookupError):
                    content = _read(line)
                    name = str(content["section"]), str(content["images"][0][0])
                    self._places.setdefault(name, []).append(file.tell() - len(line))
        if self._places:
            note(f"{self._file}: what an unfinished run has scored is not scored again")
        return True

    def _block_at(
        self,
        section: str,
        table: ImageList,
        rows: npt.NDArray[np.int64],
        form: np.dtype[Any],
        after: float,
    ) -> Block | None:
        """The block that begins with the first of some records of the list, after a frame of it."""
        places = self._places.get((section, table.path(int(rows[0]))), ())
        for place in reversed(places):  # the last one written is the newest
            assert self._handle is not None
            self._handle.seek(place)
            block = _parse(_read(self._handle.readline()), form)
            if block is None or block.after != after or len(block.images) > len(rows):
                continue
            listed = table.paths_at(rows[: len(block.images)])
            if block.images == [(path, self.key(path)) for path in listed]:
                return block
        return None

    def _append(self, content: Mapping[str, Any]) -> None:
        """Adds a line; it begins with the line break, because the one before may be torn."""
        assert self._handle is not None
        text = json.dumps(content).encode()
        self._handle.write(b"\n%08x %s" % (zlib.crc32(text), text))
        self._handle.flush()
        if time.monotonic() - self._synced >= _SYNC_SECONDS:
            os.fsync(self._handle.fileno())
            self._synced = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        note(f"{self._file}: cannot be written ({error.strerror}); this run cannot be resumed")
        self._places.clear()
        self.close(done=False)


def decoder_version() -> str:
    """The versions of what makes pixels and crops of an image's bytes, in one line."""
    versions = [f"sdd-fiqa {__version__}"]
    for name in _DECODERS:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return ", ".join(versions)


def state_of(path: str) -> Key:
    """Size and time of change of a file; None where it is gone."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _container_key(container: str) -> Key:
    whole = state_of(container)
    index = state_of(os.path.splitext(container)[0] + ".idx") or []
    return None if whole is None else whole + index


def _read(line: bytes) -> dict[str, Any]:
    """The content of a line; empty if it is not as it was written."""
    match = re.fullmatch(rb"([0-9a-f]{8}) (\{.*\})\n?", line)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        return {}
    content: dict[str, Any] = json.loads(match[2])
    return content


def _parse(content: dict[str, Any], form: np.dtype[Any]) -> Block | None:
    """The block of a line; None if what it says does not fit together."""
    try:
        images = [(str(path), key) for path, key in content["images"]]
        reasons = {int(row): str(why) for row, why in content["reasons"].items()}
        decoded = {name: base64.b64decode(content["arrays"][name]) for name in form.names or ()}
        rows = np.empty(len(decoded["score"]) // form["score"].itemsize, form)
        for name, data in decoded.items():
            rows[name] = np.frombuffer(data, form[name])
        like_photos, after = int(content["like_photos"]), float(content["after"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    image = rows["image"]
    fits = (
        np.array_equal(np.unique(image), np.arange(len(images)))
        and bool((np.diff(image) >= 0).all())
        and (len(decoded) > 2 or len(rows) == len(images))  # listed faces have one row an image
        and set(reasons) == set(np.flatnonzero(~np.isfinite(rows["score"])).tolist())
    )
    return Block(images, reasons, like_photos, after, rows) if fits else None
