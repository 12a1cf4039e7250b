"""Small ONNX graphs for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]


class Maker:
    """Writes small ONNX graphs, a node a call."""

    def __init__(self, inputs: Sequence[Any] = ("N", 3, 112, 112)) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.shape = list(inputs)

    def add(self, op: str, *inputs: str | Array | None, out: str = "", **attributes: Any) -> str:
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                name = f"w{len(self.constants)}"
                self.constants[name] = value.astype(np.float32)
                names.append(name)
            else:
                names.append(value or "")
        out = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], **attributes))
        return out

    def random(self, *shape: int) -> Array:
        inputs = float(np.prod(shape[1:])) if len(shape) > 1 else 4.0
        out: Array = (self.rng.normal(size=shape) / inputs**0.5).astype(np.float32)
        return out

    def conv(
        self, x: str, into: int, out: int, size: int = 3, bias: bool = True, **more: Any
    ) -> str:
        weight = self.random(out, into // more.get("group", 1), size, size)
        return self.add("Conv", x, weight, *([self.random(out)] if bias else []), **more)

    def norm(self, x: str, size: int, **more: Any) -> str:
        arrays = [0.5 + self.rng.random(size), self.random(size)]
        return self.add(
            "BatchNormalization", x, *arrays, self.random(size), 0.5 + self.rng.random(size), **more
        )

    def write(self, path: Path, *outputs: str) -> Path:
        inputs = [helper.make_tensor_value_info("faces", onnx.TensorProto.FLOAT, self.shape)]
        graph = helper.make_graph(
            self.nodes,
            "made-up",
            inputs,
            [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, str(path))
        return path


def every_layer(path: Path) -> tuple[Path, str]:
    """A graph of every layer there is, one a line; and the name of its last map."""
    make = Maker()
    x = make.add("Sub", "faces", np.array(100.0))
    x = make.add("Mul", x, np.array([0.01, 0.02, 0.015]).reshape(3, 1, 1))
    x = make.conv(x, 3, 8, strides=[2, 2], pads=[1, 1, 1, 1])
    x = make.add("PRelu", x, np.abs(make.random(8, 1, 1)))
    y = make.conv(x, 8, 8, bias=False, group=8, strides=[2, 2], pads=[2, 2, 2, 2], dilations=[2, 2])
    y = make.norm(y, 8, epsilon=0.01, momentum=0.8)
    y = make.add("Relu", y)
    z = make.add("MaxPool", x, kernel_shape=[1, 1], strides=[2, 2])
    x = make.add("Add", y, make.add("Identity", z))
    x = make.add("Mul", x, make.add("Sub", x, z))
    x = make.conv(x, 8, 4, strides=[4, 4])  # 28 -> 7
    last = make.add("Dropout", x, out="last")
    x = make.conv(last, 4, 6, size=7)  # a global convolution: 7 -> 1
    x = make.add("Flatten", x)
    x = make.add("Gemm", x, make.random(5, 6), make.random(5), transB=1)
    norm = make.add("ReduceL2", x, axes=[1], keepdims=1)
    return make.write(path, make.add("Div", x, norm)), last


def faces(count: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)
