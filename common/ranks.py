"""Several processes under torchrun: who this is, and the sums they make together.

Only sums cross the wire: of integers, or of arrays of which each element is set by one process
and zero elsewhere, so their order cannot change a result.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.results import Distances

_PIECE = 1 << 22  # numbers sent at a time


class Ranks:
    """One process (rank 0 of 1) or one of torchrun's; torch is imported for the latter alone.

    Attributes:
        rank: this process's number.
        count: how many there are.
        local: its number on this machine.
        local_count: how many run on this machine.
    """

    def __init__(self) -> None:
        """Reads torchrun's variables and meets the other processes."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.local = int(os.environ.get("LOCAL_RANK", "0"))
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._torch: Any = None
        if self.count > 1:
            import torch
            import torch.distributed

            self._torch = torch
            # The arrays that are added up lie in host memory, whatever device computed them.
            # The default's half hour is soon over where one process gathers files for all.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))

    def __enter__(self) -> Ranks:
        """Itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leaves the group; after an error at once, as the others may never come."""
        if self._torch is not None and kind is None:
            self._torch.distributed.destroy_process_group()

    def add_up(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over all processes, on each of them; in place."""
        if self._torch is not None:
            flat = array.reshape(-1)
            for start in range(0, len(flat), _PIECE):
                tensor = self._torch.from_numpy(flat[start : start + _PIECE])
                self._torch.distributed.all_reduce(tensor)
        return array

    def gather(self, begin: int, part: Distances, images: int) -> Distances | None:
        """All images' distances on rank 0, None elsewhere; each process has those from `begin`."""
        if self._torch is None:
            return part
        repeats = part.w1.shape[1]
        whole = Distances.empty(images, repeats) if self.rank == 0 else None
        end = begin + len(part.pos)
        step = max(1, _PIECE // (repeats + 3))
        for start in range(0, images, step):
            stop = min(start + step, images)
            piece = np.zeros((stop - start, repeats + 3), np.float32)
            low, high = max(start, begin), min(stop, end)
            if low < high:
                mine, into = slice(low - begin, high - begin), slice(low - start, high - start)
                piece[into, :repeats] = part.w1[mine]
                for column, values in enumerate((part.pos, part.neg, part.wrong)):
                    piece[into, repeats + column] = values[mine]
            tensor = self._torch.from_numpy(piece)
            self._torch.distributed.reduce(tensor, 0)
            if whole is not None:
                columns = (piece[:, repeats + column] for column in range(3))
                whole.put(start, Distances(piece[:, :repeats], *columns))
        return whole
