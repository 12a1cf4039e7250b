"""Runs ONNX files with onnxruntime, for quality models and recognisers; torch is not imported."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sdd_fiqa.cores import nvidia_driver, own_cores, parse_device
from sdd_fiqa.errors import UserError

Faces = npt.NDArray[np.uint8]  # (N, 112, 112, 3) RGB
Outputs = npt.NDArray[np.float32]  # (N,) scores or (N, D) embeddings

GPU_FACES = 512  # a run
_CUDA = "CUDAExecutionProvider"
_LOGGER = logging.getLogger("sdd_fiqa")


class End(NamedTuple):
    """An input or output of a network, as onnxruntime describes it."""

    name: str
    type: str
    shape: list[Any]


class OnnxRunner:
    """An ONNX network that runs on the faces of a batch in parallel.

    Each run uses one thread, and several runs work in parallel. If onnxruntime used several threads
    for one run, they would wait for each other in busy loops. That is slow when other programs use
    the CPU too.

    Args:
        path: the file.
        device: auto (CUDA if there is a GPU and this onnxruntime supports it), cpu, cuda or cuda:i.
        threads: how many runs work in parallel on a CPU; None: one a core.
        content: what to run instead of the file's own bytes; messages still name the file.

    Attributes:
        session: onnxruntime's.
        input, output: its first ones.
        metadata: what its maker wrote in it.
        on_gpu: whether it runs on CUDA.

    Raises:
        UserError: not an ONNX network, no such device, or onnxruntime is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str,
        threads: int | None = None,
        content: bytes | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{path}: needs the package onnxruntime: pip install onnxruntime"
            ) from error
        gpu = _gpu(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # the errors below report what it would log
        options.intra_op_num_threads = 1
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None and _CUDA in onnxruntime.get_available_providers():
            # The default search tries every kernel again for each batch size.
            providers = [(_CUDA, {"device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC"})]
        try:
            # It prints to stdout if CUDA fails to start, and stdout may be a table of scores.
            with redirect_stdout(sys.stderr):
                self.session: Any = onnxruntime.InferenceSession(
                    content or os.fspath(path), options, providers=providers
                )
            ends = [*self.session.get_inputs()[:1], *self.session.get_outputs()[:1]]
            if len(ends) < 2:
                raise ValueError("it has no input or no output")
            # Read here, as damaged names fail when they are read.
            self.input, self.output = (End(end.name, end.type, end.shape) for end in ends)
            self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime's errors have no common base class
            raise UserError(
                f"{path}: is not an ONNX network that can be run ({_first_line(error)})"
            ) from error
        self._path = path
        # If CUDA's libraries are missing, onnxruntime silently takes the CPU.
        self.on_gpu = self.session.get_providers()[0] == _CUDA
        self._pool = ThreadPoolExecutor(1 if self.on_gpu else threads or own_cores(), "onnx")
        if gpu is not None and not self.on_gpu:
            lack = "has no CUDA, or not the CUDA and cuDNN libraries that it needs"
            fix = "install onnxruntime-gpu in place of onnxruntime"
            if device != "auto":
                raise UserError(
                    f"--device {device}: this onnxruntime {lack}; use --device cpu, or {fix}"
                )
            _LOGGER.warning("%s: runs on the CPU: this onnxruntime %s; %s", path, lack, fix)

    def run(self, values: npt.NDArray[Any]) -> Outputs:
        """Runs the network on the calling thread: `values` -> its first output, as float32.

        Raises:
            UserError: it does not run on them.
        """
        try:
            return np.asarray(self.session.run(None, {self.input.name: values})[0], np.float32)
        except Exception as error:
            shape, reason = list(values.shape), _first_line(error)
            raise UserError(f"{self._path}: does not run on input {shape} ({reason})") from error

    def begin(
        self, faces: Faces, size: int, run: Callable[[Faces], Outputs]
    ) -> Callable[[], Outputs]:
        """Calls `run` on portions of `size` faces, on parallel threads.

        Returns:
            A function that waits for the outputs of all faces, in their order.
        """
        starts = range(0, len(faces), size)
        parts = [self._pool.submit(run, faces[start : start + size]) for start in starts]
        return lambda: np.concatenate([part.result() for part in parts])


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file's suffix is that of an ONNX file."""
    return Path(path).suffix.lower() == ".onnx"


def _gpu(device: str) -> int | None:
    """The index of the GPU that `--device` means for this process; None for the CPU."""
    kind, index = parse_device(device)
    return None if kind == "cpu" or (kind == "auto" and not nvidia_driver()) else index


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
