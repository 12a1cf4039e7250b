"""A quality network as one ONNX file: uint8 RGB faces in, scores out, nothing to get wrong between.

torch's older exporter writes it: it needs only the package `onnx` and reaches opset 9, which
runtimes of many years read. The newer one needs `onnxscript` too, and writes no opset below 18.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from models.networks import FaceModel
from sdd_fiqa.errors import UserError

# Of the operators in use, PRelu with one slope a channel came with opset 7 and MaxPool's strides
# before that; torch folds the BatchNorms from 9 on.
OPSET = 9
INPUT, OUTPUT = "faces", "scores"
_SIDE = 112


class _Scorer(nn.Module):
    """(N, 112, 112, 3) uint8 RGB -> (N,) float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = FaceModel(_with_quick_prelu(copy.deepcopy(network)))

    def forward(self, faces: Tensor) -> Tensor:
        out: Tensor = self.model(faces)[:, 0]
        return out


class _MaxPReLU(nn.Module):
    """PReLU with slopes a <= 1: x where x > 0, else a x, is max(x, a x).

    onnxruntime chooses element by element in PRelu, and spends two thirds of a MobileFaceNet's time
    there on a CPU; Mul and Max are vector operations.
    """

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes = nn.Buffer(slopes)

    def forward(self, x: Tensor) -> Tensor:
        slopes = self.slopes.view(-1, *[1] * (x.dim() - 2))  # against (B, C, ...)
        return torch.maximum(x, slopes * x)


def _with_quick_prelu(network: nn.Module) -> nn.Module:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.PReLU) and float(module.weight.max()) <= 1:
            network.set_submodule(name, _MaxPReLU(module.weight.detach()))
    return network


def onnx_bytes(network: nn.Module, properties: dict[str, Any]) -> bytes:
    """Writes a quality network as an ONNX model, checked by the `onnx` package.

    Args:
        network: a float32 quality network, (N, 3, 112, 112) -> (N, 1).
        properties: the model's metadata; what is not text becomes JSON.

    Returns:
        The file's content: input `faces`, (N, 112, 112, 3) uint8 RGB; output `scores`, (N,)
        float32, on the label scale.

    Raises:
        UserError: the package `onnx` is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("the export needs the package onnx: pip install onnx") from error
    example = torch.zeros(2, _SIDE, _SIDE, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # That this exporter is the older one, and that the shape of `faces` is fixed here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Scorer(network).eval(),
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
        )
    model = onnx.load_from_string(buffer.getvalue())
    for key, value in properties.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content
