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
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.embeddings import EmbeddingsFile, read_header
from dataset.lists import ImageList
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, write_json

FEATURES = "Embedding_Features.npy"
NORMS = "Embedding_Norms.npy"
FORMAT = 1


class FeatureWriter:
    """The embeddings of one list, filled in by any number of processes, in any order.

    Every process opens its own writer on the same folder; `rank` names its journal. An unfinished
    run of the same work (`about` equal) is resumed; other work is replaced.
    """

    def __init__(self, folder: Path, rows: int, dimension: int, about: dict[str, Any]) -> None:
        """Describes the work; touches no file.

        Args:
            folder: annotations/feats_npy.
            rows: N, records of the list.
            dimension: D of the embeddings.
            about: list, weights and preprocessing: what makes two runs the same work.
        """
        self.folder, self.rows, self.dimension, self.about = folder, rows, dimension, about
        self.features, self.norms = folder / FEATURES, folder / NORMS
        self._parts = [_part(self.features), _part(self.norms)]
        self._plan_file = folder / "Embedding_Features.plan.json"
        self._files: list[tuple[int, int]] = []  # descriptor, bytes before the first row
        self._journal: TextIO | None = None

    def is_done(self) -> bool:
        """Whether a finished file of the same work exists."""
        beside = self.features.with_suffix(".json")
        if not (beside.exists() and self.features.exists() and self.norms.exists()):
            return False
        try:
            done = read_json(beside)
        except UserError:  # not ours, or damaged: the work is done again
            return False
        try:
            with closing(EmbeddingsFile(self.features)) as file:
                whole = file.shape == (self.rows, self.dimension)
        except UserError:  # cut off, or no longer embeddings
            return False
        whole = whole and _has_form(self.norms, (self.rows,), "<f4")
        return whole and self._is_this_work(done) and _are_failures(done.get("unreadable"))

    def unreadable(self) -> list[dict[str, Any]]:
        """Of a finished file: the rows without an embedding, with path and reason."""
        listed: list[dict[str, Any]] = read_json(self.features.with_suffix(".json"))["unreadable"]
        return listed

    def prepare(self) -> None:
        """Makes the part files, or clears away those of other work; one process does this."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._can_resume():
                self._drop_unwritten()
                return
            self._clear()
            for part, (shape, dtype) in zip(self._parts, self._forms(), strict=True):
                # A sparse file of the right size: rows are zero until written.
                np.lib.format.open_memmap(part, mode="w+", dtype=np.dtype(dtype), shape=shape)
            write_json(self._plan_file, self._plan())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def _can_resume(self) -> bool:
        """Whether the parts of the same work exist; a kill in `finish` may have renamed some."""
        try:
            if not self._plan_file.exists() or not self._is_this_work(read_json(self._plan_file)):
                return False
        except UserError:
            return False
        if not self.features.with_suffix(".json").exists():
            for part, final in zip(self._parts, (self.features, self.norms), strict=True):
                if not part.exists() and final.exists():
                    os.replace(final, part)
        for part, (shape, dtype) in zip(self._parts, self._forms(), strict=True):
            if not part.exists():
                return False
            if not _has_form(part, shape, dtype):
                note(f"{part}: is damaged; the embeddings are extracted from the first image on")
                return False
        return True

    def _drop_unwritten(self) -> None:
        """Removes from the journals what the parts do not hold: a power cut may lose rows alone."""
        entries = self._entries()
        files = [os.open(part, os.O_RDONLY) for part in self._parts]
        try:
            sizes = [os.fstat(file).st_size for file in files]
            rows = [self.dimension * 2, 4]
            begins = [size - self.rows * row for size, row in zip(sizes, rows, strict=True)]
            kept = []
            for entry in entries:
                start, count = entry["start"], entry["stop"] - entry["start"]
                blocks = [
                    os.pread(file, count * row, begin + start * row)
                    for file, row, begin in zip(files, rows, begins, strict=True)
                ]
                if _checksum(blocks) == entry["crc32"]:
                    kept.append(entry)
        finally:
            for descriptor in files:
                os.close(descriptor)
        if len(kept) == len(entries):
            return
        note(f"{self.folder}: {len(entries) - len(kept)} batches were not written; done again")
        old = list(self.folder.glob(f"{FEATURES}.*.journal"))
        with replacing(first := self.folder / f"{FEATURES}.0.journal") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)
        for journal in old:
            if journal != first:
                journal.unlink(missing_ok=True)

    def _forms(self) -> list[tuple[tuple[int, ...], str]]:
        """The shape and type of each part."""
        return [((self.rows, self.dimension), "<f2"), ((self.rows,), "<f4")]

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

    def open(self, rank: int) -> None:
        """Opens the part files and this process's journal for writing."""
        for part, row_bytes in zip(self._parts, (self.dimension * 2, 4), strict=True):
            header = part.stat().st_size - self.rows * row_bytes
            self._files.append((os.open(part, os.O_WRONLY), header))
        # Starts a new line, in case a kill cut the last one.
        journal = self.folder / f"{FEATURES}.{rank}.journal"
        self._journal = journal.open("a", encoding="utf-8")
        self._journal.write("\n")

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
        assert self._journal is not None, "open() first"
        norms = np.linalg.norm(embeddings, axis=1).astype(np.float32)
        for row in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist():
            failures.setdefault(row, "its embedding is zero or not finite")
        norms[list(failures)] = 0
        unit = embeddings / np.where(norms > 0, norms, 1)[:, None]
        unit[list(failures)] = 0
        entry = {
            "start": start,
            "stop": start + len(embeddings),
            "unreadable": [[start + row, reason] for row, reason in sorted(failures.items())],
        }
        blocks = [unit.astype("<f2").tobytes(), norms.astype("<f4").tobytes()]
        entry["crc32"] = _checksum(blocks)
        try:
            for (file, offset), block in zip(self._files, blocks, strict=True):
                row_bytes = len(block) // len(embeddings)
                _write_all(file, block, offset + start * row_bytes)
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); make room and run the same "
                "command: it resumes"
            ) from error

    def close(self) -> None:
        """Closes the files; what was written stays."""
        for file, _ in self._files:
            os.close(file)
        self._files.clear()
        if self._journal is not None:
            with suppress(OSError):  # a line that found no room is tried again, and said already
                self._journal.close()

    def finish(self, table: ImageList) -> list[dict[str, Any]]:
        """Gives the parts their final names and writes the .json; one process does this.

        Args:
            table: the list, for the paths of unreadable rows.

        Returns:
            The rows without an embedding: row, path, reason.

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
        norms = np.load(self._parts[1], mmap_mode="r")
        # A row done twice, with its image fixed in between, has an embedding after all.
        rows = [row for row in sorted(failures) if norms[row] == 0]
        unreadable = [
            {"row": row, "path": path, "reason": failures[row]}
            for row, path in zip(rows, table.paths_at(rows), strict=True)
        ]
        if len(unreadable) == self.rows:
            self._clear()
            raise UserError(
                f"{table.file}: none of its {self.rows} images could be read (the first: "
                f"{unreadable[0]['path']}: {unreadable[0]['reason']}); paths are read relative to "
                "the current folder"
            )
        beside = self.features.with_suffix(".json")
        # A kill in here must not leave a .json beside rows that it does not describe.
        for old in (beside, self.features, self.norms):
            old.unlink(missing_ok=True)
        for part, final in zip(self._parts, (self.features, self.norms), strict=True):
            os.replace(part, final)
        plan = {**self._plan(), "rows_done": self.rows, "unreadable": unreadable}
        write_json(beside, plan)
        self._clear()
        return unreadable

    def _plan(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.about, "dimension": self.dimension}

    def _is_this_work(self, described: object) -> bool:
        """Whether a .json describes this work; how the list's path was typed does not matter."""
        if not isinstance(described, dict) or described.get("rows_done", self.rows) != self.rows:
            return False
        works = [dict(self._plan()), dict(described)]
        for work in works:
            for outcome in ("rows_done", "unreadable"):
                work.pop(outcome, None)
            if isinstance(listed := work.get("list"), dict):
                work["list"] = {key: value for key, value in listed.items() if key != "path"}
        return works[0] == works[1]

    def _entries(self) -> list[dict[str, Any]]:
        entries = []
        for journal in sorted(self.folder.glob(f"{FEATURES}.*.journal")):
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

    def _clear(self) -> None:
        journals = self.folder.glob(f"{FEATURES}.*.journal")
        for path in [self._plan_file, *journals, *self._parts]:
            path.unlink(missing_ok=True)


def _are_failures(listed: object) -> bool:
    return isinstance(listed, list) and all(
        isinstance(entry, dict) and {"row", "path", "reason"} <= entry.keys() for entry in listed
    )


def _checksum(blocks: list[bytes]) -> int:
    return zlib.crc32(blocks[1], zlib.crc32(blocks[0]))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _has_form(part: Path, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a file is a whole .npy of a shape and type."""
    with open(part, "rb") as file:
        try:
            stated = read_header(file)
        except Exception:  # a damaged header is parsed as Python: it raises many kinds
            return False
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return (
            stated == (shape, False, np.dtype(dtype)) and part.stat().st_size == file.tell() + size
        )


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
