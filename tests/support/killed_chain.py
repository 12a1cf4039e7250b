"""Runs each stage of the chain undisturbed, and killed again and again; the files must be equal.

    python tests/support/killed_chain.py FOLDER RECOGNISER --kills 3 --seed 0

FOLDER holds faces/. A stage kills itself (SIGKILL) at a random one of the moments at which it opens
a file for writing, renames or removes one. Stages are forked, so that torch is imported once.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GENERATE = "generate_pseudo_labels"
CPU = ("--device", "cpu")
SAME = ("DATA.label", "DATA.labelpath", "quality_pseudo_labels.txt", "w_distances.txt")
RESUMED = ("extract_feats.py", "train.py", "eval.py")
CHANGES = ("os.rename", "os.remove", "os.truncate", "os.link")


def stages(recogniser: str) -> dict[str, list[str]]:
    """The chain's commands by their script."""
    training = ["--epochs", "1", "--batch-size", "8", "--val-identities", "0", "--num-workers", "1"]
    model = ["--model", "checkpoints/sdd_fiqa/last_network.pth"]
    return {
        f"{GENERATE}/gen_datalist.py": ["--data-root", "faces"],
        f"{GENERATE}/extract_embedding/extract_feats.py": [
            *("--weights", recogniser, "--backbone", "MFN", "--batch-size", "4", *CPU)
        ],
        f"{GENERATE}/gen_pseudo_labels.py": ["--fix-num", "4", *CPU],
        "train.py": ["--backbone", "MFN", *training, "--save-minutes", "1e-9", *CPU],
        "eval.py": ["faces", *model, "--batch-size", "4", *CPU],
    }


def run(script: str, arguments: list[str], folder: Path, kill_at: int = 0) -> tuple[int, int]:
    """Runs a stage in a child; returns its exit code, and how many moments it had for a kill."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.chdir(folder)
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        sys.argv = [str(ROOT / script), *arguments]
        moments = 0

        def count(event: str, values: tuple[Any, ...]) -> None:
            nonlocal moments
            writes = event == "open" and isinstance(values[2], int) and values[2] & os.O_ACCMODE
            if (writes and str(values[0]) != "/dev/null") or event in CHANGES:
                moments += 1
                os.write(write, b".")
                if moments == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        code = 1
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    os.close(write)
    moments = 0
    while part := os.read(read, 1 << 16):
        moments += len(part)
    os.close(read)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), moments


def differing(left: Path, right: Path) -> list[str]:
    """The files of two runs that are not equal, and temporary files that stayed."""
    wrong = []
    for name in (*SAME, "feats_npy/Embedding_Features.npy", "feats_npy/Embedding_Norms.npy"):
        files = [folder / "annotations" / name for folder in (left, right)]
        if files[0].exists() and not (files[1].exists() and same_bytes(*files)):
            wrong.append(name)
    files = [folder / "scores.csv" for folder in (left, right)]
    if files[0].exists() and not same_bytes(*files):
        wrong.append("scores.csv")
    checkpoints = sorted((left / "checkpoints").rglob("net_*.pth"))
    for path in checkpoints:
        if not same_network(path, right / path.relative_to(left)):
            wrong.append(path.name)
    return wrong + [str(path) for path in right.rglob("*.tmp")]


def same_bytes(left: Path, right: Path) -> bool:
    """Whether two files are equal."""
    return left.read_bytes() == right.read_bytes()


def same_network(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold equal weights."""
    import torch

    if not right.exists():
        return False
    one, two = (torch.load(path, weights_only=True) for path in (left, right))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("recogniser")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard

    torch.set_num_threads(1)
    random = np.random.default_rng(chosen.seed)
    calm, killed = chosen.folder / "calm", chosen.folder / "killed"
    for folder in (calm, killed):
        folder.mkdir()
        (folder / "faces").symlink_to((chosen.folder / "faces").resolve())
    failed = 0
    for script, arguments in stages(chosen.recogniser).items():
        code, moments = run(script, arguments, calm)
        if code:
            print(
                f"{script}: undisturbed, it ends with {code}: {(calm / 'log').read_text()[-2000:]}"
            )
            return 1
        # Where a run resumes, kills are spread over all of the work: else the first ends it.
        spread = max(4, 2 * moments // chosen.kills) if script.endswith(RESUMED) else moments
        done = tried = 0
        while done < chosen.kills and tried < 2 * chosen.kills:
            tried += 1
            code, _ = run(script, arguments, killed, 1 + int(random.integers(spread)))
            done += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                failed += 1
                print(f"{script}: after {done} kills: {(killed / 'log').read_text()[-2000:]}")
        code, _ = run(script, arguments, killed)
        wrong = differing(calm, killed)
        failed += bool(code or wrong)
        print(f"{script}: {done} kills of {moments} moments, then {code}; {wrong or 'equal'}")
        if script == "train.py":
            for folder in (calm, killed):
                found = folder / "checkpoints/sdd_fiqa/net_1epoch.pth"
                shutil.copy(found, found.with_name("last_network.pth"))
                shutil.copy(found.with_suffix(".json"), found.with_name("last_network.json"))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
