"""What the device itself can multiply, and what a network asks of it.

Convolutions and products are what networks compute, so the rate of large products in the same
precision is a limit that no way of running one gets past.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.device import Compute

_SIDE = {"cpu": 2048, "cuda": 8192}
_ROUNDS = 8


def matrix_rate(compute: Compute) -> float:
    """Operations/s of large square products on a device in a precision; the best of some rounds.

    A multiplication and an addition are two operations.
    """
    side = _SIDE[compute.device.type]
    a, b = torch.randn((2, side, side), device=compute.device, dtype=compute.dtype)
    best = float("inf")
    for _ in range(_ROUNDS):
        wait_for(compute)
        started = time.perf_counter()
        a @ b
        wait_for(compute)
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


def operations(work: Callable[[], object]) -> int:
    """Operations of the convolutions and products in `work`, gradients included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def of_limit(rate: float, each: float, compute: Compute) -> str:
    """For people: what a rate comes to.

    Args:
        rate: images/s.
        each: operations of one image.
        compute: where, and in which precision.
    """
    limit = matrix_rate(compute)
    return (
        f"{rate * each / 1e12:.2f} TFLOP/s, {rate * each / limit:.0%} of the {limit / 1e12:.2f} of "
        f"large {compute.name} products"
    )


def wait_for(compute: Compute) -> None:
    """Until a GPU has done all it was given."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
