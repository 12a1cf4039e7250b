"""One .npy an image: the layout that the unofficial generator of SDD-FIQA labels made known.

Under `--feature-root` the files mirror the paths of a list relative to `--image-root`, with .npy in
place of the images' suffix. They are gathered once, in list order, into what the label step reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.distributed import ProcessGroup
from dataset.embedding_writer import FeatureWriter, to_unit_length
from dataset.embeddings import EMBEDDINGS, read_header
from dataset.identities import identities_in
from dataset.lists import (
    LABELPATH,
    ImageList,
    read_labelpath,
    read_table,
    refuse_repeats,
)
from generate_pseudo_labels.distance.array_backend import Float32
from generate_pseudo_labels.label_files import UNREADABLE, LabelInput, read_input
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.labels import doubt_identities
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing

Batch = tuple[int, Float32, dict[int, str]]

_BATCH = 4096
_SEARCHED = 100  # images whose .npy are looked for, to see which folder they mirror
MISSING, DAMAGED = "its .npy is missing", "its .npy cannot be read"


@dataclass(frozen=True)
class NpyFolder:
    """Where the .npy files are. Each field is a flag of gen_pseudo_labels; its text is the help.

    Attributes:
        feature_root: folder with one .npy an image; with it, image-list-file and score-dst take
            the place of out-dir.
        image_list_file: the list that goes with feature-root, one image path a line.
        image_root: what the list's paths begin with; the .npy files mirror what follows.
        id_key_index: which part of a listed path names the identity (with feature-root).
        score_dst: folder for everything written (with feature-root).
        load_feature: True keeps the .npy files' content in memory; False gathers it in one file
            below score-dst, which stays.
    """

    feature_root: Path | None = None
    image_list_file: Path | None = None
    image_root: Path | None = None
    id_key_index: int = -3
    score_dst: Path | None = None
    load_feature: Literal["True", "False"] = "False"


def open_input(
    out_dir: Path,
    files: NpyFolder,
    settings: LabelSettings,
    threads: int,
    processes: ProcessGroup,
) -> tuple[Path, LabelInput]:
    """The label folder and its input: the folder as it is, or made of a list and its .npy files.

    The identities must give labels with these settings, before files are gathered. Rank 0 gathers
    them, on so many threads; all processes read the result.

    Raises:
        UserError: flags that need each other, no .npy at all, embeddings of different lengths, a
            path without the identity's part.
    """
    if files.feature_root is None:
        for name in ("image_list_file", "image_root", "score_dst"):
            if getattr(files, name) is not None:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: goes with --feature-root, the folder of .npy files")
        return out_dir, read_input(out_dir)
    if files.id_key_index == -1:
        raise UserError("--id-key-index -1: is the image's own name; -2 is its folder")
    if files.image_list_file is None or files.score_dst is None:
        raise UserError("--feature-root: needs --image-list-file and --score-dst too")
    if not files.feature_root.is_dir():
        raise UserError(f"--feature-root {files.feature_root}: no such folder")
    in_memory, target = files.load_feature == "True", files.score_dst
    if in_memory and processes.size > 1:
        raise UserError("--load-feature True: every process would hold all embeddings; use False")
    inputs = None
    if processes.first:
        listed = read_table(files.image_list_file)
        refuse_repeats(listed)
        dimension = _Reader(files.feature_root, files.image_root, listed).dimension()
        numbers = identities_in(listed, files.id_key_index)
        if doubt := doubt_identities(listed, np.bincount(numbers), settings):
            raise UserError(f"{listed.file}: {doubt}")
        with replacing(target / LABELPATH) as file:
            for path, number in zip(listed.paths(), numbers.tolist(), strict=True):
                file.write(f"{path}\t{number}\n")
        images, identities = read_labelpath(target / LABELPATH)
        reader = _Reader(files.feature_root, files.image_root, images)
        if in_memory:
            inputs = LabelInput(images, identities, np.zeros((len(images), dimension), np.float32))
            for start, rows, failures in reader.batches(dimension, threads):
                inputs.embeddings[start : start + len(rows)] = to_unit_length(rows, failures)[0]
                for row, reason in failures.items():
                    inputs.leave_out(np.array([start + row]), UNREADABLE + reason)
        else:
            reader.write(target, dimension, threads)
    processes.barrier()  # the files must be there first
    return target, inputs or read_input(target)


def gather_features(root: Path, images: ImageList, target: Path, threads: int) -> Path:
    """Gathers the .npy files of a list into one file below the folder `target`: its path.

    The files mirror the list's paths below some folder; which one is seen from the first images.

    Raises:
        UserError: no .npy of these images, or embeddings of different lengths.
    """
    for path in islice(images.paths(), _SEARCHED):
        for folder in reversed(Path(path).parents):
            reader = _Reader(root, folder, images)
            if reader.file_of(0, path).is_file():
                reader.write(target, reader.dimension(), threads)
                return target / EMBEDDINGS
    first = PurePath(images.path(0)).with_suffix(".npy")
    raise UserError(
        f"{root}: holds no .npy of the first images of {images.file}; expected, for example,"
        f" {root / PurePath(*first.parts[-2:])}"
    )


@dataclass(frozen=True)
class _Reader:
    """Reads the .npy files of a list, which mirror below `root` what follows `image_root`."""

    root: Path
    image_root: Path | None
    images: ImageList

    def file_of(self, row: int, path: str) -> Path:
        """The .npy of one record; raises UserError if it is not below the image root."""
        relative, image_root = PurePath(path), self.image_root
        if image_root is not None and relative.is_relative_to(image_root):
            relative = relative.relative_to(image_root)
        if relative.is_absolute():
            raise UserError(
                f"{self.images.file}:{row + 1}: {path} is not below --image-root "
                f"{image_root or ''}; give the folder that the list's paths begin with"
            )
        if not relative.name:
            raise UserError(f"{self.images.file}:{row + 1}: {path} names no image")
        return self.root / relative.with_suffix(".npy")

    def dimension(self) -> int:
        """The length of the first embedding that can be read; raises UserError if none can."""
        for row, path in enumerate(self.images.paths()):
            embedding = _read_one(self.file_of(row, path))
            if not isinstance(embedding, str):
                return len(embedding)
        first = self.file_of(0, self.images.path(0))
        raise UserError(
            f"{self.images.file}: none of its images has a readable .npy under "
            f"{self.root} (the first one would be {first}); check --image-root"
        )

    def write(self, target: Path, dimension: int, threads: int) -> None:
        """Gathers all embeddings in one file of the label folder `target`."""
        images = self.images
        about: dict[str, Any] = {
            "list": {"path": str(images.file), "sha256": images.sha256, "rows": len(images)},
            "weights": {"features": str(self.root)},
            "preprocessing": {},
        }
        writer = FeatureWriter((target / EMBEDDINGS).parent, len(images), dimension, about)
        writer.prepare()
        for start, rows, failures in self.batches(dimension, threads):
            writer.write(start, rows, failures)
        writer.finish(images)

    def batches(self, dimension: int, threads: int) -> Iterator[Batch]:
        """In list order: the first row, the embeddings, and place -> reason where there is none.

        Embeddings are as they are in the files, and zero where there is a reason.
        """
        paths = self.images.paths()
        bar = tqdm(total=len(self.images), unit=" files", desc="gathering")
        with ThreadPoolExecutor(threads) as pool, bar:
            for start in range(0, len(self.images), _BATCH):
                some = list(islice(paths, _BATCH))
                names = [self.file_of(start + i, path) for i, path in enumerate(some)]
                rows = np.zeros((len(some), dimension), np.float32)
                failures: dict[int, str] = {}
                for place, embedding in enumerate(pool.map(_read_one, names, chunksize=64)):
                    if isinstance(embedding, str):
                        failures[place] = embedding
                        continue
                    if len(embedding) != dimension:
                        raise UserError(
                            f"{names[place]}: holds {len(embedding)} numbers, the first of the "
                            f"list {dimension}; embeddings of one recogniser have one length"
                        )
                    with np.errstate(over="ignore", under="ignore"):
                        rows[place] = embedding  # as float32, which may be inf or 0
                yield start, rows, failures
                bar.update(len(some))


def _read_one(file: Path) -> npt.NDArray[np.float64] | str:
    """The numbers of one .npy, flat, or why there are none."""
    try:
        content = file.read_bytes()
        stream = BytesIO(content)
        shape, _, dtype = read_header(stream)
        if dtype.kind in "fiu" and 0 not in shape:
            values = np.frombuffer(content, dtype, math.prod(shape), stream.tell())
            return values.astype(np.float64)
    except FileNotFoundError:
        return MISSING
    except Exception:  # a damaged header is parsed as Python: it raises many kinds
        pass
    return DAMAGED
