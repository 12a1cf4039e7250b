"""A network given as a list of layers: the trunk of an ONNX recogniser under a quality head.

The list is plain data and goes into the .json beside a checkpoint; with it the checkpoint stands
alone, and neither the ONNX file nor the package `onnx` is needed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.device import in_float32
from models.backbones.layers import RGB, Pixels, head
from models.backbones.mobilefacenet import convolve
from models.backbones.prelu import PReLU
from sdd_fiqa.errors import UserError


class Convolution(nn.Conv2d):
    """nn.Conv2d, in float32 where a CPU's bf16 is slow."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        return convolve(super().forward, self, x)


class Linear(nn.Linear):
    """nn.Linear, in float32 under autocast too: what follows it may blow its rounding up."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D_in) -> (B, D)."""
        return in_float32(super().forward, x)


class Norm(nn.BatchNorm2d):
    """BatchNorm of maps, (B, C, H, W), and of what has been flattened, (B, C)."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() not in (2, 4):
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {tuple(x.shape)}")


class Arithmetic(nn.Module):
    """Adds, subtracts or multiplies two maps, or a map and a constant."""

    constant: Tensor | None

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        constant: list[float] | None = None,
    ) -> None:
        """Takes two maps, or one and `constant`: one number, or one a channel."""
        super().__init__()
        self.function = function
        value = None if constant is None else torch.tensor(constant).view(-1, 1, 1)
        self.register_buffer("constant", value, persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, C, H, W), twice where there is no constant -> the same shape."""
        other = self.constant if y is None else y
        assert other is not None
        return self.function(x, other)


# What a layer may be: its ONNX name, and what makes it from its settings.
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

    pixels = RGB  # of a graph that stands alone: whoever makes it says what it wants

    def __init__(self, layers: list[dict[str, Any]]) -> None:
        """Makes the layers with random weights."""
        super().__init__(OPERATIONS[layer["op"]](**layer["settings"]) for layer in layers)
        self.inputs: list[list[int]] = [list(layer["inputs"]) for layer in layers]
        if not layers or any(
            not 0 <= source <= place
            for place, sources in enumerate(self.inputs)
            for source in sources
        ):
            raise ValueError("a layer takes what no layer before it gives")
        # Maps are dropped after their last use: a batch of 512 faces has gigabytes of them.
        last_use = {source: place for place, of in enumerate(self.inputs) for source in of}
        self._done_with = [
            {source for source in of if last_use[source] == place}
            for place, of in enumerate(self.inputs)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, C, H, W), or (B, D) of a whole recogniser."""
        values = {0: x}
        out = x
        for place, layer in enumerate(self):
            out = layer(*(values[source] for source in self.inputs[place]))
            for source in self._done_with[place]:
                del values[source]
            values[place + 1] = out
        return out


class GraphNetwork(nn.Module):
    """A quality head (`quality`) on a trunk that a list of layers describes (`trunk`).

    Input (B, 3, 112, 112) float as `pixels` say. Output (B, 1), the quality on the label scale
    0..100.
    """

    def __init__(self, graph: dict[str, Any], pixels: Pixels, dropout: float = 0.5) -> None:
        """Makes the network with random weights.

        Args:
            graph: {"layers": see `Graph`, "map": [C, H, W] of its output}.
            pixels: what the trunk takes.
            dropout: share of the head's inputs dropped while training.
        """
        super().__init__()
        self.graph, self.pixels = graph, pixels
        self.trunk = Graph(graph["layers"])
        self.quality = head(1, dropout, math.prod(graph["map"]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1)."""
        return in_float32(self.quality, self.trunk(x))


def is_graph(state: Mapping[str, Tensor]) -> bool:
    """Whether a state_dict is that of a `GraphNetwork`: no other network has a `trunk`."""
    return any(key.startswith("trunk.") for key in state)


def graph_network(about: dict[str, Any], where: str, dropout: float = 0.5) -> GraphNetwork:
    """Makes the network that the .json beside a checkpoint describes, with random weights.

    Raises:
        UserError: it describes none, or it is damaged; the message begins with `where`.
    """
    if "graph" not in about:
        raise UserError(
            f"{where}: its trunk came from an ONNX file, and its layers stand in the .json that "
            "was saved beside it; put that there again"
        )
    try:
        wants = about["input"]
        pixels = Pixels(str(wants["colour"]), float(wants["mean"]), float(wants["scale"]))
        network = GraphNetwork(about["graph"], pixels, dropout)
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, 112, 112))  # some settings fail in use alone
        return network.train()
    except Exception as error:  # a damaged description fails in many ways
        raise UserError(
            f"{where}: the .json beside it describes no network that can be made ({error!r}); "
            "get both again"
        ) from error
