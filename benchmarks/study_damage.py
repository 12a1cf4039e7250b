"""How many damaged JPEGs are noticed, how far the others' scores move, and what decoding costs.

    python benchmarks/study_damage.py --data-root faces

Damaged are real files, a seeded number of each kind:

    zeros        64 to 8192 bytes set to zero at a uniform place in the scan
    cut          64 to 8192 bytes cut out at a uniform place in the scan
    tail         all bytes from a uniform place in the scan on set to zero
    spliced      the head of one file and the tail of another, each cut at a uniform place
    spliced same two files cut at the same offset: the hardest case
    flip         one bit of the scan

"unnoticed" are files that decode; "moved" those of them whose score is more than 5 points from the
whole file's. Whole files that are refused are counted too: there should be none. The last line is
the processor time of cv2.imdecode over that of decode_image, for the same whole files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from common.cli import EXIT_DONE, run_script
from dataset.containers import read_bytes
from dataset.find import find_images
from dataset.left_out import Skipped
from models.quality import load_quality_model
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import Image, decode_image, resize_face
from sdd_fiqa.jpeg import read_header

MOVED = 5.0  # points
_END = b"\xff\xd9"

Damage = Callable[[np.random.Generator, bytes, bytes], bytes]


def main(data_root: str, count: int = 400, seed: int = 0) -> int:
    """Damages JPEGs and counts what the decoder does not notice.

    Args:
        data_root: a folder or a container of JPEGs.
        count: damaged files of each kind.
        seed: of the choice of files, places and lengths.
    """
    files = [read_bytes(path) for path in find_images([data_root], Skipped())]
    files = [content for content in files if content.startswith(b"\xff\xd8\xff")]
    if len(files) < 2:
        raise UserError(f"{data_root}: fewer than two JPEGs")
    refused = sum(_decoded(content) is None for content in files)
    print(f"{len(files)} whole files, {refused} refused")
    model = load_quality_model("small")
    for name, damage in KINDS.items():
        rng = np.random.default_rng(seed)
        damaged, whole = [], []
        for _ in range(count):
            one, other = (files[row] for row in rng.integers(len(files), size=2))
            image = _decoded(damage(rng, one, other))
            if image is not None:
                damaged.append(resize_face(image))
                whole.append(resize_face(decode_image(one)))
        moved = 0
        if damaged:
            scores = model(np.stack(damaged)), model(np.stack(whole))
            moved = int((np.abs(scores[0] - scores[1]) > MOVED).sum())
        print(f"{name:12}  unnoticed {len(damaged) / count:6.2%}  moved {moved / count:6.2%}")
    print(f"decoding: {_speed(files[:500]):.2f} times as fast as cv2.imdecode")
    return EXIT_DONE


def _decoded(content: bytes) -> Image | None:
    try:
        return decode_image(content)
    except UnreadableImage:
        return None


def _scan(content: bytes) -> tuple[int, int]:
    """Where the data of the pixels begin and end."""
    start = read_header(content).scan
    end = content.find(_END, start)
    return start, end if end >= 0 else len(content)


def _piece(rng: np.random.Generator, content: bytes) -> tuple[int, int]:
    """A uniform place in the scan, and one 64 to 8192 bytes later, each doubling as likely."""
    start, end = _scan(content)
    place = int(rng.integers(start, end))
    return place, min(end, place + round(2 ** rng.uniform(6, 13)))


def _zeros(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    start, end = _piece(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def _cut(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    start, end = _piece(rng, content)
    return content[:start] + content[end:]


def _tail(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    place = int(rng.integers(*_scan(content)))
    return content[:place] + bytes(len(content) - place)


def _spliced(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    return content[: rng.integers(*_scan(content))] + other[rng.integers(*_scan(other)) :]


def _spliced_same(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    place = int(rng.integers(*_scan(content)))
    return content[:place] + other[place:]


def _flip(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    place = int(rng.integers(*_scan(content)))
    flipped = content[place] ^ 1 << int(rng.integers(8))
    return content[:place] + bytes([flipped]) + content[place + 1 :]


KINDS: dict[str, Damage] = {
    "zeros": _zeros,
    "cut": _cut,
    "tail": _tail,
    "spliced": _spliced,
    "spliced same": _spliced_same,
    "flip": _flip,
}


def _speed(files: Sequence[bytes], rounds: int = 5) -> float:
    """Median of the ratio over some rounds."""
    ratios = []
    for _ in range(rounds):
        start = time.process_time()
        for content in files:
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        middle = time.process_time()
        for content in files:
            decode_image(content)
        ratios.append((middle - start) / (time.process_time() - middle))
    return float(np.median(ratios))


if __name__ == "__main__":
    run_script(main)
