"""Runs a network over batches of faces with the whole device at work."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.device import Compute
from models.folding import fold_norms
from models.networks import FaceModel
from sdd_fiqa.cores import own_cores

Faces = npt.NDArray[np.uint8]
Outputs = npt.NDArray[np.float32]

# What a thread of a CPU takes at a time: their maps stay in its cache (measured on five networks).
_CPU_FACES = {"fp32": 8, "bf16": 16}
_GPU_FACES = 512


class Forward:
    """A network in evaluation mode, on a device and in a precision.

    On a CPU each core takes its own faces through all layers, in portions of fixed size: threads
    that share every layer wait for each other at its end, and get through a sixth to a third fewer.

    Attributes:
        batch_size: faces a call that keep the device busy, where the next call is begun before this
            one's outputs are asked for.
    """

    def __init__(self, network: nn.Module, compute: Compute, fold: bool = True) -> None:
        """Takes the network over: it is changed for evaluation, and moved.

        Args:
            network: takes (B, 3, 112, 112).
            compute: where, and in which precision.
            fold: its BatchNorms into its convolutions, see `fold_norms`.
        """
        if fold:
            fold_norms(network)
        model = FaceModel(network).to(memory_format=torch.channels_last)
        self._model, self.compute = model.to(compute.device).eval(), compute
        on_cpu = compute.device.type == "cpu"
        self.batch_size = 16 * own_cores() if on_cpu else _GPU_FACES
        self._pool = (
            ThreadPoolExecutor(own_cores(), "forward", initializer=_one_thread) if on_cpu else None
        )

    def again(self, compute: Compute) -> Forward:
        """The same network, on the same device, in another precision."""
        other = copy.copy(self)
        other.compute = compute
        return other

    def begin(self, faces: Faces) -> Callable[[], Outputs]:
        """(B, 112, 112, 3) uint8 RGB -> what waits for the (B, ...) float32 outputs."""
        if self._pool is None:
            return self.run(faces)
        size = _CPU_FACES[self.compute.name]
        parts = [
            self._pool.submit(self.run, faces[start : start + size])
            for start in range(0, len(faces) or 1, size)
        ]
        return lambda: np.concatenate([part.result()() for part in parts])

    def run(self, faces: Faces) -> Callable[[], Outputs]:
        """As `begin`, but all at once, on the thread that asks."""
        with torch.inference_mode(), self.compute.autocast():
            out: Any = self._model(self.compute.put(faces)).float()
            return self.compute.fetch(out)


def _one_thread() -> None:
    torch.set_num_threads(1)  # for the thread that asks
