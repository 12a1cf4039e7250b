"""ONNX files through onnxruntime, for recognisers and quality models; torch is not imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.command_line import UserError


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX network ready to run.

    Attributes:
        session: of onnxruntime.
        input: its first input: name, type, shape.
        on_gpu: whether it runs on CUDA.
    """

    session: Any
    input: Any
    on_gpu: bool


def open_onnx(path: str | os.PathLike[str], device: str, threads: int) -> OnnxNetwork:
    """Opens an ONNX file.

    Args:
        path: the file.
        device: auto (CUDA where this onnxruntime has it), cpu, cuda or cuda:i.
        threads: that share one run on the CPU.

    Raises:
        UserError: not an ONNX network, no such device, or onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path}: needs the package onnxruntime: pip install onnxruntime"
        ) from error
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise UserError(f"--device {device}: must be auto, cpu, cuda or cuda:<index>")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise UserError(
            f"--device {device}: this onnxruntime has no CUDA; use --device cpu, or install "
            "onnxruntime-gpu in place of onnxruntime"
        )
    on_gpu = kind != "cpu" and has_cuda
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    provider: Any = "CPUExecutionProvider"
    if on_gpu:
        provider = ("CUDAExecutionProvider", {"device_id": int(index or 0)})
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: is not an ONNX network that can be run ({reason})") from error
    return OnnxNetwork(session, session.get_inputs()[0], on_gpu)


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file is meant to be ONNX: by its suffix."""
    return Path(path).suffix.lower() == ".onnx"
