"""How fast images are read from a folder, a .rec and a tar, compared with decoding alone.

    python benchmarks/speed_containers.py
    python benchmarks/speed_containers.py --faces faces --num-workers 8

The same images go through the loader that every stage uses, in list order and in random order.
"decoding alone" takes their bytes from memory, so no storage can be faster. The files were written
just before: the work of reading is measured, not the disk.

Each round measures all of them in turn. Two numbers are printed: the best rate, and a share. The
share is the processor time of decoding alone divided by that of reading and decoding, the median
over the rounds. Other programs on the machine disturb this ratio least.
"""

from __future__ import annotations

import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from common.cli import EXIT_DONE, run_script
from dataset import loader
from dataset.containers import read_run
from dataset.containers.pack import write_records
from dataset.find import walk_images
from dataset.left_out import Skipped
from dataset.lists import ImageList, table_of
from dataset.loader import batches, default_workers
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import Content

BATCH = 64
Source = tuple[ImageList, Callable[[Sequence[str]], Iterable[Content | None]]]


def main(
    faces: Path | None = None,
    images: int = 2000,
    num_workers: int | None = None,
    rounds: int = 15,
) -> int:
    """Measures how fast images are read from a folder, a .rec and a tar.

    Args:
        faces: a folder of images; without it, synthetic faces of 112x112 are made.
        images: how many images.
        num_workers: decoding threads; by default one a core.
        rounds: how often each source is measured.
    """
    workers = num_workers or default_workers()
    with tempfile.TemporaryDirectory(prefix="containers-") as name:
        folder = Path(name)
        contents = real_faces(faces, images) if faces is not None else made_up_faces(images)
        sources = write_sources(folder, contents)
        kilobytes = sum(map(len, contents)) / len(contents) / 1000
        print(f"{len(contents)} images of {kilobytes:.1f} kB, {workers} threads, {rounds} rounds")
        in_order = np.arange(len(contents))
        at_random = np.random.default_rng(0).permutation(len(contents))
        for word, rows in (("in order", in_order), ("at random", at_random)):
            rates = measure(sources, rows, workers, rounds)
            for source, (rate, share) in rates.items():
                print(f"{word:9}  {source:14}  {rate:7.0f} images/s  {share:6.1%}")
    return EXIT_DONE


def made_up_faces(count: int) -> list[bytes]:
    """JPEGs that decode as fast as face crops: 112x112, smooth with some detail."""
    import cv2

    rng = np.random.default_rng(0)
    contents = []
    for _ in range(count):
        coarse = cv2.resize(rng.integers(0, 255, (14, 14, 3), np.uint8), (112, 112))
        noisy = coarse + rng.normal(0, 6, coarse.shape)
        pixels = np.clip(noisy, 0, 255).astype(np.uint8)
        contents.append(cv2.imencode(".jpg", pixels)[1].tobytes())
    return contents


def real_faces(folder: Path, count: int) -> list[bytes]:
    """The first images below a folder."""
    contents: list[bytes] = []
    for path in walk_images(str(folder), Skipped()):
        contents.append(Path(path).read_bytes())
        if len(contents) == count:
            break
    if not contents:
        raise UserError(f"--faces {folder}: holds no image")
    return contents


def write_sources(folder: Path, contents: list[bytes]) -> dict[str, Source]:
    """Writes the images in each form; {name: (list, reader of the bytes)}."""
    (folder / "files").mkdir()
    names = [f"{number:07}.jpg" for number in range(len(contents))]
    with write_records(folder / "a.rec") as records, tarfile.open(folder / "a.tar", "w") as tar:
        for name, content in zip(names, contents, strict=True):
            (folder / "files" / name).write_bytes(content)
            records.add((0.0,), content)
            tar.add(folder / "files" / name, name)
    held = dict(zip(names, contents, strict=True))
    lists = {
        "folder": [f"{folder}/files/{name}" for name in names],
        ".rec": [f"{folder}/a.rec#{number}" for number in range(len(names))],
        "tar": [f"{folder}/a.tar#{name}" for name in names],
    }
    sources: dict[str, Source] = {
        "decoding alone": (
            table_of(iter(names), folder / "memory.txt"),
            lambda paths: [held[path] for path in paths],
        )
    }
    for kind, paths in lists.items():
        sources[kind] = table_of(iter(paths), folder / f"{kind}.txt"), read_run
    return sources


def measure(
    sources: dict[str, Source], rows: npt.NDArray[np.int64], workers: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """{source: (best images/s, median share of decoding alone)}."""
    rates, works = np.zeros((rounds, len(sources))), np.zeros((rounds, len(sources)))
    names = list(sources)
    for number in range(rounds):
        for turn in range(len(names)):
            column = (number + turn) % len(names)
            table, contents = sources[names[column]]
            start, worked = time.perf_counter(), time.process_time()
            with mock.patch.object(loader, "read_run", contents):
                for batch in batches(table, rows, BATCH, workers):
                    assert not batch.failures, batch.failures
            rates[number, column] = len(rows) / (time.perf_counter() - start)
            works[number, column] = time.process_time() - worked
    shares = np.median(works[:, :1] / works, axis=0)
    best = rates.max(axis=0)
    return {n: (float(b), float(s)) for n, b, s in zip(names, best, shares, strict=True)}


if __name__ == "__main__":
    run_script(main)
