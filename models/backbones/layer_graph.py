"""A network given as a list of layers: the trunk of an ONNX recogniser under a quality head.

The list is plain data, and is saved in the .json next to a checkpoint. With both files, neither the
ONNX file nor the package `onnx` is needed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common.device import in_float32
from models.backbones import RGB, Pixels
from models.backbones.layers import Convolution, PReLU, head
from sdd_fiqa.errors import UserError


class Linear(nn.Linear):
    """nn.Linear, in float32 under autocast too: the next layer may amplify rounding errors."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_in) -> (B, D)."""
        return in_float32(super().forward, x)


class Norm(nn.BatchNorm2d):
    """BatchNorm of maps, (B, C, H, W), or of flattened values, (B, C)."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in (2, 4):
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {tuple(x.shape)}")


class Arithmetic(nn.Module):
    """Adds, subtracts or multiplies two maps, or a map and a constant (a number, or C numbers)."""

    constant: Tensor | None

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        constant: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.function = function
        value = None if constant is None else torch.tensor(constant).view(-1, 1, 1)
        self.register_buffer("constant", value, persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a second map if there is no constant -> the same shape."""
        other = self.constant if y is None else y
        assert other is not None
        return self.function(x, other)


# The known layers: ONNX name -> what makes the layer from its settings.
OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "Conv": Convolution,
    "BatchNormalization": Norm,
    "PRelu": PReLU,
    "Relu": nn.ReLU,
    "MaxPool": nn.MaxPool2d,
    "Flatten": nn.Flatten,
    "Gemm": Linear,
    "Add": lambda **settings: Arithmetic(torch.add, **settings),
    "Sub": lambda **settings: Arithmetic(torch.sub, **settings),
    "Mul": lambda **settings: Arithmetic(torch.mul, **settings),
}


class Graph(nn.ModuleList):
    """Layers that take each other's outputs; `k.weight` are the weights of layer k.

    Each layer is {"op": a key of OPERATIONS, "inputs": [...], "settings": {...}}. Input 0 is the
    graph's own, input k + 1 the output of layer k; the last layer's output is the graph's.
    """

    pixels = RGB  # the default; an ONNX file does not record its input, so the reader sets it

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        super().__init__(OPERATIONS[layer["op"]](**layer["settings"]) for layer in layers)
        self.inputs: list[list[int]] = [list(layer["inputs"]) for layer in layers]
        self._last_use = {source: place for place, of in enumerate(self.inputs) for source in of}

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, C, H, W), or (B, D) of a whole recogniser."""
        values = {0: x}
        out = x
        for place, layer in enumerate(self):
            out = layer(*(values[source] for source in self.inputs[place]))
            for source in set(self.inputs[place]):
                if self._last_use[source] == place:  # a batch of 512 faces has gigabytes of maps
                    del values[source]
            values[place + 1] = out
        return out


class GraphNetwork(nn.Module):
    """A quality head (`quality`) on a trunk that a list of layers describes (`trunk`).

    Input (B, 3, 112, 112) float as `pixels` says. Output (B, 1), the quality on the label scale
    0..100.

    Args:
        graph: {"layers": see `Graph`, "map": [C, H, W] of its output}.
        pixels: the input of the trunk.
        dropout: share of the head's inputs dropped while training.
    """

    def __init__(self, graph: dict[str, Any], pixels: Pixels, dropout: float = 0.5) -> None:
        super().__init__()
        self.graph, self.pixels = graph, pixels
        self.trunk = Graph(graph["layers"])
        self.quality = head(1, dropout, math.prod(graph["map"]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1)."""
        return in_float32(self.quality, self.trunk(x))


def graph_network(about: dict[str, Any], where: str, dropout: float = 0.5) -> GraphNetwork:
    """Makes the network that the .json next to a checkpoint describes, with random weights.

    Raises:
        UserError: it describes none, or it is damaged; the message begins with `where`.
    """
    if "graph" not in about:
        raise UserError(
            f"{where}: its trunk came from an ONNX file; the list of its layers is in the .json "
            "saved with it; put that file next to it"
        )
    try:
        network = GraphNetwork(about["graph"], Pixels.read(about["input"]), dropout)
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, 112, 112))  # some wrong settings only fail here
        return network.train()
    except Exception as error:  # a damaged description fails in many ways
        raise UserError(
            f"{where}: the .json next to it does not describe a working network ({error!r}); "
            "get both files again"
        ) from error
