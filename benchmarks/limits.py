"""A roofline: the least time that a network can take on this device, layer by layer.

The device multiplies and copies at rates that are measured here. A layer takes at least the time of
its multiplications at the rate of large matrix products (in the same precision), and at least the
time to read its inputs and write its outputs at the rate of a copy. The sum over the layers is the
limit for any program that runs them one after the other. Only fused layers can be faster.

The speed benchmarks import this file; it is not a script.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from common.device import Compute

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the products
_COPIED = {"cpu": 1 << 23, "cuda": 1 << 30}  # bytes: on a CPU the maps of a layer fit its caches
_ROUNDS = 8


@dataclass(frozen=True)
class Limit:
    """The limit of some work on a device.

    Attributes:
        seconds: the least time of the work.
        operations: its multiplications and additions.
        products: operations/s of large matrix products.
        copies: bytes/s that a copy reads and writes.
    """

    seconds: float
    operations: int
    products: float
    copies: float

    def compared_with(self, seconds: float) -> str:
        """A human-readable comparison of a measured time with the limit."""
        return (
            f"{self.operations / seconds / 1e12:.2f} TFLOP/s; {self.seconds / seconds:.0%} of what "
            f"products at {self.products / 1e12:.2f} TFLOP/s and copies at "
            f"{self.copies / 1e9:.0f} GB/s allow layer by layer"
        )


def limit_of(work: Callable[[], object], compute: Compute) -> Limit:
    """Measures the limit of some work, gradients included; runs the work once.

    Args:
        work: calls torch; other libraries are not counted.
        compute: its device and precision.
    """
    products, copies = _product_rate(compute), _copy_rate(compute)
    with _Counting(products, copies) as counted:
        work()
    return Limit(counted.seconds, counted.operations, products, copies)


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the least time of each operation that torch runs.

    The base class is torch's, which has no types.
    """

    def __init__(self, products: float, copies: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products, self.copies = products, copies
        self.seconds, self.operations = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:  # it may consist of others
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        returns = func._schema.returns
        if any(each.alias_info and not each.alias_info.is_write for each in returns):
            return out  # a view
        operations = int(count(*args, **kwargs, out_val=out)) if count else 0
        leaves = tree_leaves((args, kwargs, out))
        moved = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        self.seconds += max(operations / self.products, moved / self.copies)
        self.operations += operations
        return out


def _product_rate(compute: Compute) -> float:
    side = _SIDE[compute.device.type]
    a, b = torch.randn((2, side, side), device=compute.device, dtype=compute.dtype)
    return 2.0 * side**3 / _best(lambda: a @ b, compute)


def _copy_rate(compute: Compute) -> float:
    values = torch.zeros(_COPIED[compute.device.type], dtype=torch.uint8, device=compute.device)
    return 2.0 * values.nbytes / _best(values.clone, compute)


def _best(work: Callable[[], object], compute: Compute) -> float:
    """Seconds of the fastest of some rounds."""
    best = float("inf")
    for _ in range(_ROUNDS):
        wait_for(compute)
        started = time.perf_counter()
        work()
        wait_for(compute)
        best = min(best, time.perf_counter() - started)
    return best


def wait_for(compute: Compute) -> None:
    """Waits until a GPU has finished all its work."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
