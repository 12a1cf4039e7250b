"""The ORL faces, aligned, and degraded copies of some: a small set whose quality is known to vary.

python -m dataset.orl_faces --out-dir quickstart/faces
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, note, run_script
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, replacing, write_json

if TYPE_CHECKING:
    from sdd_fiqa.images import Image

MANIFEST = "orl_faces.json"
IDENTITIES = 40
FACES_EACH = 10
COPIES_EACH = 8  # degraded copies an identity: each kind once, and three kinds twice
COPY_KINDS = ("blur", "low_resolution", "noise", "occlusion", "low_light")
LEAST_STRENGTH = 0.2


@dataclass(frozen=True)
class Copy:
    """One degraded copy to be made.

    Attributes:
        identity: 1 .. 40.
        number: of the face it is made from, 1 .. 10.
        kind: one of `COPY_KINDS`.
        strength: in [LEAST_STRENGTH, 1].
    """

    identity: int
    number: int
    kind: str
    strength: float

    @property
    def path(self) -> str:
        """Below the out folder: `s01/s01_03.blur.png`."""
        return _path(self.identity, self.number, f".{self.kind}")


def main(*, out_dir: Path, seed: int = 0) -> int:
    """Fetches the ORL faces, aligns them to 112x112 and degrades some.

    Args:
        out_dir: gets <identity>/<identity>_<number>.png, and the copies with their kind in the
            name: s01_03.blur.png.
        seed: chooses which faces are degraded, how and how much.
    """
    check_seed(seed)
    copies = plan_copies(seed)
    started = {"seed": seed, "faces": IDENTITIES * FACES_EACH, "copies": len(copies)}
    done = _read_manifest(out_dir, started)
    if done is None:
        write_json(out_dir / MANIFEST, {"settings": started, "finished": False})
        done = make_faces(out_dir, copies, seed)
        write_json(out_dir / MANIFEST, {"settings": started, "finished": True, **done})
    else:
        print(f"{out_dir}: is complete already, nothing to do")
    return report(out_dir, done)


def plan_copies(seed: int) -> list[Copy]:
    """Which faces are degraded, how and how much; the same for the same seed.

    Every identity gets every kind, on different faces of his; the strengths of each kind run evenly
    from LEAST_STRENGTH to 1 over the whole set.
    """
    rng = np.random.default_rng(seed)
    picked: list[tuple[int, int, str]] = []
    for identity in range(1, IDENTITIES + 1):
        numbers = 1 + rng.permutation(FACES_EACH)[:COPIES_EACH]
        for turn, number in enumerate(numbers):
            # The kinds that come twice move on from one identity to the next.
            kind = COPY_KINDS[(turn + identity * COPIES_EACH) % len(COPY_KINDS)]
            picked.append((identity, int(number), kind))
    copies = []
    for kind in COPY_KINDS:
        own = [(identity, number) for identity, number, k in picked if k == kind]
        strengths = rng.permutation(np.linspace(LEAST_STRENGTH, 1, len(own)))
        for (identity, number), strength in zip(own, strengths, strict=True):
            copies.append(Copy(identity, number, kind, round(float(strength), 4)))
    return sorted(copies, key=lambda copy: copy.path)


def make_faces(out_dir: Path, copies: list[Copy], seed: int) -> dict[str, Any]:
    """Aligns all faces and writes them and the copies; files that are there are left alone.

    Returns:
        "missed": paths of the faces that the detector did not find; "strengths": of every copy
        that was made, by its path.
    """
    from tqdm import tqdm

    from dataset.degradations import degrade

    by_face: dict[tuple[int, int], list[Copy]] = {}
    for copy in copies:
        by_face.setdefault((copy.identity, copy.number), []).append(copy)
    missed: list[str] = []
    strengths: dict[str, float] = {}
    bar = tqdm(total=IDENTITIES * FACES_EACH, desc="aligning", unit="face", file=sys.stderr)
    with bar:
        for identity, number, face in _aligned(out_dir):
            bar.update()
            path = _path(identity, number)
            if face is None:
                missed.append(path)
                continue
            _write(out_dir / path, face)
            for copy in by_face.get((identity, number), []):
                # Keyed by the face, so that a resumed run draws the same numbers.
                key = (seed, identity, number, COPY_KINDS.index(copy.kind))
                rng = np.random.default_rng(key)
                _write(out_dir / copy.path, degrade(face, copy.kind, copy.strength, rng))
                strengths[copy.path] = copy.strength
    return {"missed": missed, "strengths": strengths}


def report(out_dir: Path, done: dict[str, Any]) -> int:
    """Prints what there is now, and returns the exit code."""
    faces = IDENTITIES * FACES_EACH
    found = faces - len(done["missed"])
    print(f"{out_dir}: found and aligned {found}/{faces} faces of {IDENTITIES} identities")
    counts = {kind: sum(f".{kind}." in path for path in done["strengths"]) for kind in COPY_KINDS}
    by_kind = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"{out_dir}: made {sum(counts.values())} degraded copies: {by_kind}")
    for path in done["missed"]:
        note(f"{path}: no face found")
    return EXIT_SKIPPED if done["missed"] else EXIT_DONE


def _read_manifest(out_dir: Path, settings: dict[str, int]) -> dict[str, Any] | None:
    """What a finished run wrote; None where there is something left to do.

    Raises:
        UserError: the folder holds the faces of other settings.
    """
    path = out_dir / MANIFEST
    if not path.exists():
        return None
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("settings") != settings:
        raise UserError(f"{path}: was made with other settings; name another --out-dir")
    if not manifest.get("finished"):
        return None
    named = [_path(i, n) for i, n in _everyone() if _path(i, n) not in manifest["missed"]]
    complete = all((out_dir / name).is_file() for name in [*named, *manifest["strengths"]])
    return manifest if complete else None


def _aligned(out_dir: Path) -> Iterator[tuple[int, int, Image | None]]:
    """Identity, number and aligned face of all 400; None where no face is found."""
    from dataset.images import read_image
    from sdd_fiqa.alignment import FaceAligner
    from sdd_fiqa.assets import fetch
    from sdd_fiqa.cores import usable_cores
    from sdd_fiqa.errors import UnreadableImage

    source = fetch("orl")
    aligner = FaceAligner()

    def one(which: tuple[int, int]) -> Image | None:
        identity, number = which
        done = out_dir / _path(identity, number)
        if done.is_file():  # from an interrupted run
            try:
                return read_image(done)
            except UnreadableImage:
                done.unlink()
        found = aligner.align(read_image(source / f"s{identity}" / f"{number}.pgm"), most=1)
        return found[0][1] if found else None

    everyone = list(_everyone())
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for (identity, number), face in zip(everyone, pool.map(one, everyone), strict=True):
            yield identity, number, face
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun will not


def _everyone() -> Iterator[tuple[int, int]]:
    for identity in range(1, IDENTITIES + 1):
        for number in range(1, FACES_EACH + 1):
            yield identity, number


def _path(identity: int, number: int, kind: str = "") -> str:
    return f"s{identity:02d}/s{identity:02d}_{number:02d}{kind}.png"


def _write(path: Path, face: Image) -> None:
    from dataset.images import encode_face

    if path.is_file():
        return
    with replacing(path, "wb") as file:
        file.write(encode_face(face, ".png"))


if __name__ == "__main__":
    run_script(main)
