"""How many CPU cores this process may use, and whether there may be a GPU."""

from __future__ import annotations

import os


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
    return any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))
