"""Which CPU cores and which GPU this process may use; torch is not imported."""

from __future__ import annotations

import os
import re

from sdd_fiqa.errors import UserError


def usable_cores() -> int:
    """The cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def own_cores() -> int:
    """This process's share of the usable cores if torchrun started several; at least 1."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def nvidia_driver() -> bool:
    """Whether there may be a GPU, without importing torch, which takes two seconds."""
    windows = os.path.join(os.environ.get("SYSTEMROOT", "/none"), "System32", "nvcuda.dll")
    linux = "/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"
    return any(map(os.path.exists, (*linux, windows)))


def parse_device(name: str) -> tuple[str, int]:
    """Splits `auto`, `cpu`, `cuda` or `cuda:i`.

    Returns:
        `auto`, `cpu` or `cuda`; and the GPU's index: the one given, else this process's number
        among torchrun's on this machine (0 for a single process).

    Raises:
        UserError: any other name.

    >>> parse_device("cuda:3")
    ('cuda', 3)
    """
    match = re.fullmatch(r"(auto|cpu)|(cuda)(?::([0-9]{1,18}))?", name)
    if match is None:
        raise UserError(f"--device {name}: must be auto, cpu, cuda or cuda:<index>")
    return match[1] or match[2], int(match[3] or os.environ.get("LOCAL_RANK", "0"))
