"""The ONNX file in int8: smaller and faster on CPUs, and kept only where it ranks faces the same.

In the convolutions, weights are int8 with a scale a channel, and activations uint8; the rest stays
float32, and so do the first convolution and those that take each channel alone: they hold little of
the work and most of the error. The ranges of the activations are those seen on some aligned faces
(onnxruntime's static quantisation).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.onnx_export import INPUT

_OPSET = 13  # the first with a scale a channel
_BATCH = 16


def quantised(content: bytes, faces: npt.NDArray[np.uint8]) -> bytes:
    """Turns the convolutions of an exported quality model into int8; its metadata stays.

    Args:
        content: what `onnx_bytes` wrote.
        faces: (N, 112, 112, 3) uint8 RGB, aligned, like those to come; some hundreds.
    """
    import onnx
    from onnx import version_converter
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Any]] = iter(
                {INPUT: faces[start : start + _BATCH]} for start in range(0, len(faces), _BATCH)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    model = onnx.load_from_string(content)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory(prefix="sdd-fiqa-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(version_converter.convert_version(model, _OPSET), source)
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
                nodes_to_exclude=_delicate(model),
                extra_options={"CalibMovingAverage": True},  # of batches: no outlier rules a range
            )
        finally:
            logging.disable(logging.NOTSET)
        small = onnx.load(target)
    del small.metadata_props[:]
    for key, value in {**properties, "precision": "int8 convolutions"}.items():
        small.metadata_props.add(key=key, value=value)
    out: bytes = small.SerializeToString()
    return out


def _delicate(model: Any) -> list[str]:
    """Names of the first convolution and of those that take each channel alone (depthwise)."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    grouped = [
        node.name
        for node in convolutions
        if any(entry.name == "group" and entry.i > 1 for entry in node.attribute)
    ]
    return [convolutions[0].name, *grouped]
