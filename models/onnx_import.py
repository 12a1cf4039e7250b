"""Reads an ONNX recogniser as plain data: its trunk (up to the last feature map) or all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.backbones.layer_graph import Graph
from sdd_fiqa.errors import UserError

Array = npt.NDArray[Any]
_FLATTENING = {"Flatten", "Reshape", "Squeeze", "GlobalAveragePool", "ReduceMean"}
_NOTHING = {"Identity", "Dropout"}  # at inference
_FACE = (3, 112, 112)


def read_trunk(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Reads an ONNX recogniser's trunk.

    The trunk ends at the last map with more than one position between the faces and the first
    output. If the file has its BatchNorms folded into its convolutions, the trunk trains without
    BatchNorms.

    Returns:
        The layers and the map's shape, as `GraphNetwork` takes them; {key below `trunk.`: weights};
        and the names of the file's other weights, those of the embedding layers.

    Raises:
        UserError: not an ONNX recogniser, a layer that is not known, or `onnx` is not installed.
    """
    reader = _Reader(path)
    value = reader.flattened()
    shapes = reader.shapes(reader.layers_to(value))
    while shapes[value][-2:] == (1, 1):  # pooled by a convolution: the map is what it pooled
        value = reader.data_inputs(reader.producers[value])[0]
    part = reader.layers_to(value)
    unused = [name for name in reader.constants if name not in part.used]
    return {"layers": part.layers, "map": list(shapes[value][1:])}, part.state, unused


def read_embedder(path: str | os.PathLike[str]) -> tuple[Graph, int]:
    """Reads a whole ONNX recogniser, faces to embedding.

    Returns:
        The layers with their weights, (B, 3, 112, 112) -> (B, D), in evaluation mode; and D.

    Raises:
        UserError: as `read_trunk`, or its output is not (B, D).
    """
    reader = _Reader(path)
    if any(side not in (0, wanted) for side, wanted in zip(reader.sides, _FACE, strict=False)):
        raise UserError(f"{path}: takes {reader.sides}; a recogniser takes {list(_FACE)}")
    part = reader.layers_to(reader.output)
    shape = reader.shapes(part)[reader.output]
    if len(shape) != 2:
        raise UserError(f"{path}: gives {list(shape)} for one face; a recogniser gives [1, D]")
    graph = Graph(part.layers)
    graph.load_state_dict(part.state, strict=False)  # an ONNX file has no num_batches_tracked
    return graph.eval(), shape[1]


@dataclass
class _Part:
    """What leads to one value of the graph."""

    layers: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)  # of the values: as Graph counts
    used: set[str] = field(default_factory=set)


class _Reader:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.where = path
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            raise UserError(
                f"{path}: starting from an ONNX file needs the package onnx: pip install onnx"
            ) from error
        try:
            graph = onnx.load(os.fspath(path)).graph
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:  # protobuf's errors have no common base class
            raise UserError(f"{path}: is damaged or not an ONNX file; get it again") from error
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self.nodes = []
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            elif node.op_type == "Identity" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]
            else:
                self.nodes.append(node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        inputs = [value for value in graph.input if value.name not in self.constants]
        if len(inputs) != 1 or not graph.output:
            raise UserError(f"{path}: has {len(inputs)} inputs; a recogniser has one")
        self.input, self.output = inputs[0].name, graph.output[0].name
        # The sizes after the batch; 0 is any.
        self.sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim[1:]]

    def data_inputs(self, node: Any) -> list[str]:
        """The inputs of a node that depend on the faces."""
        return [name for name in node.input if name and name not in self.constants]

    def flattened(self) -> str:
        """The last value that the embedding layers flatten or pool."""
        value = self.output
        while value in self.producers:
            node = self.producers[value]
            value = self.data_inputs(node)[0]
            if node.op_type in _FLATTENING:
                return value
        raise UserError(
            f"{self.where}: no layer flattens or pools a feature map; a face recogniser is needed"
        )

    def layers_to(self, wanted: str) -> _Part:
        """Translates only the nodes that lead to a value."""
        needed = {wanted}
        for node in reversed(self.nodes):  # ONNX lists nodes in execution order
            if needed.intersection(node.output):
                needed.update(self.data_inputs(node))
        part = _Part(places={self.input: 0})
        for node in self.nodes:
            if not needed.intersection(node.output):
                continue
            unknown = [name for name in self.data_inputs(node) if name not in part.places]
            if unknown:
                raise UserError(
                    f"{self.where}: its layer {_name(node)} takes {unknown[0]}, which no "
                    "earlier layer gives; get the file again"
                )
            inputs = [part.places[name] for name in self.data_inputs(node)]
            if node.op_type in _NOTHING:
                part.places[node.output[0]] = inputs[0]
                continue
            settings, weights = self._translate(node)
            for name, array in weights.items():
                key = f"{len(part.layers)}.{name}"
                part.state[key] = torch.from_numpy(np.array(array, np.float32))
            part.layers.append({"op": node.op_type, "inputs": inputs, "settings": settings})
            part.used.update(node.input)
            part.places[node.output[0]] = len(part.layers)
        return part

    def shapes(self, part: _Part) -> dict[str, tuple[int, ...]]:
        """The shape of each value for one face; the layers run without memory."""
        try:
            with torch.device("meta"):
                outputs = [torch.empty(1, 3, 112, 112)]
                graph = Graph(part.layers).eval()
                for layer, sources in zip(graph, graph.inputs, strict=True):
                    outputs.append(layer(*(outputs[source] for source in sources)))
        except (RuntimeError, TypeError, ValueError) as error:
            why = f"does not run on input [1, 3, 112, 112] ({str(error).splitlines()[0]})"
            raise UserError(f"{self.where}: {why}") from error
        return {name: tuple(outputs[place].shape) for name, place in part.places.items()}

    def _translate(self, node: Any) -> tuple[dict[str, Any], dict[str, Array]]:
        """A node's settings and weights under torch's names."""
        from onnx import helper

        has = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        arrays = [self.constants[name] for name in node.input if name in self.constants]
        kind = node.op_type
        settings: dict[str, Any] = {"stride": list(has.get("strides", (1, 1)))}
        if kind == "Conv" and arrays and arrays[0].ndim == 4:
            weight, groups = arrays[0], int(has.get("group", 1))
            settings |= {
                "in_channels": weight.shape[1] * groups,
                "out_channels": weight.shape[0],
                "kernel_size": list(weight.shape[2:]),
                "padding": self._padding(node, has),
                "dilation": list(has.get("dilations", (1, 1))),
                "groups": groups,
                "bias": len(arrays) > 1,
            }
            return settings, dict(zip(("weight", "bias"), arrays, strict=False))
        if kind == "MaxPool" and not has.get("ceil_mode", 0):
            padding = self._padding(node, has)
            return settings | {"kernel_size": list(has["kernel_shape"]), "padding": padding}, {}
        if kind == "BatchNormalization" and len(arrays) == 4:
            # ONNX weights the old average by `momentum`, torch the new value.
            settings = {
                "num_features": len(arrays[0]),
                "eps": float(has.get("epsilon", 1e-5)),
                "momentum": round(1 - float(has.get("momentum", 0.9)), 6),
            }
            names = ("weight", "bias", "running_mean", "running_var")
            return settings, dict(zip(names, arrays, strict=True))
        if kind == "PRelu" and len(arrays) == 1 and arrays[0].shape[1:] in ((), (1, 1)):
            slopes = arrays[0].ravel()
            return {"num_parameters": len(slopes)}, {"weight": slopes}
        if kind == "Relu" or (kind == "Flatten" and has.get("axis", 1) == 1):
            return {}, {}
        # x W + b: nothing is scaled, and x is not transposed.
        linear_layer = [has.get("transA", 0), has.get("alpha", 1), has.get("beta", 1)] == [0, 1, 1]
        if kind == "Gemm" and linear_layer and node.input[1] in self.constants:
            weight = arrays[0] if has.get("transB", 0) else arrays[0].T
            linear = {"weight": weight}
            if len(arrays) > 1 and arrays[1].size in (1, len(weight)):  # ONNX broadcasts one number
                linear["bias"] = np.broadcast_to(arrays[1].ravel(), len(weight))
            settings = {
                "in_features": weight.shape[1],
                "out_features": weight.shape[0],
                "bias": "bias" in linear,
            }
            if len(linear) == len(arrays):
                return settings, linear
        if kind in ("Add", "Sub", "Mul") and not arrays:
            return {}, {}
        if kind in ("Add", "Sub", "Mul") and (kind != "Sub" or node.input[1] in self.constants):
            value = arrays[0]
            if value.size == 1 or value.shape[-3:] == (value.size, 1, 1):
                return {"constant": [float(number) for number in value.ravel()]}, {}
        raise UserError(
            f"{self.where}: its layer {_name(node)} is of an unknown kind; start a training from a "
            "checkpoint, or from sface or w600k_mbf"
        )

    def _padding(self, node: Any, has: dict[str, Any]) -> list[int]:
        top, left, bottom, right = has.get("pads", (0, 0, 0, 0))
        automatic = has.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
        if automatic or (top, left) != (bottom, right):
            raise UserError(
                f"{self.where}: its layer {_name(node)} pads its sides differently, which is not "
                "supported"
            )
        return [top, left]


def _name(node: Any) -> str:
    return f"{node.name or node.output[0]} ({node.op_type})"
