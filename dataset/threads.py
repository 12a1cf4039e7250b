"""Who computes: our threads over blocks, the matrix library inside one product, or a GPU."""

from __future__ import annotations

import os


def one_blas_thread() -> None:
    """Makes every matrix product run on the thread that asks for it.

    Work that is already spread over threads, a block each, loses time when each product spreads
    itself again; and a product on one thread adds in one order, so results do not depend on the
    number of cores. The libraries read these variables once, so call this before numpy's import.
    """
    for library in ("OPENBLAS", "MKL", "BLIS", "VECLIB"):
        os.environ[
            "VECLIB_MAXIMUM_THREADS" if library == "VECLIB" else f"{library}_NUM_THREADS"
        ] = "1"


def usable_cores() -> int:
    """The cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def own_cores() -> int:
    """This process's share of the usable cores, where torchrun started several; at least 1."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def nvidia_driver() -> bool:
    """Whether a GPU may be here, known without the two seconds that importing torch takes."""
    return any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")))
