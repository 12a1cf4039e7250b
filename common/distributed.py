"""The processes of one torchrun, or the one process there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sdd_fiqa.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `size` processes; `rank` 0 reports and writes."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for every process; nothing to wait for in a world of one."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def share(self, count: int) -> range:
        """This process's contiguous part of `count` things; the parts differ by one at most."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def any(self, flag: bool) -> bool:
        """Whether any process says yes; every process must ask."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        asked = torch.tensor(float(flag), device=device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked.item())

    def total(self, count: int) -> int:
        """The sum over the processes; every process must ask."""
        if self.size == 1:
            return count
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        asked = torch.tensor(count, device=device)
        dist.all_reduce(asked)
        return int(asked.item())

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number; every process must ask."""
        return not self.any(self.total(number) != number * self.size)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over the processes; every process must ask."""
        if self.size > 1:
            import torch.distributed as dist

            value = value.clone()
            dist.all_reduce(value)
        return float(value.item()) / self.size


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Joins the process group that torchrun describes; a world of one without torchrun.

    Args:
        device: as given to `--device`; nccl where it means a GPU, gloo on the CPU.

    Raises:
        UserError: not a device of this machine, or one GPU named for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(0, 1)
        return
    import torch.distributed as dist

    from common.device import choose_compute

    chosen = choose_compute(device).device
    on_gpu = chosen.type == "cuda"
    if on_gpu and ":" in device and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UserError(f"--device {device}: every process needs a GPU of its own; use cuda")
    # The first to finish waits for the last: shares of hours differ by more than the default's
    # minutes. A process that dies is torchrun's to notice, and it ends the others.
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(days=1),
        device_id=chosen if on_gpu else None,  # else nccl guesses at a barrier
    )
    yield ProcessGroup(dist.get_rank(), size)
    # Not after an error: nccl waits in here for processes that wait for this one, and what was
    # wrong would never be said.
    dist.destroy_process_group()
