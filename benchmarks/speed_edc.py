"""How fast error-versus-discard curves are computed, against a plain way and the machine's limit.

    python benchmarks/speed_edc.py                                  9,000 images, as large as LFW
    python benchmarks/speed_edc.py --images 100000 --only-ours      5,000,000,000 pairs

The plain way keeps all similarities in memory; for each discarded share it selects the remaining
ones and partitions them. The limit is one matrix product of all pairs. The plain way needs it once.
Ours needs it twice: first to find where the thresholds are, then to find them exactly. All three
run on the same embeddings in one process, so compare the ratios.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt

from common.cli import run_script
from evaluation.edc.areas import areas
from evaluation.edc.curves import Rules, evaluate
from evaluation.edc.pairs import AllPairs, all_pairs
from evaluation.edc.thresholds import allowed_false_matches

FMRS = (1e-2, 1e-3, 1e-4)
BOTH = [
    Rules("recomputed", "images"),
    Rules("recomputed", "pairs"),
    Rules("fixed", "images"),
    Rules("fixed", "pairs"),
]


def main(
    images: int = 9_000,
    images_per_id: int = 6,
    dimension: int = 512,
    scorers: int = 5,
    repeats: int = 3,
    only_ours: bool = False,
) -> int:
    """Prints seconds and ratios.

    Args:
        images: size of the set.
        images_per_id: images of each identity.
        dimension: D, the length of an embedding.
        scorers: number of quality scores; each is evaluated at three FMRs under all four rules.
        repeats: runs; the best counts.
        only_ours: skip the plain way, which needs memory for all pairs.
    """
    features, identities, quality = made_faces(images, images_per_id, dimension)
    generator = np.random.default_rng(1)
    scores = {
        f"scorer {number}": quality + number * generator.normal(size=images)
        for number in range(scorers)
    }
    source = all_pairs(features, identities)
    gemm = best_of(repeats, lambda: all_products(source.features))
    ours = best_of(repeats, lambda: evaluate(source, scores, FMRS, BOTH))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pairs = images * (images - 1) // 2
    print(f"{images:,} images, {pairs:,} pairs, {scorers} scorers, 3 FMRs, 4 pairs of rules")
    print(f"one matrix product of all pairs   {gemm:8.2f} s")
    print(f"all curves                        {ours:8.2f} s   {ours / gemm:6.1f} products")
    print(f"peak memory                       {peak:8.2f} GiB")
    if only_ours:
        return 0
    found: list[dict[tuple[str, float], float]] = []
    plain = best_of(1, lambda: found.append(plain_way(source, scores)))
    print(f"the plain way, one pair of rules  {plain:8.2f} s")
    one = best_of(repeats, lambda: evaluate(source, scores, FMRS, BOTH[:1]))
    print(f"ours, the same                    {one:8.2f} s   {plain / one:6.1f} times as fast")
    curves = evaluate(source, scores, FMRS, BOTH[:1])
    worst = max(
        abs(areas(curves[name, fmr, BOTH[0]])["aoc"] - value)
        for (name, fmr), value in found[0].items()
    )
    print(f"largest difference in AOC         {worst:8.1e}")
    return 0


def made_faces(
    images: int, images_per_id: int, dimension: int
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Embeddings with noise of different strength; the quality is the negative noise."""
    generator = np.random.default_rng(0)
    identities = np.arange(images) // images_per_id
    centres = generator.normal(size=(identities[-1] + 1, dimension)).astype(np.float32)
    noise = generator.gamma(4.0, 0.22, size=images)
    features = np.empty((images, dimension), np.float16)
    for start in range(0, images, 4096):
        rows = slice(start, start + 4096)
        drawn = generator.normal(size=(len(noise[rows]), dimension)).astype(np.float32)
        mixed = centres[identities[rows]] + noise[rows, None] * drawn
        features[rows] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return features, identities, -noise


def all_products(features: npt.NDArray[np.float32]) -> None:
    """Computes every similarity above the diagonal and keeps none: the limit."""
    buffer = np.empty((1024, 8192), np.float32)
    for top in range(0, len(features), 1024):
        for left in range(top, len(features), 8192):
            rows, columns = features[top : top + 1024], features[left : left + 8192]
            block = buffer.ravel()[: len(rows) * len(columns)].reshape(len(rows), len(columns))
            np.matmul(rows, columns.T, out=block)


def plain_way(
    source: AllPairs, scores: dict[str, npt.NDArray[np.float64]]
) -> dict[tuple[str, float], float]:
    """AOC, images discarded and threshold recomputed, with every similarity in memory."""
    parts = list(source.impostors_above(-2.0))
    similarity = np.concatenate([part.similarity for part in parts])
    first = np.concatenate([part.first for part in parts])
    second = np.concatenate([part.second for part in parts])
    del parts
    genuine = source.genuine
    count = len(source.identities)
    aoc: dict[tuple[str, float], float] = {}
    for name, values in scores.items():
        rank = np.empty(count, np.int64)
        rank[np.argsort(values)] = np.arange(count)
        worse = np.minimum(rank[first], rank[second])
        worse_genuine = np.minimum(rank[genuine.first], rank[genuine.second])
        fnmr = np.zeros((96, len(FMRS)))
        for percent, (column, fmr) in product(range(96), enumerate(FMRS)):
            cut = percent * count // 100
            if column == 0:
                left = similarity[worse >= cut]
                own = genuine.similarity[worse_genuine >= cut]
            allowed = int(allowed_false_matches(fmr, np.array([len(left)]))[0])
            place = len(left) - allowed - 1
            threshold = np.nextafter(np.partition(left, place)[place], np.float32(2))
            fnmr[percent, column] = np.mean(own < threshold)
        shares = np.arange(96) * count // 100 / count
        for column, fmr in enumerate(FMRS):
            g = fnmr[:, column]
            whole = np.diff(shares) @ (g[1:] + g[:-1]) / 2 + (0.95 - shares[-1]) * g[-1]
            aoc[name, fmr] = float(1 - whole / g[0])
    return aoc


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    run_script(main)
