"""The steps of a run: how many there are, how many are done, which rows belong to each process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdd_fiqa.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The arithmetic of steps.

    Attributes:
        local_batch: images of a step in one process.
        processes: their number.
        steps: steps of an epoch. The images left over are not used in that epoch.
        epochs: epochs of the run.
    """

    local_batch: int
    processes: int
    steps: int
    epochs: int

    @classmethod
    def of(cls, images: int, batch_size: int, processes: int, epochs: int) -> Plan:
        """Plans epochs of `images` images; a list smaller than a batch becomes one batch.

        Raises:
            UserError: a step would have fewer than 2 images a process (BatchNorm needs 2).
        """
        local = min(batch_size, images // processes)
        if local < 2:
            raise UserError(
                f"--img-list: too few training images ({images}); each process needs 2 at least"
            )
        return cls(local, processes, images // (local * processes), epochs)

    @property
    def global_batch(self) -> int:
        """Images of a step in all processes together."""
        return self.local_batch * self.processes

    def steps_done(self, position: Position) -> int:
        """Steps from the beginning of the run to a position."""
        return position.epoch * self.steps + position.step

    def own_rows(
        self, order: npt.NDArray[np.int64], rank: int, first_step: int = 0
    ) -> npt.NDArray[np.int64]:
        """The rows that process `rank` takes from an epoch's order, from step `first_step` on.

        A global batch is the same for any number of processes; each takes its slice of it.
        """
        used = order[: self.steps * self.global_batch]
        slices = used.reshape(self.steps, self.processes, self.local_batch)
        return slices[first_step:, rank].ravel()


@dataclass
class Position:
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the current epoch.
        best: the best measure so far, larger is better; -inf before the first.
    """

    epoch: int = 0
    step: int = 0
    best: float = -math.inf

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step}"
