"""What an estimator finds out about images, and the labels that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.blocks import Plan

Float32 = npt.NDArray[np.float32]
Progress = Callable[[float], object]

# An image whose wrong-way share is above this is called mislabelled, and so is one whose mean
# Pos-Sim is below its mean Neg-Sim (its share is above one half). The similarities of a stranger to
# an identity lie close together, at one random place among his Neg-Sims: above their mean as often
# as below it. For normal Neg-Sims this bound finds him up to 1.1 standard deviations above.
WRONG_WAY_BOUND = 0.05
_GATHERED = 1 << 22  # numbers sent at a time


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


def gather(processes: ProcessGroup, begin: int, part: Distances, images: int) -> Distances | None:
    """All images' distances on rank 0, None elsewhere; each process has those from `begin`.

    Each element is set by one process and 0 elsewhere, so the order of the sum changes nothing.
    """
    if processes.size == 1:
        return part
    repeats = part.w1.shape[1]
    whole = Distances.empty(images, repeats) if processes.first else None
    end = begin + len(part.pos)
    step = max(1, _GATHERED // (repeats + 3))
    for start in range(0, images, step):
        stop = min(start + step, images)
        piece = np.zeros((stop - start, repeats + 3), np.float32)
        low, high = max(start, begin), min(stop, end)
        if low < high:
            mine, into = slice(low - begin, high - begin), slice(low - start, high - start)
            piece[into, :repeats] = part.w1[mine]
            for column, values in enumerate((part.pos, part.neg, part.wrong)):
                piece[into, repeats + column] = values[mine]
        processes.add_up(piece, first_only=True)
        if whole is not None:
            columns = (piece[:, repeats + column] for column in range(3))
            whole.put(start, Distances(piece[:, :repeats], *columns))
    return whole


class Estimator(Protocol):
    """Anything that knows the distances of blocks of images."""

    def distances(self, numbers: range) -> Distances:
        """The distances of the images of consecutive blocks."""


def run_blocks(
    estimator: Estimator,
    plan: Plan,
    blocks: range,
    repeats: int,
    over: OnThreads,
    share: float = 1.0,
) -> Distances:
    """Runs an estimator over blocks; the results are in order.

    Args:
        estimator: what computes a batch.
        plan: the blocks of the set.
        blocks: those to do.
        repeats: columns of W1.
        over: the threads, and who is told of progress.
        share: how much of an image's whole work this is.
    """
    begin, end = int(plan.bounds[blocks.start]), int(plan.bounds[blocks.stop])
    results = Distances.empty(end - begin, repeats)

    def work(batch: range) -> None:
        results.put(int(plan.bounds[batch.start]) - begin, estimator.distances(batch))

    over.run(work, blocks, share)
    return results


@dataclass(frozen=True)
class OnThreads:
    """Runs work over consecutive blocks, batch by batch.

    Attributes:
        plan: the blocks of the set.
        batch_rows: images of a batch, about; changes speed and memory, never a result.
        threads: batches worked on at a time.
        progress: told the number of images of each batch that is done.
    """

    plan: Plan
    batch_rows: int
    threads: int = 1
    progress: Progress | None = None

    def run(self, work: Callable[[range], None], blocks: range, share: float = 1.0) -> None:
        """Calls `work` for every batch of `blocks`; the first exception ends it.

        Args:
            work: takes a range of blocks; runs on any thread.
            blocks: all of them.
            share: how much of an image's whole work this is, for the progress.
        """
        with ThreadPoolExecutor(self.threads) as pool:
            running: set[Future[None]] = set()
            sizes: dict[Future[None], int] = {}
            try:
                for batch in self.plan.batches(blocks, self.batch_rows):
                    future = pool.submit(work, batch)
                    running.add(future)
                    bounds = self.plan.bounds
                    sizes[future] = int(bounds[batch.stop] - bounds[batch.start])
                    if len(running) > self.threads:  # one for each thread, and one waiting
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        self._report(done, sizes, share)
                self._report(running, sizes, share)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _report(
        self, done: set[Future[None]], sizes: dict[Future[None], int], share: float
    ) -> None:
        for future in done:
            future.result()  # raises what the batch raised
            count = sizes.pop(future)
            if self.progress is not None:
                self.progress(count * share)


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
        raise ValueError(
            "no image is left to label: it takes identities of two readable images or more, and of "
            "--min-images-per-id; add images, or ask for fewer"
        )
    labels = np.zeros(len(w1), np.float64)
    for k in range(w1.shape[1]):
        column = w1[labelled, k].astype(np.float64)
        low, high = column.min(), column.max()
        if not high > low:
            raise ValueError("all distances are equal, so they cannot be put on a scale")
        labels[labelled] += (column - low) * (100 / (high - low) / w1.shape[1])
    labels[~labelled] = np.nan
    return labels.astype(np.float32)


def with_level_identities(w1: Float32, starts: npt.NDArray[np.int64]) -> Float32:
    """Distances on one scale for all identities: each identity's upper quartile becomes the same.

    How alike the pictures of a person are depends on the person (years apart, one film or many)
    as well as on the pictures, and no single picture shows it. A network that learns labels with it
    inside learns people. Zero, which is a face that is as far from its own as from others, stays.

    Args:
        w1: (n, K).
        starts: (C + 1,) identity c is the rows starts[c] .. starts[c + 1].

    Returns:
        (n, K): each identity's distances times the mean of all identities' upper quartiles over its
        own; an identity without any distance above zero stays as it is.
    """
    sizes = np.diff(starts)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    mean = np.zeros(len(w1), np.float32)
    for k in range(w1.shape[1]):
        mean += w1[:, k] / w1.shape[1]
    ordered = mean[np.lexsort((mean, identity))]
    quartile = ordered[starts[:-1] + 3 * (sizes - 1) // 4].astype(np.float64)
    known = quartile > 0  # False for NaN, too
    if not known.any():
        return w1
    factor = np.ones(len(sizes))
    factor[known] = quartile[known].mean() / quartile[known]
    levelled: Float32 = w1 * np.repeat(factor, sizes)[:, None].astype(np.float32)
    return levelled


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
