"""Who computes: our threads over blocks, the matrix library inside one product, or a GPU."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


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


def one_opencv_thread() -> None:
    """Makes OpenCV work on the thread that calls it, and write nothing to stderr.

    The threads that read images are the parallelism already; a damaged file is reported by us.
    """
    import cv2

    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def keep_freed_memory() -> None:
    """Lets this process keep the memory of freed tensors for the next ones.

    glibc gives blocks of 32 MB and more back to the kernel as they are freed, and gets them again,
    zeroed page by page, for the next layer: half of the time of a training step on a CPU. Where the
    C library has no such setting, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for setting, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(setting, value)
