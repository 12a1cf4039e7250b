"""How fast labels are made, against a plain reference and against the machine itself.

    python benchmarks/speed_labels.py                                  200,000 images
    python benchmarks/speed_labels.py --images 2000000
    python benchmarks/speed_labels.py --images 5000000 --images-per-id 5
    python benchmarks/speed_labels.py --device cuda                    also with rows on the GPU

It makes synthetic float16 embeddings in a temporary folder. The plain reference runs on some
images; the whole command (process start to files on disk) runs on all. The same run measures how
fast the machine multiplies and reads, which gives the limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.cli import EXIT_DONE, run_script
from common.cpu import one_blas_thread
from sdd_fiqa.cores import usable_cores
from sdd_fiqa.errors import UserError

_REFERENCE_IMAGES = 100
_IN_BETWEEN = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
_ROOT = Path(__file__).resolve().parent.parent


def main(
    *,
    images: int = 200_000,
    images_per_id: int = 10,
    dimension: int = 512,
    runs: int = 3,
    device: str = "cpu",
    folder: Path | None = None,
) -> int:
    """Measures gen_pseudo_labels.

    Args:
        images: size of the set.
        images_per_id: images of each identity.
        dimension: length of an embedding.
        runs: how often each command runs; the best counts.
        device: cpu or cuda.
        folder: the set is made here and kept; without it, a temporary folder is used.
    """
    one_blas_thread()
    with tempfile.TemporaryDirectory() as temporary:
        target = folder or Path(temporary)
        make_set(target, images, images_per_id, dimension)
        plain = time_reference(target, images_per_id)
        print(f"plain reference: {plain:,.0f} images/s ({_REFERENCE_IMAGES} images, 12 x 24)")
        flops, reading = time_machine(target, dimension)
        threads = usable_cores()
        print(f"machine: {flops / 1e9:,.0f} GFLOP/s float32 and {reading / 1e9:.1f} GB/s read on")
        print(f"  {threads} threads")
        for estimator, products, passes in (("sampled", 288, 1), ("exact", 1024, 2)):
            # Every implementation of this estimator needs these products and reads these bytes.
            least = 2 * products * dimension / flops + passes * 2 * dimension / reading
            best, peak = min(time_command(target, estimator, device) for _ in range(runs))
            rate = images / best
            arrays = images * (4 + 4 * (12 + 3 if estimator == "sampled" else 4)) / 1e6
            print(
                f"{estimator}: {best:.2f} s, {rate:,.0f} images/s, {rate / plain:,.0f} x the plain "
                f"reference, {rate * least:.0%} of the machine's limit; peak memory {peak:.0f} MB "
                f"({peak - arrays:.0f} MB above identities and results)"
            )
        if device.startswith("cuda"):
            time_resident(target, images, dimension, device)
    return EXIT_DONE


def make_set(folder: Path, images: int, images_per_id: int, dimension: int) -> None:
    """Writes DATA.labelpath and float16 unit rows: each identity spreads around a centre."""
    import numpy as np

    (folder / "feats_npy").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    common = 0.3 * rng.standard_normal(dimension, np.float32)
    with open(folder / "feats_npy" / "Embedding_Features.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (images, dimension)}
        np.lib.format.write_array_header_1_0(file, header)
        block = 4096 * images_per_id
        for start in range(0, images, block):
            count = min(block, images - start)
            centres = rng.standard_normal((-(-count // images_per_id), dimension), np.float32)
            rows = rng.standard_normal((count, dimension), np.float32)
            rows *= rng.uniform(0.6, 1.6, (count, 1)).astype(np.float32)
            rows += centres.repeat(images_per_id, axis=0)[:count] + common
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            file.write(rows.astype(np.float16).tobytes())
    with open(folder / "DATA.labelpath", "w", encoding="utf-8") as text:
        for row in range(images):
            person = row // images_per_id
            text.write(f"faces/id{person:07d}/{row % images_per_id:04d}.jpg\t{person}\n")


def time_reference(folder: Path, images_per_id: int) -> float:
    """Images/s of the published method: 12 times draw, compare and sort, image by image."""
    import numpy as np
    from scipy.stats import wasserstein_distance

    f = np.load(folder / "feats_npy" / "Embedding_Features.npy", mmap_mode="r")
    n, rng = len(f), np.random.default_rng(0)
    begin = time.perf_counter()
    for i in range(_REFERENCE_IMAGES):
        first = i // images_per_id * images_per_id
        same = np.setdiff1d(np.arange(first, first + images_per_id), [i])
        x = f[i].astype(np.float32)
        for _ in range(12):
            positives = rng.choice(same, min(24, len(same)), replace=False)
            negatives: list[int] = []
            while len(negatives) < 24:
                j = int(rng.integers(n))
                if not first <= j < first + images_per_id and j not in negatives:
                    negatives.append(j)
            wasserstein_distance(
                f[positives].astype(np.float32) @ x, f[negatives].astype(np.float32) @ x
            )
    return _REFERENCE_IMAGES / (time.perf_counter() - begin)


def time_machine(folder: Path, dimension: int) -> tuple[float, float]:
    """Float32 operations/s of such products, and bytes/s of plain reading, on all cores."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((1024, dimension), np.float32)
    b = np.random.default_rng(1).standard_normal((4096, dimension), np.float32)
    file = folder / "feats_npy" / "Embedding_Features.npy"
    piece = min(file.stat().st_size, 1 << 28)

    def multiply() -> float:
        for _ in range(5):
            a @ b.T
        return 5 * 2.0 * len(a) * len(b) * dimension

    def read() -> float:
        buffer = bytearray(1 << 22)
        with open(file, "rb", buffering=0) as handle:
            total = 0
            while total < piece and (count := handle.readinto(buffer)):
                total += count
        return float(total)

    return _rate_on_all_cores(multiply), _rate_on_all_cores(read)


def _rate_on_all_cores(work: Callable[[], float]) -> float:
    """Amount per second with one thread per core, best of five."""
    best = 0.0
    for _ in range(5):
        with ThreadPoolExecutor(usable_cores()) as pool:
            begin = time.perf_counter()
            amounts = list(pool.map(lambda _: work(), range(usable_cores())))
            best = max(best, sum(amounts) / (time.perf_counter() - begin))
    return best


def time_command(folder: Path, estimator: str, device: str) -> tuple[float, float]:
    """Seconds of the whole command, and its peak memory in MB."""
    script = _ROOT / "generate_pseudo_labels" / "gen_pseudo_labels.py"
    command = [sys.executable, str(script), "--out-dir", str(folder), "--estimator", estimator]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    # A process inherits the memory peak of its parent; a small parent in between avoids that.
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _IN_BETWEEN, *command, "--device", device],
        env=environment,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {done.stderr[-300:]}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def time_resident(folder: Path, images: int, dimension: int, device: str) -> None:
    """Images/s with the embeddings in GPU memory; also its matrix rate and copy bandwidth."""
    import numpy as np
    import torch

    from dataset.lists import read_labelpath
    from generate_pseudo_labels.distance.array_backend import TorchArrays
    from generate_pseudo_labels.distance.blocks import group_by_identity
    from generate_pseudo_labels.label_settings import LabelSettings
    from generate_pseudo_labels.similarity_distance import similarity_distances

    rows = torch.from_numpy(np.load(folder / "feats_npy" / "Embedding_Features.npy")).to(device)
    groups = group_by_identity(read_labelpath(folder / "DATA.labelpath")[1])
    big = torch.randn(8192, 8192, device=device)
    flops = 2 * 8192**3 / _seconds(lambda: big @ big, device)
    copy = 2 * rows.nbytes / _seconds(lambda: rows.clone(), device)
    print(f"{device}: {flops / 1e12:.1f} TFLOP/s float32, copies {copy / 1e12:.2f} TB/s")
    for estimator, products, passes in (("sampled", 288, 1), ("exact", 1024, 2)):

        def run(estimator: Any = estimator) -> None:
            similarity_distances(
                rows,
                groups,
                LabelSettings(estimator),
                arrays=TorchArrays(device),
                threads=usable_cores(),
            )

        rate = images / _seconds(run, device)
        least = 2 * products * dimension / flops + passes * 2 * dimension / copy
        print(
            f"{estimator}, rows on the GPU: {rate:,.0f} images/s, {rate * least:.0%} of its limit"
        )


def _seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of the best of three runs, after one to warm up."""
    import torch

    best = float("inf")
    for attempt in range(4):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        if attempt:
            best = min(best, time.perf_counter() - begin)
    return best


if __name__ == "__main__":
    run_script(main)
