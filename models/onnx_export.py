"""Writes a quality network as one ONNX file: uint8 RGB faces in, scores out.

If asked, its weights are stored in float16, or its convolutions are in int8.

torch's older exporter writes it. That needs only the package `onnx`, and can write opset 9, which
runtimes of many years can read. The newer exporter also needs `onnxscript`, and writes no opset
below 18.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.networks import FaceModel
from models.recognisers import scale_prelus
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import scratch_folder
from sdd_fiqa.onnx_runner import Faces

OPSET = 9  # the lowest from which torch folds the BatchNorms
_INT8_OPSET = 13  # the lowest with a scale for each channel
_INT8_BATCH = 16
# Smaller arrays stay float32 in a file of float16 weights: they are 2 % of `small`, and half of the
# error.
_FEW_NUMBERS = 20_000
INPUT, OUTPUT = "faces", "scores"


class _Scorer(FaceModel):
    def forward(self, faces: Tensor) -> Tensor:
        """(N, 112, 112, 3) uint8 RGB -> (N,) float32."""
        return super().forward(faces)[:, 0]


def onnx_bytes(network: nn.Module, properties: dict[str, Any]) -> bytes:
    """Writes a quality network as an ONNX model, checked by the `onnx` package.

    Args:
        network: a float32 quality network, (N, 3, 112, 112) -> (N, 1).
        properties: the model's metadata; values that are not text become JSON.

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
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # It warns that this exporter is the older one, and that the size of `faces` is fixed.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Scorer(network).eval(),
            (torch.zeros(2, 112, 112, 3, dtype=torch.uint8),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
        )
    model = onnx.load_from_string(buffer.getvalue())
    scale_prelus(model)
    used = {name for node in model.graph.node for name in node.input}
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name not in used:  # onnxruntime would warn
            del model.graph.initializer[place]
    return _finished(model, properties)


def _finished(model: Any, properties: dict[str, Any]) -> bytes:
    """The content of a model's file, checked, with more metadata."""
    import onnx

    for key, value in properties.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def with_half_weights(content: bytes) -> bytes:
    """Stores the large weights of what `onnx_bytes` wrote in float16; its metadata stays.

    A Cast to float32 follows each of them, so all computation is in float32: onnxruntime does the
    casts once, when it loads the file.

    Raises:
        UserError: a weight does not fit float16.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _FEW_NUMBERS:
            continue
        if not np.abs(values).max() <= np.finfo(np.float16).max:
            raise UserError(f"the weights {weight.name} do not fit float16; leave out --half")
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(
            onnx.helper.make_node("Cast", [weight.name], [name], name, to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]  # a node follows those whose outputs it takes
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return _finished(model, {"precision": "float16 weights, computed in float32"})


def quantised(content: bytes, faces: Faces) -> bytes:
    """Turns the convolutions of an exported quality model into int8; its metadata stays.

    Weights become int8 with a scale for each channel, activations uint8. The ranges of the
    activations are those seen on `faces` (onnxruntime's static quantisation). The first convolution
    and the depthwise ones stay float32: they do little of the work, and would cause most of the
    error.

    Args:
        content: what `onnx_bytes` wrote.
        faces: (N, 112, 112, 3) uint8 RGB, aligned, similar to those that will be scored; some
            hundreds.
    """
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization

    starts = range(0, len(faces), _INT8_BATCH)
    batches = ({INPUT: faces[start : start + _INT8_BATCH]} for start in starts)

    # onnxruntime has no types.
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    model = onnx.load_from_string(content)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    first, *others = (node for node in model.graph.node if node.op_type == "Conv")
    depthwise = [
        node.name
        for node in others
        if any(entry.name == "group" and entry.i > 1 for entry in node.attribute)
    ]
    with scratch_folder() as folder:
        source, target = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(version_converter.convert_version(model, _INT8_OPSET), source)
        logging.disable(logging.WARNING)  # it advises a step that this graph does not need
        try:
            quantization.quantize_static(
                source,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=[first.name, *depthwise],
                # The mean range of the batches, so that one outlier does not widen it.
                extra_options={"CalibMovingAverage": True},
            )
        finally:
            logging.disable(logging.NOTSET)
        small = onnx.load(target)
    del small.metadata_props[:]
    return _finished(small, {**properties, "precision": "int8 convolutions"})
