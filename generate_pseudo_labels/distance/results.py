"""What an estimator computes for every image, and how its blocks are run on threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Float32, Mask
from generate_pseudo_labels.distance.blocks import BlockBatch, BlockPlan

Progress = Callable[[float], object]

# An image whose share of negative excess is above this is called mislabelled, and so is one whose
# mean Pos-Sim is below its mean Neg-Sim (its share is above one half). A stranger's similarities to
# an identity are close together, at a random place among his Neg-Sims: below their mean as often as
# above it. For normal Neg-Sims this bound finds him up to 1.1 standard deviations above the mean.
EXCESS_BOUND = 0.05


@dataclass(frozen=True)
class Distances:
    """Results of n images.

    Attributes:
        w1: (n, K) W1(P_i, N_i) of each repeat, one for an estimator without repeats; NaN for an
            image without mates.
        pos: (n,) mean Pos-Sim.
        neg: (n,) mean Neg-Sim.
        excess: (n,) share of the negative excess: integral (N^-1 - P^-1)+ / W1, in [0, 1].
    """

    w1: Float32
    pos: Float32
    neg: Float32
    excess: Float32

    @staticmethod
    def empty(images: int, repeats: int) -> Distances:
        """Room for results, NaN so far."""
        w1 = np.full((images, repeats), np.nan, np.float32)
        return Distances(w1, *(np.full(images, np.nan, np.float32) for _ in range(3)))

    def columns(self) -> list[Float32]:
        """K + 3 columns (n,), as views: the repeats of W1, and the others."""
        return [*self.w1.T, self.pos, self.neg, self.excess]

    def put(self, start: int, part: Distances) -> None:
        """Copies the results of consecutive images in."""
        for into, values in zip(self.columns(), part.columns(), strict=True):
            into[start : start + len(values)] = values

    def mislabelled(self) -> Mask:
        """(n,) whether an image looks more like others than like its own identity."""
        flagged: Mask = (self.pos < self.neg) | (self.excess > EXCESS_BOUND)
        return flagged


def gather(processes: ProcessGroup, begin: int, part: Distances, images: int) -> Distances | None:
    """All images' distances on rank 0, None elsewhere; each process has those from `begin`.

    Each element is set by one process and 0 elsewhere, so the order of the sum changes nothing.
    """
    if processes.size == 1:
        return part
    whole = Distances.empty(images if processes.first else 0, part.w1.shape[1])
    for into, mine in zip(whole.columns(), part.columns(), strict=True):
        values = np.zeros(images, np.float32)
        values[begin : begin + len(mine)] = mine
        processes.add_up(values, first_only=True)
        into[:] = values[: len(into)]
    return whole if processes.first else None


@dataclass(frozen=True)
class BlockRunner:
    """Runs work over this process's blocks, batch by batch, on threads.

    Attributes:
        plan: the blocks of the set.
        blocks: those of this process.
        batch_rows: images of a batch, about; changes speed and memory, never a result.
        threads: batches worked on at a time.
        progress: is told the number of images of each batch that is done.
    """

    plan: BlockPlan
    blocks: range
    batch_rows: int
    threads: int = 1
    progress: Progress | None = None

    @property
    def begin(self) -> int:
        """The position of the first image."""
        return int(self.plan.bounds[self.blocks.start])

    def collect(
        self, distances: Callable[[BlockBatch], Distances], repeats: int, weight: float = 1.0
    ) -> Distances:
        """The distances of all blocks, in order; `distances` runs on any thread.

        `repeats` is the number of columns of W1, `weight` the share of an image's whole work.
        """
        end = int(self.plan.bounds[self.blocks.stop])
        results = Distances.empty(end - self.begin, repeats)

        def work(batch: BlockBatch) -> None:
            results.put(batch.begin - self.begin, distances(batch))

        self.run(work, weight)
        return results

    def run(self, work: Callable[[BlockBatch], None], weight: float = 1.0) -> None:
        """Calls `work` for every batch of blocks; the first exception ends it."""

        def images_done(numbers: range) -> int:
            batch = self.plan.batch(numbers)
            work(batch)
            return batch.end - batch.begin

        with ThreadPoolExecutor(self.threads) as pool:
            for images in pool.map(images_done, self.plan.batches(self.blocks, self.batch_rows)):
                if self.progress is not None:
                    self.progress(images * weight)
