"""The long form of tests/faults: kills, damaged files, and hours of scoring.

    python benchmarks/soak.py kills     --faces faces/ --recogniser sface --count 20
    python benchmarks/soak.py mutations --count 10000
    python benchmarks/soak.py scoring   --faces faces/ --minutes 30

kills: each stage killed `count` times at random writes, and compared with an undisturbed run.
mutations: damaged files of each format, 30 s and 4 GiB each; a canary outside must not change.
scoring: eval's faces scored again and again while the folder changes; prints the slope of memory
after the first third, in MB a minute (below 1 is no leak), and of open files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tests" / "support"
FORMATS = (
    *("list", "scores.csv", "npy", "json", "journal", "part", "rec", "idx", "bin", "tar", "pth"),
    *("ckpt", "onnx", "jpg", "png", "webp", "bmp", "ppm", "tiff", "gif", "avif", "jp2"),
)


def main() -> int:
    """Runs one of the three; returns 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "mutations", "scoring"))
    parser.add_argument("--faces", type=Path, help="a folder of identity folders")
    parser.add_argument("--recogniser", default="sface")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    if chosen.what == "mutations":
        more = ("--count", chosen.count, "--seconds", 30, "--gib", 4, "--seed", chosen.seed)
        codes = [run("mutated_files.py", kind, *more) for kind in FORMATS]  # all of them
        return int(any(codes))
    if chosen.faces is None:
        parser.error("--faces: name a folder")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(chosen.faces, Path(folder) / "faces")
        if chosen.what == "kills":
            count = ("--kills", chosen.count, "--seed", chosen.seed)
            return run("killed_chain.py", folder, chosen.recogniser, *count)
        random = np.random.default_rng(chosen.seed)
        return int(score(Path(folder) / "faces", chosen.minutes, random) >= 1)


def run(script: str, *arguments: object) -> int:
    """The exit code of one of the tests' tools."""
    command = [sys.executable, str(TOOLS / script), *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    ).returncode


def score(faces: Path, minutes: float, random: np.random.Generator) -> float:
    """Scores a folder whose files come and go, in this process; MB a minute that it grows by."""
    from dataset.faces import Faces
    from dataset.find import find_images
    from dataset.left_out import Skipped
    from dataset.lists import table_of
    from models import load_quality_model

    model = load_quality_model("small", device="cpu")
    files = sorted(path for path in faces.rglob("*") if path.is_file())
    rows: list[tuple[float, float, int]] = []
    began = time.monotonic()
    while (now := (time.monotonic() - began) / 60) < minutes:
        path = files[int(random.integers(len(files)))]
        aside = path.with_name(f".{path.name}")
        aside.rename(path) if aside.exists() else path.rename(aside)
        table = table_of(find_images([str(faces)], Skipped()), faces.parent / "list")
        for batch in Faces(table, 64):
            model(batch.faces)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rows.append(
            (now, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")))
        )
    times, memory, handles = np.array(rows)[len(rows) // 3 :].T
    slopes = [float(np.polyfit(times, values, 1)[0]) for values in (memory, handles)]
    print(
        f"{len(rows)} passes in {minutes:g} minutes; {memory[-1]:.0f} MB, {handles[-1]:.0f} files"
    )
    print(f"slopes after the first third: {slopes[0]:.2f} MB and {slopes[1]:.3f} files a minute")
    return slopes[0]


if __name__ == "__main__":
    sys.exit(main())
