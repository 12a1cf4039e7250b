"""The processes of one torchrun, or the one process there is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy.typing as npt

from common.cli import EXIT_USER_ERROR, fail, first_to_report
from sdd_fiqa.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 22  # numbers sent at a time
_NOTICED = 2.0  # seconds in which the end of a process shows after its connections are gone


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `size` processes; `rank` 0 reports and writes.

    With one process nothing is sent, and torch is not imported. With more, every process must call
    the same method.

    Attributes:
        rank: this process's number.
        size: how many processes there are.
        local_size: how many processes run on this machine.
    """

    rank: int
    size: int
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for every process."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def share(self, count: int) -> range:
        """This process's contiguous part of `count` things; the parts differ by one at most."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return self.total(int(flag)) > 0

    def total(self, count: int) -> int:
        """The sum over the processes."""
        if self.size == 1:
            return count
        import torch
        import torch.distributed as dist

        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        asked = torch.tensor(count, device=device)
        dist.all_reduce(asked)
        return int(asked.item())

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        return not self.any(self.total(number) != number * self.size)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over the processes."""
        if self.size > 1:
            import torch.distributed as dist

            value = value.clone()
            dist.all_reduce(value)
        return float(value.item()) / self.size

    def add_up(self, array: npt.NDArray[Any], first_only: bool = False) -> npt.NDArray[Any]:
        """The sum of an array over the processes, in place; needs a group of `host_arrays`.

        Args:
            array: of the same shape and type in every process.
            first_only: only the first process needs the sum.
        """
        if self.size > 1:
            import torch
            import torch.distributed as dist

            flat = array.reshape(-1)
            for start in range(0, len(flat), _PIECE):
                tensor = torch.from_numpy(flat[start : start + _PIECE])
                if first_only:
                    dist.reduce(tensor, 0)
                else:
                    dist.all_reduce(tensor)
        return array


@contextmanager
def join_process_group(device: str, host_arrays: bool = False) -> Iterator[ProcessGroup]:
    """Joins the process group that torchrun describes; a group of one without torchrun.

    Args:
        device: as given to `--device`; nccl where it means a GPU, gloo on the CPU.
        host_arrays: numpy arrays are added up: gloo, whatever the device.

    Raises:
        UserError: not a device of this machine, or one GPU named for several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(0, 1, local_size)
        return
    import torch.distributed as dist

    chosen = None  # the GPU that nccl takes
    if not host_arrays:
        from common.device import choose_compute

        compute = choose_compute(device).device
        chosen = compute if compute.type == "cuda" else None
        if chosen is not None and ":" in device and local_size > 1:
            raise UserError(f"--device {device}: every process needs a GPU of its own; use cuda")
    # The first to finish waits for the last: shares of hours differ by more than the default's
    # minutes. torchrun notices a process that dies, and ends the others.
    dist.init_process_group(
        "gloo" if chosen is None else "nccl",
        timeout=timedelta(days=1),
        device_id=chosen,  # without it nccl guesses at a barrier
    )
    others = _processes_beside()
    signal.signal(signal.SIGTERM, lambda *_: _leave(others))  # torchrun's, after one has ended
    try:
        yield ProcessGroup(dist.get_rank(), size, local_size)
    except RuntimeError as error:
        if not (type(error).__name__.startswith("Dist") or "gloo" in str(error)):
            raise
        _leave(others)
    # Not after an error: nccl waits here for processes that wait for this one, and the error would
    # never be printed.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    dist.destroy_process_group()


def _processes_beside() -> dict[int, int]:
    """{process: rank} of the other processes that torchrun runs on this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = int(folder.name)
        if process != os.getpid() and _parent_of(process) == os.getppid():
            with suppress(OSError):
                for entry in (folder / "environ").read_bytes().split(b"\0"):
                    if entry.startswith(b"RANK="):
                        found[process] = int(entry[5:])
    return found


def _parent_of(process: int) -> int | None:
    """None where a process has ended, or where there is no /proc."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return None
    state, parent = stat.rpartition(")")[2].split()[:2]  # a name may hold spaces
    return None if state in "ZX" else int(parent)


def _leave(others: dict[int, int]) -> NoReturn:
    """Ends this process because another one has ended; the first to notice says which."""
    ended: list[int] = []
    deadline = time.monotonic() + _NOTICED
    while not ended and others and time.monotonic() < deadline:
        ended = sorted(rank for process, rank in others.items() if _parent_of(process) is None)
        time.sleep(0.02)
    if first_to_report():
        ranks = f"rank {', '.join(map(str, ended))} was" if ended else "a rank elsewhere was"
        fail(f"{ranks} killed, so the others end too (out of memory?); run the same command again")
    os._exit(EXIT_USER_ERROR)
