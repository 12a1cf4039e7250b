"""One device, one precision, chosen once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dataset.command_line import UserError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Compute:
    """Where and in what precision a network runs.

    Attributes:
        device: the torch device.
        dtype: torch.float32, or what autocast uses: torch.bfloat16.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        """The autocast context of this precision (one that does nothing for float32)."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32)

    @property
    def name(self) -> str:
        """`fp32` or `bf16`."""
        return "fp32" if self.dtype == torch.float32 else "bf16"

    def __str__(self) -> str:
        """For people: `cuda:0 bf16`."""
        return f"{self.device} {self.name}"


def choose_compute(device: str = "auto", precision: Precision = "auto") -> Compute:
    """Resolves `--device` and `--precision`.

    Args:
        device: auto (the first GPU, or under torchrun this process's GPU; else the CPU), cpu, cuda
            or cuda:i.
        precision: auto (bf16 where the device multiplies it faster than float32), fp32, bf16.

    Raises:
        UserError: not a device of this machine.
    """
    chosen = _device(device)
    fast = _bf16_is_fast(chosen)
    use_bf16 = precision == "bf16" or (precision == "auto" and fast)
    return Compute(chosen, torch.bfloat16 if use_bf16 else torch.float32)


def in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """Runs `module` on `x` in float32, inside autocast too.

    A score near 80 in bf16 comes in steps of half a point, so heads stay in float32.
    """
    if x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type):
        plain: Tensor = module(x)
        return plain
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = module(x.float())
        return out


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name}: must be auto, cpu, cuda or cuda:<index>") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: must be auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
        if index >= count:
            raise UserError(f"--device {name}: this machine shows {count} GPUs to torch; use cpu")
        return torch.device("cuda", index)
    return device


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # mkldnn_bf16_device_check_arch_info-like queries differ between releases; this one is public
    # behaviour: without AVX-512 BF16 or AMX a CPU emulates bf16 and loses.
    return _cpu_flags() & {"avx512_bf16", "amx_bf16"} != set()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    return set()
