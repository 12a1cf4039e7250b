"""Writes the embeddings of a list; a killed run loses only the batches that were being written.

Rows go straight to their place in `Embedding_Features.npy.part`. After each batch a journal names
the rows that are written. When all are, the parts get their final names, and the .json beside them
is written last.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.embeddings import NORMS, read_header
from dataset.lists import ImageList
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, write_json

FEATURES = "Embedding_Features.npy"
FORMAT = 1


class FeatureWriter:
    """The embeddings of one list, filled in by any number of processes, in any order.

    Every process opens its own writer on the same folder; `rank` names its journal. An unfinished
    run of the same work (`about` equal) is resumed; other work is replaced.
    """

    def __init__(
        self, folder: Path, rows: int, dimension: int, about: dict[str, Any], rank: int = 0
    ) -> None:
        """Describes the work, (rows, dimension) embeddings; touches no file.

        `about`: list, weights and preprocessing: what makes two runs the same work.
        """
        self.folder, self.rows, self.dimension, self.about = folder, rows, dimension, about
        self.features = folder / FEATURES
        self._arrays = [
            _Array(folder / FEATURES, (rows, dimension), "<f2"),
            _Array(folder / NORMS, (rows,), "<f4"),
        ]
        self._described = self.features.with_suffix(".json")
        self._plan_file = folder / "Embedding_Features.plan.json"
        self._journal = folder / f"{FEATURES}.{rank}.journal"

    def finished(self) -> list[dict[str, Any]] | None:
        """What `finish` returned for the same work; None where its files are not all there."""
        done = _described(self._described)
        listed = done.get("unreadable")
        if (
            all(array.is_at(array.path) for array in self._arrays)
            and self._is_this_work(done)
            and isinstance(listed, list)
            and all(
                isinstance(one, dict) and {"row", "path", "reason"} <= set(one) for one in listed
            )
        ):
            return listed
        return None

    def prepare(self) -> None:
        """Makes the part files, or clears away those of other work; one process does this."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._can_resume():
                self._drop_unwritten()
                return
            self._clear()
            for array in self._arrays:
                # A sparse file of the right size: rows are zero until written.
                np.lib.format.open_memmap(array.part, "w+", np.dtype(array.dtype), array.shape)
            write_json(self._plan_file, self._plan())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def _can_resume(self) -> bool:
        """Whether the parts of the same work exist; a kill in `finish` may have renamed some."""
        if not self._is_this_work(_described(self._plan_file)):
            return False
        for array in self._arrays:
            if not (self._described.exists() or array.part.exists()) and array.path.exists():
                os.replace(array.path, array.part)
            if not array.is_at(array.part):
                if array.part.exists():
                    note(f"{array.part}: is damaged; the embeddings are extracted from the start")
                return False
        return True

    def _drop_unwritten(self) -> None:
        """Removes from the journals what the parts do not hold: a power cut may lose rows alone."""
        entries, kept = self._entries(), []
        for entry in entries:
            rows = slice(entry["start"], entry["stop"])
            # Mapped for these rows alone: pages of a mapping count as memory of the process.
            blocks = [np.load(one.part, mmap_mode="r")[rows].tobytes() for one in self._arrays]
            if zlib.crc32(b"".join(blocks)) == entry["crc32"]:
                kept.append(entry)
        if len(kept) == len(entries):
            return
        note(f"{self.folder}: {len(entries) - len(kept)} batches were not written; done again")
        first, *others = self._journals()
        with replacing(first) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)
        for journal in others:
            journal.unlink(missing_ok=True)

    def missing_batches(self, size: int) -> npt.NDArray[np.int64]:
        """Numbers of the batches, rows [i * size, (i + 1) * size), that are not all written.

        The batches are the same whatever the number of processes and wherever a run was killed,
        so a face meets the same neighbours in its batch and gets the same embedding to the bit.
        """
        done = np.zeros(self.rows, bool)
        for entry in self._entries():
            done[entry["start"] : entry["stop"]] = True
        whole = np.logical_and.reduceat(done, np.arange(0, self.rows, size))
        return np.flatnonzero(~whole).astype(np.int64)

    def write(
        self, start: int, embeddings: npt.NDArray[np.float32], failures: dict[int, str]
    ) -> None:
        """Writes rows `start` onwards.

        Args:
            start: row of the first embedding.
            embeddings: (B, D) float32, not normalised; rows named in `failures` become zero.
            failures: {row in the batch: reason}.

        Raises:
            UserError: the disk is full, or failed.
        """
        unit, norms = to_unit_length(embeddings, failures)
        blocks = [unit.astype("<f2").tobytes(), norms.astype("<f4").tobytes()]
        entry = {
            "start": start,
            "stop": start + len(embeddings),
            "unreadable": [[start + row, reason] for row, reason in sorted(failures.items())],
            "crc32": zlib.crc32(b"".join(blocks)),
        }
        try:
            for array, block in zip(self._arrays, blocks, strict=True):
                with open(array.part, "r+b") as file:
                    file.seek(start * (len(block) // len(embeddings)) - array.size, os.SEEK_END)
                    file.write(block)
            with open(self._journal, "a", encoding="utf-8") as journal:
                # Begins a new line, in case a kill cut the last one.
                journal.write("\n" + json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); make room and run the same "
                "command: it resumes"
            ) from error

    def finish(self, table: ImageList) -> list[dict[str, Any]]:
        """Gives the parts their final names and writes the .json; one process does this.

        Returns:
            The rows without an embedding: row, path (from the list), reason.

        Raises:
            UserError: no image at all could be read, or some rows were not written; nothing is put
                in place.
        """
        if len(self.missing_batches(self.rows)):
            raise UserError(
                f"{self.folder}: some rows were written by no process (do all see this folder?); "
                "run the same command again: it resumes"
            )
        failures = {row: reason for entry in self._entries() for row, reason in entry["unreadable"]}
        norms = np.load(self._arrays[1].part, mmap_mode="r")
        # A row done twice, with its image fixed in between, has an embedding after all.
        rows = [row for row in sorted(failures) if norms[row] == 0]
        unreadable = [
            {"row": row, "path": path, "reason": failures[row]}
            for row, path in zip(rows, table.paths_at(rows), strict=True)
        ]
        if len(unreadable) == self.rows:
            self._clear()
            raise UserError(
                f"{table.file}: none of its images could be read (the first: "
                f"{unreadable[0]['path']}: {unreadable[0]['reason']}); paths are read relative to "
                "the current folder"
            )
        # A kill in here must not leave a .json beside rows that it does not describe.
        for old in (self._described, *(array.path for array in self._arrays)):
            old.unlink(missing_ok=True)
        for array in self._arrays:
            os.replace(array.part, array.path)
        plan = {**self._plan(), "rows_done": self.rows, "unreadable": unreadable}
        write_json(self._described, plan)
        self._clear()
        return unreadable

    def _plan(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.about, "dimension": self.dimension}

    def _is_this_work(self, described: dict[str, Any]) -> bool:
        """Whether a .json describes this work; how the list's path was typed does not matter."""
        works = [{"rows_done": self.rows, **work} for work in (self._plan(), described)]
        for work in works:
            work.pop("unreadable", None)
            if isinstance(listed := work.get("list"), dict):
                work["list"] = {key: value for key, value in listed.items() if key != "path"}
        return works[0] == works[1]

    def _entries(self) -> list[dict[str, Any]]:
        entries = []
        for journal in self._journals():
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    start, stop = int(entry["start"]), int(entry["stop"])
                    rows = [(int(row), str(reason)) for row, reason in entry["unreadable"]]
                    crc32 = int(entry["crc32"])
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    continue  # torn by a kill or an edit: its rows are done again
                if 0 <= start <= stop <= self.rows and all(start <= row < stop for row, _ in rows):
                    entry = {"start": start, "stop": stop, "unreadable": rows, "crc32": crc32}
                    entries.append(entry)
        return entries

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob(f"{FEATURES}.*.journal"))

    def _clear(self) -> None:
        for path in [self._plan_file, *self._journals(), *(array.part for array in self._arrays)]:
            path.unlink(missing_ok=True)


def to_unit_length(
    embeddings: npt.NDArray[np.float32], failures: dict[int, str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(B, D) embeddings scaled to length 1, and (B,) their norms; both 0 for rows in `failures`.

    Rows without a direction are added to `failures`, {row: reason}.
    """
    with np.errstate(over="ignore"):  # to infinity, which is no length
        norms = np.linalg.norm(embeddings, axis=1).astype(np.float32)
    for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist():
        failures.setdefault(row, "its embedding is zero or not finite")
    norms[list(failures)] = 0
    unit = np.asarray(embeddings / np.where(norms > 0, norms, 1)[:, None], np.float32)
    unit[list(failures)] = 0
    return unit, norms


class _Array(NamedTuple):
    """One of the arrays that are written, and the form that it has."""

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def is_at(self, path: Path) -> bool:
        """Whether a file is a whole .npy of this form."""
        try:
            with open(path, "rb") as file:
                form = read_header(file)
                whole = path.stat().st_size == file.tell() + self.size
        except Exception:  # a damaged header is parsed as Python: it raises many kinds
            return False
        return whole and form == (self.shape, False, np.dtype(self.dtype))


def _described(path: Path) -> dict[str, Any]:
    """What a .json says; empty where it is missing, damaged or not ours: the work is done again."""
    with suppress(UserError):
        if isinstance(content := read_json(path), dict):
            return content
    return {}
