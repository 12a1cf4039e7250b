"""One array path for two libraries: numpy on the CPU, torch on a CUDA device.

The mathematics is written once, with the functions that numpy and torch share by name (`xp`). The
two classes below hold what they do not share. torch is imported only where a GPU is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sdd_fiqa.cores import nvidia_driver, parse_device
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import cv2

Array = Any  # a numpy array or a torch tensor
Float32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class NumpyArrays:
    """The CPU.

    Attributes:
        xp: the library.
        batch_rows: images that are worked on together; never changes a result.
        most_batches: batches that are worked on at a time.
        cells: numbers that are sorted at a time.
    """

    xp: Any = np
    batch_rows = 1  # one block at a time, so that its data stays in the cache
    most_batches = math.inf
    cells = 1 << 20  # fits the cache

    def rows(self, raw: npt.NDArray[Any]) -> tuple[Array, Array]:
        """(n, D) of any float type -> float32 rows on the device, and their squared norms."""
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses such rows
            if raw.dtype == np.float16 and raw.size:
                # Twice as fast as astype, or more. (OpenCV's types do not know float16.)
                rows = cv2.add(raw, 0.0, dtype=cv2.CV_32F)  # type: ignore[call-overload]
            else:
                rows = raw.astype(np.float32)
            return rows, np.einsum("ij,ij->i", rows, rows)

    def device(self, array: npt.NDArray[Any]) -> Array:
        """A numpy array on the device, with its type unchanged."""
        return array

    def host(self, array: Array) -> npt.NDArray[Any]:
        """The array as a numpy array."""
        return np.asarray(array)

    def sort(self, array: Array) -> Array:
        """Sorted along the last axis."""
        return np.sort(array, axis=-1)

    def empty(self, shape: Sequence[int]) -> Array:
        """Uninitialised float32 on the device."""
        return np.empty(shape, np.float32)


class TorchArrays:
    """A torch device, with the methods of `NumpyArrays`; `cpu` tests the path without a GPU."""

    batch_rows = 1 << 17  # enough work for each kernel that a GPU starts
    most_batches = 4  # each takes 1 GB or more; while one computes, the others draw
    cells = 1 << 25  # half a GB, with what is computed from them

    def __init__(self, device: str) -> None:
        """Picks the device. Products are full float32: TF32 would lose three digits."""
        import torch

        self.xp: Any = torch
        self._device = torch.device(device)
        if self._device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False

    def rows(self, raw: Any) -> tuple[Array, Array]:  # noqa: D102
        if isinstance(raw, np.ndarray):
            if raw.dtype.newbyteorder("=") != raw.dtype or not raw.flags.writeable:
                raw = raw.astype(raw.dtype.newbyteorder("="))
            raw = self.xp.from_numpy(raw)
        # A copy, since the caller scales these rows in place; converted on the device.
        rows = raw.to(self._device).to(self.xp.float32, copy=True)
        return rows, self.xp.einsum("ij,ij->i", rows, rows)

    def device(self, array: npt.NDArray[Any]) -> Array:  # noqa: D102
        return self.xp.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def host(self, array: Array) -> npt.NDArray[Any]:  # noqa: D102
        return np.asarray(array.cpu())

    def sort(self, array: Array) -> Array:  # noqa: D102
        return array.sort(-1).values

    def empty(self, shape: Sequence[int]) -> Array:  # noqa: D102
        return self.xp.empty(tuple(shape), device=self._device)


Arrays: TypeAlias = NumpyArrays | TorchArrays


def arrays_for(device: str) -> Arrays:
    """The array library of `auto`, `cpu` or `cuda[:i]`.

    Raises:
        UserError: an unknown device, or CUDA where there is none.
    """
    kind, index = parse_device(device)
    if kind == "cpu" or (kind == "auto" and not nvidia_driver()):
        return NumpyArrays()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = index if ":" in device else index % max(count, 1)
    if number < count:
        return TorchArrays(f"cuda:{number}")
    if kind == "auto":
        return NumpyArrays()
    raise UserError(f"--device {device}: torch sees {count} CUDA devices here; use --device cpu")
