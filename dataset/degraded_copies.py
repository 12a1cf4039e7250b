"""Degraded copies of the faces of a folder, for labels and training that know bad images.

    python -m dataset.degraded_copies --data-root data/faces --out-dir data/degraded --share 0.5

Then `gen_datalist.py --data-root data` lists originals and copies together. A copy is in the folder
of its identity. Its label comes from its own embedding, not from its original's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.cli import check_seed, run_script
from dataset.copies import images_below, in_order, report, root_of
from dataset.degradations import KINDS, TRAINING_KINDS, degrade_by
from dataset.images import encode_face, read_face
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import read_json, replacing, write_json
from sdd_fiqa.number import count_of
from sdd_fiqa.storage import read_file

SETTINGS = "degraded_copies.json"  # in the out folder


@dataclass(frozen=True)
class Copies:
    """Which copies are made: of a share of the faces, of some kinds equally often.

    Attributes:
        share: of the faces that get a copy, in (0, 1].
        kinds: of `dataset.degradations.KINDS`.
        strengths: the lowest and the highest strength, drawn evenly between; of m kinds at once
            each gets 1 / sqrt(m) of it.
        seed: keys every draw together with the face's path below the root.
        most: kinds at once: a copy gets 1, 2, .., `most` of them equally often.
        keep_others: whether the faces without a degraded copy are written too, as they are.
    """

    share: float
    kinds: tuple[str, ...]
    strengths: tuple[float, float]
    seed: int
    most: int = 1
    keep_others: bool = False

    def of(self, name: str) -> tuple[dict[str, float], np.random.Generator] | None:
        """Strengths by kind and further random numbers of one face's copy; None: it gets none.

        A face's draw depends on its own name alone: other faces may come and go.
        """
        rng = np.random.default_rng([self.seed, *name.encode("utf-8")])
        if rng.random() >= self.share:
            return None
        count = int(rng.integers(1, self.most + 1))
        chosen: dict[str, float] = {}
        for _ in range(count):
            left = [kind for kind in self.kinds if kind not in chosen]
            kind = left[int(rng.integers(len(left)))]
            chosen[kind] = float(rng.uniform(*self.strengths)) / math.sqrt(count)
        return chosen, rng


def main(
    *,
    data_root: str,
    out_dir: Path,
    share: float = 0.5,
    kinds: tuple[str, ...] = TRAINING_KINDS,
    strengths: tuple[float, float] = (0.1, 1.0),
    most: int = 1,
    seed: int = 0,
    keep_others: bool = False,
) -> int:
    """Writes degraded copies of some faces: of `<root>/a/1.png` as `<out-dir>/a/1.blur+noise.jpg`.

    Copies that are there already are left alone, so that the same command resumes after a stop.

    Args:
        data_root: folder of aligned faces, at any depth.
        out_dir: gets the copies, in the same folders.
        share: of the faces that get a copy.
        kinds: which degradations.
        strengths: the least and the most strength; 0 changes nothing, 1 is beyond recognition.
        most: kinds at once, at the most; of several, each is weaker.
        seed: of which faces, which kind and how much.
        keep_others: write the faces that get no copy too, as they are: the out folder is then a set
            of its own, with every face once.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(f"--kinds {' '.join(unknown)}: choose from {', '.join(KINDS)}")
    if not 1 <= most <= len(set(kinds)):
        raise UserError(f"--most {most}: must be in 1..{len(set(kinds))}, the number of --kinds")
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: must be in (0, 1]")
    if not 0 <= strengths[0] <= strengths[1] <= 1:
        raise UserError("--strengths: must be two numbers of 0..1, the lower one first")
    check_seed(seed)
    root = root_of(data_root)
    copies = Copies(share, kinds, strengths, seed, most, keep_others)
    same_settings(out_dir, copies)
    skipped = Skipped()
    made, kept, failures = write_copies(root, out_dir, copies, skipped)
    also = f", {count_of(kept, 'face')} kept" if keep_others else ""
    print(f"{out_dir}: {count_of(made, 'degraded copy')}{also}")
    return report(failures, skipped)


def same_settings(out_dir: Path, copies: Copies) -> None:
    """Keeps copies made in two ways out of one folder: `SETTINGS` says how its own were made.

    Raises:
        UserError: they were made in another way.
    """
    wanted = json.loads(json.dumps(asdict(copies)))
    file = out_dir / SETTINGS
    copied = file.exists() and len(os.listdir(out_dir)) > 1
    if copied and (made := read_json(file)) != wanted:
        raise UserError(
            f"{file}: the copies there were made with {json.dumps(made)}; name another --out-dir, "
            "or remove that one"
        )
    write_json(file, wanted)


def write_copies(
    root: str, out_dir: Path, copies: Copies, skipped: Skipped
) -> tuple[int, int, list[tuple[str, str]]]:
    """Writes the copies, on all cores; what is no face of the folder goes to `skipped`.

    Returns:
        How many there are now, how many other faces were kept, and (path, reason) of each face that
        could not be read, or whose copy would have another's name.

    Raises:
        UserError: the root has no image, or a copy cannot be written.
    """

    def tasks() -> Iterator[tuple[tuple[str, bool], Callable[[], UnreadableImage | None]]]:
        folder, taken = out_dir, set[str]()  # the names in the folder that the walk is in
        for path, name in images_below(root, out_dir, skipped):
            drawn = copies.of(name)
            if drawn is None and not copies.keep_others:
                continue
            target = out_dir / name
            content: Callable[[], bytes] = partial(read_file, path)
            if drawn is not None:
                target = target.with_suffix(f".{'+'.join(drawn[0])}.jpg")
                content = partial(_degraded, path, *drawn)
            write: Callable[[], UnreadableImage | None] = partial(_write, target, content)
            if target.parent != folder:
                folder, taken = target.parent, set()
            if target.name in taken:  # x.png beside x.jpg, say
                why = f"its copy would be {target}, which is another face's"
                write = partial(UnreadableImage, why)
            taken.add(target.name)
            yield (path, drawn is not None), write

    made = kept = 0
    failures: list[tuple[str, str]] = []
    for (_, degraded), _ in in_order(tasks(), "degrade", failures):
        made, kept = made + degraded, kept + (not degraded)
    return made, kept, failures


def _degraded(path: str, strengths: dict[str, float], rng: np.random.Generator) -> bytes:
    return encode_face(degrade_by(read_face(path), strengths, rng), ".jpg")


def _write(target: Path, content: Callable[[], bytes]) -> None:
    if not target.is_file():
        made = content()
        with replacing(target, "wb") as file:
            file.write(made)


if __name__ == "__main__":
    run_script(main)
