"""The device and the precision of a run, chosen once.

torch is imported where it is used, since a precision is also named where torch is not wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy.typing as npt

from sdd_fiqa.cores import parse_device
from sdd_fiqa.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Compute:
    """Where and in what precision a network runs.

    Attributes:
        device: the torch device.
        dtype: torch.float32, or the type of autocast: torch.bfloat16, or torch.float16 on GPUs
            without bf16.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The autocast context of this precision (one that does nothing for float32)."""
        import torch

        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)

    def put(self, array: npt.NDArray[Any]) -> Tensor:
        """Copies an array to the device, without waiting for it on a GPU."""
        import torch

        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def fetch(self, tensor: Tensor) -> Callable[[], npt.NDArray[Any]]:
        """Starts to copy a tensor of the device to the host.

        Returns:
            A function that waits for this copy and returns it. It does not wait for work that the
            GPU gets later.
        """
        if self.device.type != "cuda":
            return tensor.numpy
        import torch

        copy = tensor.to("cpu", non_blocking=True)  # to pinned memory: does not wait here
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> npt.NDArray[Any]:
            arrived.synchronize()
            found: npt.NDArray[Any] = copy.numpy()
            return found

        return wait

    @property
    def name(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        return names[str(self.dtype).removeprefix("torch.")]

    def __str__(self) -> str:
        """Human-readable: `cuda:0 bf16`."""
        return f"{self.device} {self.name}"


def choose_compute(device: str = "auto", precision: Precision = "auto") -> Compute:
    """Resolves `--device` and `--precision`.

    Args:
        device: auto (the first GPU, or under torchrun this process's GPU; else the CPU), cpu, cuda
            or cuda:i.
        precision: auto (bf16 if the device multiplies it faster than float32), fp32 or bf16. GPUs
            without bf16 use fp16 instead. fp32 uses no TF32 in convolutions.

    Raises:
        UserError: this machine has no such device, or there is no such precision.
    """
    import torch

    check_precision(precision)
    kind, index = parse_device(device)
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        # A CPU without AVX-512 BF16 or AMX emulates bf16, slower than float32.
        fast = precision == "auto" and bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})
        half = fast or precision == "bf16"
        return Compute(torch.device("cpu"), torch.bfloat16 if half else torch.float32)
    if index >= (count := torch.cuda.device_count()):
        raise UserError(f"--device {device}: this machine shows {count} GPUs to torch; use cpu")
    gpu = torch.device("cuda", index)
    torch.cuda.set_device(gpu)  # else pinned memory opens the first GPU too
    capability = torch.cuda.get_device_capability(gpu)
    # A GPU without tensor cores multiplies fp16 at a fraction of float32's rate.
    if precision == "fp32" or (precision == "auto" and capability < (7, 0)):
        torch.backends.cudnn.allow_tf32 = False  # torch's default for products, not for these
        return Compute(gpu, torch.float32)
    return Compute(gpu, torch.float16 if capability < (8, 0) else torch.bfloat16)


def check_precision(precision: str) -> None:
    """Raises UserError if the name is no Precision."""
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision}: must be one of {', '.join(get_args(Precision))}")


def in_float32(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs `module` on `x` in float32, inside autocast too.

    bf16 has steps of half a point near 80, so the heads stay in float32.
    """
    import torch

    if x.is_meta or (x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)):
        return module(x)
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text("ascii", "ignore").split())
    except OSError:
        return set()
