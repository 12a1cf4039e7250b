"""The ORL faces, aligned, and degraded copies of some: a small set whose quality is known to vary.

python -m dataset.orl_faces --out-dir quickstart/faces
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, note, run_script
from dataset.degradations import degrade
from dataset.images import encode_face, read_image
from dataset.loader import read_ahead
from sdd_fiqa.alignment import FaceAligner
from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, write_json
from sdd_fiqa.images import Image

MANIFEST = "orl_faces.json"
IDENTITIES = 40
FACES_EACH = 10
FACES = list(product(range(1, IDENTITIES + 1), range(1, FACES_EACH + 1)))  # identity, number
COPIES_EACH = 8  # degraded copies an identity: each kind once, and three kinds twice
COPY_KINDS = ("blur", "low_resolution", "noise", "occlusion", "low_light")
LEAST_STRENGTH = 0.2

Copies = dict[tuple[int, int], tuple[str, float]]  # of some of FACES: kind and strength


def main(*, out_dir: Path, seed: int = 0) -> int:
    """Fetches the ORL faces, aligns them to 112x112 and degrades some.

    Args:
        out_dir: gets <identity>/<identity>_<number>.png, and the copies with their kind in the
            name: s01_03.blur.png.
        seed: chooses which faces are degraded, how and how much.
    """
    check_seed(seed)
    copies = plan_copies(seed)
    settings = {"seed": seed, "faces": len(FACES), "copies": len(copies)}
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
        f"{out_dir}: found and aligned {len(FACES) - len(done['missed'])}/{len(FACES)} faces of "
        f"{IDENTITIES} identities"
    )
    counts = {kind: sum(f".{kind}." in path for path in done["strengths"]) for kind in COPY_KINDS}
    by_kind = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{out_dir}: made {sum(counts.values())} degraded copies: {by_kind}")
    for path in done["missed"]:
        note(f"{path}: no face found")
    return EXIT_SKIPPED if done["missed"] else EXIT_DONE


def plan_copies(seed: int) -> Copies:
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
    copies: Copies = {}
    for kind, own in picked.items():
        strengths = rng.permutation(np.linspace(LEAST_STRENGTH, 1, len(own))).round(4)
        for face, strength in zip(own, strengths.tolist(), strict=True):
            copies[face] = kind, strength
    return copies


def make_faces(out_dir: Path, copies: Copies, seed: int) -> dict[str, Any]:
    """Aligns all faces and writes them and the copies; files that are there are left alone.

    Returns:
        "missed": paths of the faces that the detector did not find; "strengths": of every copy
        that was made, by its path.
    """
    missed: list[str] = []
    strengths: dict[str, float] = {}
    faces = tqdm(_aligned(), "aligning", len(FACES), unit="face")
    for place, face in zip(FACES, faces, strict=True):
        path = _path(*place)
        if face is None:
            missed.append(path)
            continue
        _write(out_dir / path, face)
        if place in copies:
            kind, strength = copies[place]
            # Keyed by the face, so that a resumed run draws the same numbers.
            rng = np.random.default_rng((seed, *place, COPY_KINDS.index(kind)))
            path = _path(*place, f".{kind}")
            _write(out_dir / path, degrade(face, kind, strength, rng))
            strengths[path] = strength
    return {"missed": missed, "strengths": strengths}


def _is_complete(out_dir: Path, done: dict[str, Any]) -> bool:
    named = {_path(*face) for face in FACES} - set(done["missed"])
    return all((out_dir / name).is_file() for name in [*named, *done["strengths"]])


def _aligned() -> Iterator[Image | None]:
    """The aligned faces of FACES; None where no face is found."""
    source, aligner = fetch("orl"), FaceAligner()

    def align(path: Path) -> Image | None:
        found = aligner.align(read_image(path), most=1)
        return found[0][1] if found else None

    paths = (source / f"s{identity}" / f"{number}.pgm" for identity, number in FACES)
    return read_ahead(((str(path), partial(align, path)) for path in paths), None)


def _path(identity: int, number: int, kind: str = "") -> str:
    return f"s{identity:02d}/s{identity:02d}_{number:02d}{kind}.png"


def _write(path: Path, face: Image) -> None:
    if not path.is_file():
        with replacing(path, "wb") as file:
            file.write(encode_face(face, ".png"))


if __name__ == "__main__":
    run_script(main)
