"""What an estimator finds out about images, and the labels that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.draws import Plan

Float32 = npt.NDArray[np.float32]
Progress = Callable[[int], object]

# An image whose wrong-way share is above this is called mislabelled, and so is one whose mean
# Pos-Sim is below its mean Neg-Sim (whose share is above one half). With a quarter, half as much
# similarity mass lies the wrong way round as the right one.
WRONG_WAY_BOUND = 0.25


@dataclass(frozen=True)
class Distances:
    """Results of n images.

    Attributes:
        w1: (n, K) W1(P_i, N_i) of each repeat, one for an estimator without repeats; NaN for an
            image without mates.
        pos: (n,) mean Pos-Sim.
        neg: (n,) mean Neg-Sim.
        wrong: (n,) wrong-way share: integral (N^-1 - P^-1)+ / W1, in [0, 1].
    """

    w1: Float32
    pos: Float32
    neg: Float32
    wrong: Float32

    @staticmethod
    def empty(images: int, repeats: int) -> Distances:
        """Room for results, NaN so far."""
        w1 = np.full((images, repeats), np.nan, np.float32)
        return Distances(w1, *(np.full(images, np.nan, np.float32) for _ in range(3)))

    def put(self, start: int, part: Distances) -> None:
        """Copies the results of consecutive images in."""
        stop = start + len(part.pos)
        self.w1[start:stop] = part.w1
        self.pos[start:stop], self.neg[start:stop] = part.pos, part.neg
        self.wrong[start:stop] = part.wrong

    def mislabelled(self) -> npt.NDArray[np.bool_]:
        """(n,) whether an image looks more like others than like its own identity."""
        flagged: npt.NDArray[np.bool_] = (self.pos < self.neg) | (self.wrong > WRONG_WAY_BOUND)
        return flagged


class Estimator(Protocol):
    """Anything that knows the distances of blocks of images."""

    def distances(self, numbers: range) -> Distances:
        """The distances of the images of consecutive blocks."""


def run_blocks(
    estimator: Estimator,
    plan: Plan,
    blocks: range,
    *,
    batch_rows: int,
    repeats: int,
    threads: int = 1,
    progress: Progress | None = None,
) -> Distances:
    """Runs an estimator over blocks, batch by batch, on threads; the results are in order.

    Args:
        estimator: what computes a batch.
        plan: the blocks of the set.
        blocks: those to do.
        batch_rows: images of a batch, about; changes speed and memory, never a result.
        repeats: columns of W1.
        threads: batches worked on at a time.
        progress: told the number of images of each batch that is done.
    """
    begin, end = int(plan.bounds[blocks.start]), int(plan.bounds[blocks.stop])
    results = Distances.empty(end - begin, repeats)

    def work(batch: range) -> int:
        start = int(plan.bounds[batch.start])
        part = estimator.distances(batch)
        results.put(start - begin, part)
        return len(part.pos)

    batches = plan.batches(blocks, batch_rows)
    with ThreadPoolExecutor(threads) as pool:
        running: set[Future[int]] = set()
        try:
            for batch in batches:
                running.add(pool.submit(work, batch))
                if len(running) > threads:  # a batch in hand for each thread, one waiting
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    report(done, progress)
            report(running, progress)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def report(done: set[Future[int]], progress: Progress | None) -> None:
    """Passes on what finished batches raised, and how many images they had."""
    for future in done:
        count = future.result()
        if progress is not None:
            progress(count)


def quality_labels(w1: Float32, labelled: npt.NDArray[np.bool_]) -> Float32:
    """Distances -> labels 0..100: min-max per repeat over the labelled images, then the mean.

    Args:
        w1: (n, K).
        labelled: (n,) which images get a label; the others neither get one nor set the range.

    Returns:
        (n,) float32; NaN where `labelled` is False.

    Raises:
        ValueError: in some repeat all distances are equal (or there are none).
    """
    if not labelled.any():
        raise ValueError("no image is left to label")
    labels = np.zeros(len(w1), np.float64)
    for k in range(w1.shape[1]):
        column = w1[labelled, k].astype(np.float64)
        low, high = column.min(), column.max()
        if not high > low:
            raise ValueError("all distances are equal, so they cannot be put on a scale")
        labels[labelled] += (column - low) * (100 / (high - low) / w1.shape[1])
    labels[~labelled] = np.nan
    return labels.astype(np.float32)


def drop_top(
    labels: Float32, labelled: npt.NDArray[np.bool_], percent: float
) -> npt.NDArray[np.bool_]:
    """(n,) the best `percent` of the labelled images; of equal labels, the later ones."""
    dropped = np.zeros(len(labels), bool)
    count = int(np.floor(np.count_nonzero(labelled) * percent / 100))
    if count:
        rows = np.flatnonzero(labelled)
        dropped[rows[np.argsort(labels[rows], kind="stable")[-count:]]] = True
    return dropped
