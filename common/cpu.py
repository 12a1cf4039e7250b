"""Threads and memory of the CPU."""

from __future__ import annotations

import ctypes
import os
import warnings

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def one_blas_thread() -> None:
    """Makes every matrix product run on the thread that asks for it.

    Work that is already divided over threads is slower if each product starts threads of its own.
    A product on one thread also adds in a fixed order, so results do not depend on the number of
    cores. The libraries read these variables once: call this before numpy is imported.
    """
    for name in ("OPENBLAS_NUM", "MKL_NUM", "BLIS_NUM", "VECLIB_MAXIMUM"):
        os.environ[f"{name}_THREADS"] = "1"


def set_up_image_libraries() -> None:
    """Makes OpenCV work on the thread that calls it, and OpenCV and Pillow write no warnings.

    Images are read on parallel threads already. This project reports damaged files itself.
    """
    import cv2

    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module="PIL")


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for the next ones.

    glibc returns freed blocks of 32 MB and more to the kernel, and gets them again for the next
    layer, where the kernel sets each page to zero. That takes half of the time of a training step
    on a CPU. If the C library has no such setting, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for setting, value in ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(setting, value)
