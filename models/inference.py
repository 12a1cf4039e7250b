"""Runs a network over batches of faces so that the whole device is busy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.device import Compute
from models.networks import FaceModel
from sdd_fiqa.cores import own_cores
from sdd_fiqa.onnx_runner import Faces, Outputs

# Faces that a CPU thread takes at a time: their maps fit its cache (measured on five networks).
_CPU_FACES = {"fp32": 8, "bf16": 16}
_GPU_FACES = 512


class Forward:
    """A network in evaluation mode, on a device and in a precision.

    On a CPU each core takes its own faces through all layers, in portions of fixed size. If the
    cores shared every layer, they would wait for each other at its end, and process a sixth to a
    third fewer faces.

    Args:
        network: takes (B, 3, 112, 112); it is moved and changed in place.
        compute: where, and in which precision.
        fold: whether to fold its BatchNorms into its convolutions, see `fold_norms`.

    Attributes:
        batch_size: faces a call that keep the device busy, if the next call begins before the
            outputs of this one are waited for.
    """

    def __init__(self, network: nn.Module, compute: Compute, fold: bool = True) -> None:
        if fold:
            fold_norms(network)
        model = FaceModel(network).to(memory_format=torch.channels_last)
        self._model, self.compute = model.to(compute.device).eval(), compute
        on_cpu = compute.device.type == "cpu"
        self.batch_size = 16 * own_cores() if on_cpu else _GPU_FACES
        self._pool = None
        if on_cpu:  # torch itself uses one thread inside each of these
            self._pool = ThreadPoolExecutor(own_cores(), "forward", torch.set_num_threads, (1,))

    def begin(self, faces: Faces) -> Callable[[], Outputs]:
        """(B, 112, 112, 3) uint8 RGB -> a function that waits for the (B, ...) float32 outputs."""
        if self._pool is None:
            return self.run(faces)
        size = _CPU_FACES[self.compute.name]
        parts = [
            self._pool.submit(self.run, faces[start : start + size])
            for start in range(0, len(faces) or 1, size)
        ]
        return lambda: np.concatenate([part.result()() for part in parts])

    def run(self, faces: Faces) -> Callable[[], Outputs]:
        """As `begin`, but in one piece and on the calling thread."""
        with torch.inference_mode(), self.compute.autocast():
            out: Any = self._model(self.compute.put(faces)).float()
            return self.compute.fetch(out)


def fold_norms(network: nn.Module) -> None:
    """Folds each BatchNorm whose input comes from one convolution into that convolution's weights.

    The outputs stay the same. A CPU needs up to a third less time, because a BatchNorm is a pass
    over the whole map. Under autocast the rounding differs: the BatchNorm's offset becomes a bias,
    in bf16.

    Args:
        network: takes (B, 3, 112, 112); it is changed in place, and cannot be trained again.
    """
    network.eval()
    made: dict[Any, nn.Module] = {}  # what made the output of a node of the autograd graph

    def ran(module: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            made[output.grad_fn] = module

    hooks = [module.register_forward_hook(ran) for module in network.modules()]
    with torch.enable_grad():
        where = next(network.parameters()).device
        face = torch.zeros(1, 3, 112, 112, device=where, requires_grad=True)
        uses = _uses(network(face))
    for hook in hooks:
        hook.remove()
    runs = Counter(made.values())
    folded: set[nn.Module] = set()
    for node, norm in made.items():
        before = node.next_functions[0][0]
        conv = made.get(before)
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(conv, nn.Conv2d):
            continue
        if uses[before] == runs[conv] == runs[norm] == 1:
            fused = fuse_conv_bn_eval(conv, norm)
            conv.weight, conv.bias = fused.weight, fused.bias
            folded.add(norm)
    for name, module in list(network.named_modules()):
        if module in folded:
            network.set_submodule(name, nn.Identity())


def _uses(output: Tensor) -> Counter[Any]:
    """How many operations take the output of each node of the autograd graph."""
    uses: Counter[Any] = Counter()
    waiting, seen = [output.grad_fn], {output.grad_fn}
    while waiting:
        node: Any = waiting.pop()
        for source, _ in node.next_functions:
            uses[source] += 1
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)
    return uses
