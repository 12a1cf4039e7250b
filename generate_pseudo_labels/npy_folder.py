"""One .npy an image: the layout that the unofficial generator of SDD-FIQA labels made known.

Under `--feature-root` the files mirror the paths of a list relative to `--image-root`, with .npy in
place of the images' suffix. They are gathered once, in list order, into what the label step reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from common.distributed import ProcessGroup
from dataset.embedding_writer import FeatureWriter
from dataset.embeddings import EMBEDDINGS
from dataset.lists import (
    LABELPATH,
    Identities,
    ImageList,
    identities_in,
    read_labelpath,
    read_table,
    refuse_repeats,
)
from generate_pseudo_labels.distance.embedded_set import InMemory
from generate_pseudo_labels.label_files import UNREADABLE, LabelInput, read_input
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing

_BATCH = 4096
MISSING, DAMAGED = "its .npy is missing", "its .npy cannot be read"
EMPTY = "its embedding is zero or not finite"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureFolder:
    """Where the .npy of an image is.

    Attributes:
        root: holds the .npy files.
        image_root: the list's paths are taken relative to it; None takes them as they are.
        table: the list.
    """

    root: Path
    image_root: Path | None
    table: ImageList

    def file_of(self, row: int, path: str) -> Path:
        """The .npy of one record.

        Raises:
            UserError: an absolute path that is not below the image root.
        """
        relative = PurePath(path)
        if self.image_root is not None and relative.is_relative_to(self.image_root):
            relative = relative.relative_to(self.image_root)
        if relative.is_absolute():
            raise UserError(
                f"{self.table.file}:{row + 1}: {path} is not below --image-root "
                f"{self.image_root or ''}; give the folder that the list's paths begin with"
            )
        if not relative.name:
            raise UserError(f"{self.table.file}:{row + 1}: {path} names no image")
        return self.root / relative.with_suffix(".npy")

    def read(self, threads: int) -> Iterator[tuple[int, list[npt.NDArray[np.float64] | str]]]:
        """Batches in list order: the first row, and an embedding or a reason for each image."""
        from tqdm import tqdm

        paths = self.table.paths()
        bar = tqdm(total=len(self.table), unit=" files", desc="gathering")
        with ThreadPoolExecutor(threads) as pool, bar:
            start = 0
            while some := list(islice(paths, _BATCH)):
                files = [self.file_of(start + i, path) for i, path in enumerate(some)]
                yield start, list(pool.map(_read_one, files, chunksize=64))
                start += len(some)
                bar.update(len(some))


@dataclass(frozen=True)
class Features:
    """What the command line says of a layout of one .npy an image.

    Attributes:
        image_list_file: one path a line.
        feature_root: holds the .npy files; None where that layout is not used.
        image_root: what the list's paths begin with; None takes relative paths as they are.
        id_key_index: which part of a path names the identity.
        score_dst: the label folder to make.
    """

    image_list_file: Path | None
    feature_root: Path | None
    image_root: Path | None
    id_key_index: int
    score_dst: Path | None


def open_input(
    out_dir: Path, features: Features, in_memory: bool, threads: int, processes: ProcessGroup
) -> tuple[Path, LabelInput]:
    """The label folder and its input: as it stands, or made of a list and its .npy files.

    Args:
        out_dir: the label folder where no .npy files are given.
        features: the .npy files, if any.
        in_memory: keep their content in memory; else it is gathered in one file, which stays.
        threads: files read at a time.
        processes: rank 0 gathers the one file, all read it.

    Raises:
        UserError: flags that need each other, no .npy at all, embeddings of different lengths, a
            path without the identity's part.
    """
    if features.feature_root is None:
        for name in ("image_list_file", "image_root", "score_dst"):
            if getattr(features, name) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: goes with --feature-root, the folder of .npy files")
        return out_dir, read_input(out_dir)
    if features.id_key_index == -1:
        raise UserError("--id-key-index -1: is the image's own name; -2 is the folder it lies in")
    if features.image_list_file is None or features.score_dst is None:
        raise UserError("--feature-root: needs --image-list-file and --score-dst too")
    if not features.feature_root.is_dir():
        raise UserError(f"--feature-root {features.feature_root}: no such folder")
    if in_memory and processes.size > 1:
        raise UserError("--load-feature True: every process would hold everything; use False")
    target = features.score_dst
    given = None
    if processes.first:
        given = _gather(
            features, features.feature_root, features.image_list_file, target, in_memory, threads
        )
    processes.barrier()  # the files must be there first
    return target, given or read_input(target)


def _gather(
    features: Features, root: Path, list_file: Path, target: Path, in_memory: bool, threads: int
) -> LabelInput:
    listed = read_table(list_file)
    refuse_repeats(listed)
    dimension = _dimension(FeatureFolder(root, features.image_root, listed))
    numbers = identities_in(listed, features.id_key_index).tolist()
    with replacing(target / LABELPATH) as file:
        for path, number in zip(listed.paths(), numbers, strict=True):
            file.write(f"{path}\t{number}\n")
    table, identities = read_labelpath(target / LABELPATH)
    folder = FeatureFolder(root, features.image_root, table)
    if in_memory:
        return _in_memory(folder, identities, dimension, threads)
    described = {"path": str(target / LABELPATH), "sha256": table.sha256, "rows": len(table)}
    about = {"list": described, "weights": {"features": str(root)}, "preprocessing": {}}
    writer = FeatureWriter((target / EMBEDDINGS).parent, len(table), dimension, about)
    writer.prepare()
    writer.open(0)
    try:
        for start, found in folder.read(threads):
            writer.write(start, *_stacked(folder, start, found, dimension))
    finally:
        writer.close()
    writer.finish(table)
    return read_input(target)


def _in_memory(
    folder: FeatureFolder, identities: Identities, dimension: int, threads: int
) -> LabelInput:
    embeddings = np.zeros((len(folder.table), dimension), np.float32)
    given = LabelInput(folder.table, identities, InMemory(embeddings))
    for start, found in folder.read(threads):
        rows, failures = _stacked(folder, start, found, dimension)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        embeddings[start : start + len(rows)] = rows / np.where(length > 0, length, 1)
        for row, reason in failures.items():
            given.leave_out(np.array([start + row]), UNREADABLE + reason)
    return given


def _dimension(folder: FeatureFolder) -> int:
    """The length of the first embedding that can be read.

    Raises:
        UserError: there is none.
    """
    for row, path in enumerate(folder.table.paths()):
        found = _read_one(folder.file_of(row, path))
        if not isinstance(found, str):
            return len(found)
    first = folder.file_of(0, folder.table.path(0))
    raise UserError(
        f"{folder.table.file}: none of its {len(folder.table)} images has a .npy that can be read "
        f"under {folder.root} (the first is looked for at {first}); check --image-root"
    )


def _stacked(
    folder: FeatureFolder,
    start: int,
    found: list[npt.NDArray[np.float64] | str],
    dimension: int,
) -> tuple[Floats, dict[int, str]]:
    """Rows of a batch as they are, zero where there is a reason, and the reasons."""
    rows = np.zeros((len(found), dimension), np.float32)
    failures: dict[int, str] = {}
    for place, embedding in enumerate(found):
        if isinstance(embedding, str):
            failures[place] = embedding
            continue
        if len(embedding) != dimension:
            file = folder.file_of(start + place, folder.table.path(start + place))
            raise UserError(
                f"{file}: holds {len(embedding)} numbers, the first of the list {dimension}; "
                "embeddings of one recogniser have one length"
            )
        with np.errstate(over="ignore", under="ignore"):
            rows[place] = embedding  # as float32, which may be inf or 0
        length = np.linalg.norm(rows[place])
        if not (np.isfinite(length) and length > 0):
            failures[place] = EMPTY
            rows[place] = 0
    return rows, failures


def _read_one(file: Path) -> npt.NDArray[np.float64] | str:
    """The numbers of one .npy, flat, or why there are none."""
    try:
        content = file.read_bytes()
        found = np.load(BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        return MISSING
    except Exception:  # a damaged header is parsed as Python: it raises many kinds
        return DAMAGED
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or found.size == 0:
        return DAMAGED
    return found.astype(np.float64).ravel()
