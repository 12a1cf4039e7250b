"""ONNX files through onnxruntime, for recognisers and quality models; torch is not imported."""

from __future__ import annotations

import os
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import note
from sdd_fiqa.cores import nvidia_driver
from sdd_fiqa.errors import UserError

_CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX network ready to run.

    Attributes:
        session: of onnxruntime; one thread a run on the CPU, and runs may go side by side.
        input: its first input: name, type, shape.
        on_gpu: whether it runs on CUDA.
    """

    session: Any
    input: Any
    on_gpu: bool


def open_onnx(path: str | os.PathLike[str], device: str) -> OnnxNetwork:
    """Opens an ONNX file.

    A run takes one thread: onnxruntime's threads inside one run wait for each other in busy loops,
    and lose most on a machine that has other work too. Give the faces to threads of your own.

    Args:
        path: the file.
        device: auto (CUDA where there is a GPU and this onnxruntime has it), cpu, cuda or cuda:i.

    Raises:
        UserError: not an ONNX network, no such device, or onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path}: needs the package onnxruntime: pip install onnxruntime"
        ) from error
    gpu = _gpu(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is reported by us, once
    options.intra_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None and _CUDA in onnxruntime.get_available_providers():
        # The default search tries every kernel anew for each size of batch.
        providers = [(_CUDA, {"device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC"})]
    try:
        # It prints where CUDA fails to start, and stdout may be a table of scores.
        with redirect_stdout(sys.stderr):
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise UserError(
            f"{path}: is not an ONNX network that can be run ({first_line(error)})"
        ) from error
    # Without its libraries CUDA is passed over without a word, and the CPU runs the network.
    on_gpu = session.get_providers()[0] == _CUDA
    if gpu is not None and not on_gpu:
        lack = "has no CUDA, or not the CUDA and cuDNN libraries that it wants"
        mend = "install onnxruntime-gpu in place of onnxruntime"
        if device != "auto":
            raise UserError(
                f"--device {device}: this onnxruntime {lack}; use --device cpu, or {mend}"
            )
        note(f"{path}: runs on the CPU: this onnxruntime {lack}; {mend}")
    return OnnxNetwork(session, session.get_inputs()[0], on_gpu)


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file is meant to be ONNX: by its suffix."""
    return Path(path).suffix.lower() == ".onnx"


def _gpu(device: str) -> int | None:
    """The index of the GPU that `--device` means for this process; None for the CPU."""
    if device == "cpu" or (device == "auto" and not nvidia_driver()):
        return None
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
    if match is None:
        raise UserError(f"--device {device}: must be auto, cpu, cuda or cuda:<index>")
    return int(match[1] or os.environ.get("LOCAL_RANK", 0))


def first_line(error: Exception) -> str:
    """An error of onnxruntime, which may have many lines, in one."""
    return (str(error).splitlines() or [type(error).__name__])[0]
