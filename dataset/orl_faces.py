"""The ORL faces, aligned, and degraded copies of some: a small set whose quality is known to vary.

python -m dataset.orl_faces --out-dir quickstart/faces
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, note, run_script
from dataset.degradations import degrade
from dataset.images import encode_face, read_image
from sdd_fiqa.alignment import FaceAligner
from sdd_fiqa.assets import fetch
from sdd_fiqa.cores import usable_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, write_json
from sdd_fiqa.images import Image

MANIFEST = "orl_faces.json"
IDENTITIES = 40
FACES_EACH = 10
FACES = IDENTITIES * FACES_EACH
COPIES_EACH = 8  # degraded copies an identity: each kind once, and three kinds twice
COPY_KINDS = ("blur", "low_resolution", "noise", "occlusion", "low_light")
LEAST_STRENGTH = 0.2


class Copy(NamedTuple):
    """A degraded copy to be made of a face: identity 1 .. 40, number 1 .. 10.

    `strength` is in [LEAST_STRENGTH, 1], `path` is below the out folder.
    """

    path: str
    identity: int
    number: int
    kind: str
    strength: float


def main(*, out_dir: Path, seed: int = 0) -> int:
    """Fetches the ORL faces, aligns them to 112x112 and degrades some.

    Args:
        out_dir: gets <identity>/<identity>_<number>.png, and the copies with their kind in the
            name: s01_03.blur.png.
        seed: chooses which faces are degraded, how and how much.
    """
    check_seed(seed)
    copies = plan_copies(seed)
    settings = {"seed": seed, "faces": FACES, "copies": len(copies)}
    file = out_dir / MANIFEST
    done: dict[str, Any] = read_json(file) if file.exists() else {"settings": settings}
    if not isinstance(done, dict) or done.get("settings") != settings:
        raise UserError(f"{file}: was made with other settings; name another --out-dir")
    if done.get("finished") and _is_complete(out_dir, done):
        print(f"{out_dir}: is complete already, nothing to do")
    else:
        write_json(file, {"settings": settings, "finished": False})
        done = {"settings": settings, "finished": True, **make_faces(out_dir, copies, seed)}
        write_json(file, done)
    print(
        f"{out_dir}: found and aligned {FACES - len(done['missed'])}/{FACES} faces of {IDENTITIES} "
        "identities"
    )
    counts = {kind: sum(f".{kind}." in path for path in done["strengths"]) for kind in COPY_KINDS}
    by_kind = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{out_dir}: made {sum(counts.values())} degraded copies: {by_kind}")
    for path in done["missed"]:
        note(f"{path}: no face found")
    return EXIT_SKIPPED if done["missed"] else EXIT_DONE


def plan_copies(seed: int) -> list[Copy]:
    """Which faces are degraded, how and how much; the same for the same seed.

    Every identity gets every kind, on different faces of his; the strengths of each kind run evenly
    from LEAST_STRENGTH to 1 over the whole set.
    """
    rng = np.random.default_rng(seed)
    picked: dict[str, list[tuple[int, int]]] = {kind: [] for kind in COPY_KINDS}
    for identity in range(1, IDENTITIES + 1):
        numbers = 1 + rng.permutation(FACES_EACH)[:COPIES_EACH]
        for turn, number in enumerate(numbers.tolist()):
            # The kinds that come twice move on from one identity to the next.
            kind = COPY_KINDS[(turn + identity * COPIES_EACH) % len(COPY_KINDS)]
            picked[kind].append((identity, number))
    copies = []
    for kind, own in picked.items():
        strengths = rng.permutation(np.linspace(LEAST_STRENGTH, 1, len(own))).round(4)
        for face, strength in zip(own, strengths.tolist(), strict=True):
            copies.append(Copy(_path(*face, f".{kind}"), *face, kind, strength))
    return sorted(copies)


def make_faces(out_dir: Path, copies: list[Copy], seed: int) -> dict[str, Any]:
    """Aligns all faces and writes them and the copies; files that are there are left alone.

    Returns:
        "missed": paths of the faces that the detector did not find; "strengths": of every copy
        that was made, by its path.
    """
    missed: list[str] = []
    strengths: dict[str, float] = {}
    for identity, number, face in tqdm(_aligned(), "aligning", FACES, unit="face"):
        path = _path(identity, number)
        if face is None:
            missed.append(path)
            continue
        _write(out_dir / path, face)
        for copy in copies:
            if (copy.identity, copy.number) == (identity, number):
                # Keyed by the face, so that a resumed run draws the same numbers.
                key = (seed, identity, number, COPY_KINDS.index(copy.kind))
                degraded = degrade(face, copy.kind, copy.strength, np.random.default_rng(key))
                _write(out_dir / copy.path, degraded)
                strengths[copy.path] = copy.strength
    return {"missed": missed, "strengths": strengths}


def _is_complete(out_dir: Path, done: dict[str, Any]) -> bool:
    named = {_path(*face) for face in _everyone()} - set(done["missed"])
    return all((out_dir / name).is_file() for name in [*named, *done["strengths"]])


def _aligned() -> Iterator[tuple[int, int, Image | None]]:
    """Identity, number and aligned face of all 400; None where no face is found."""
    source = fetch("orl")
    aligner = FaceAligner()

    def one(face: tuple[int, int]) -> tuple[int, int, Image | None]:
        found = aligner.align(read_image(source / f"s{face[0]}" / f"{face[1]}.pgm"), most=1)
        return *face, found[0][1] if found else None

    pool = ThreadPoolExecutor(usable_cores())
    try:
        yield from pool.map(one, _everyone())
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun will not


def _everyone() -> Iterator[tuple[int, int]]:
    for identity in range(1, IDENTITIES + 1):
        for number in range(1, FACES_EACH + 1):
            yield identity, number


def _path(identity: int, number: int, kind: str = "") -> str:
    return f"s{identity:02d}/s{identity:02d}_{number:02d}{kind}.png"


def _write(path: Path, face: Image) -> None:
    if not path.is_file():
        with replacing(path, "wb") as file:
            file.write(encode_face(face, ".png"))


if __name__ == "__main__":
    run_script(main)
