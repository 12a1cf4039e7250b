"""One array path for two libraries: numpy on the CPU, torch on CUDA.

The mathematics is written once, against the functions that `numpy` and `torch` share by name; what
they do not share stands here. Torch is imported only where a CUDA device is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.cli import is_count
from sdd_fiqa.cores import nvidia_driver
from sdd_fiqa.errors import UserError

Array = Any  # a numpy array or a torch tensor
Float32 = npt.NDArray[np.float32]

# A float16's exponent and fraction, moved to a float32's place, is the number times 2**-112; its
# infinities and NaNs come out as 65536 and more.
_HALF_BITS = np.int32(0x8FFFE000 - 2**32)
_HALF_SCALE = np.float32(2.0**112)
_HALF_LIMIT = np.float32(65536.0**2)


class Arrays(Protocol):
    """What the mathematics asks of an array library."""

    xp: Any
    batch_rows: int  # rows worked on together; never changes a result
    most_batches: float  # worked on at a time
    cells: int  # numbers that are sorted at a time

    def rows(self, raw: npt.NDArray[Any]) -> tuple[Array, Array]:
        """(n, D) of any float type -> float32 rows on the device, and their squared norms."""

    def device(self, array: npt.NDArray[Any]) -> Array:
        """A numpy array on the device, as it is."""

    def host(self, array: Array) -> npt.NDArray[Any]:
        """The array as a numpy array."""

    def sort(self, array: Array) -> Array:
        """Sorted along the last axis."""

    def double(self, array: Array) -> Array:
        """As float64."""

    def empty(self, shape: Sequence[int]) -> Array:
        """Uninitialised float32."""


class NumpyArrays:
    """The CPU."""

    xp: Any = np
    batch_rows = 1  # one block at a time: what it touches stays in the cache
    most_batches = math.inf
    cells = 1 << 20  # what fits the cache

    def rows(self, raw: npt.NDArray[Any]) -> tuple[Float32, Float32]:
        """(n, D) of any float type -> float32 rows, and their squared norms."""
        rows = _half_to_float(raw) if raw.dtype == np.float16 else raw.astype(np.float32)
        squares = np.einsum("ij,ij->i", rows, rows)
        if raw.dtype == np.float16 and not np.all(squares < _HALF_LIMIT):
            rows = raw.astype(np.float32)  # far from unit rows: slowly, but with inf and NaN
            squares = np.einsum("ij,ij->i", rows, rows)
        return rows, squares

    def device(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array itself."""
        return array

    def host(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The array itself."""
        return array

    def sort(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sorted along the last axis."""
        return np.sort(array, axis=-1)

    def double(self, array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """As float64."""
        return array.astype(np.float64)

    def empty(self, shape: Sequence[int]) -> Float32:
        """Uninitialised float32."""
        return np.empty(shape, np.float32)


class TorchArrays:
    """A torch device; `cpu` serves to test the path without a GPU."""

    batch_rows = 1 << 17  # enough work for each of a GPU's launches
    most_batches: float = 4  # a GB or more of a GPU each; while one computes, others are drawn
    cells = 1 << 25  # half a GB with what is worked out from them

    def __init__(self, device: str) -> None:
        """Picks the device and full float32 products: TF32 would cost three digits."""
        import torch

        self.xp: Any = torch
        self._torch = torch
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False

    def rows(self, raw: npt.NDArray[Any]) -> tuple[Array, Array]:
        """(n, D) of any float type -> float32 rows on the device, and their squared norms."""
        if not isinstance(raw, np.ndarray):  # a tensor: the source keeps its rows on the device
            rows = raw.float() if raw.dtype != self._torch.float32 else raw.clone()
            return rows, self._torch.einsum("ij,ij->i", rows, rows)
        if raw.dtype.newbyteorder("=") != raw.dtype or not raw.flags.writeable:
            raw = raw.astype(raw.dtype.newbyteorder("="))
        rows = self._torch.from_numpy(raw).to(self._device, copy=True).float()
        return rows, self._torch.einsum("ij,ij->i", rows, rows)

    def device(self, array: npt.NDArray[Any]) -> Array:
        """A numpy array on the device, as it is."""
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def host(self, array: Array) -> npt.NDArray[Any]:
        """The tensor as a numpy array."""
        result: npt.NDArray[Any] = array.cpu().numpy()
        return result

    def sort(self, array: Array) -> Array:
        """Sorted along the last axis."""
        return array.sort(-1).values

    def double(self, array: Array) -> Array:
        """As float64."""
        return array.double()

    def empty(self, shape: Sequence[int]) -> Array:
        """Uninitialised float32."""
        return self._torch.empty(tuple(shape), device=self._device)


def arrays_for(device: str, local_rank: int = 0) -> Arrays:
    """The array library of `auto`, `cpu` or `cuda[:i]`.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not is_count(index))):
        raise UserError(f"--device {device}: is not one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    if kind == "cpu" or (kind == "auto" and not nvidia_driver()):
        return NumpyArrays()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(index) if index else local_rank % max(count, 1)
    if number < count:
        return TorchArrays(f"cuda:{number}")
    if kind == "auto":
        return NumpyArrays()
    raise UserError(f"--device {device}: torch sees {count} CUDA devices here; use --device cpu")


def _half_to_float(raw: npt.NDArray[np.float16]) -> Float32:
    """float16 -> float32 by moving bits, five times as fast as numpy's own conversion."""
    bits = raw.view(np.int16).astype(np.int32)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _HALF_BITS, out=bits)
    rows = bits.view(np.float32)
    return np.multiply(rows, _HALF_SCALE, out=rows)
