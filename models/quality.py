"""Quality models, torch or ONNX, behind one call: uint8 RGB faces in, scores out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from dataset.command_line import UserError
from dataset.files import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

Scores = npt.NDArray[np.float32]
Precision = Literal["auto", "fp32", "bf16"]  # as models.device, without importing torch
_SIDE = 112
_FORMS = "uint8 RGB faces of shape (N, 112, 112, 3) or (N, 3, 112, 112)"


class _Runner(Protocol):
    def __call__(self, faces: npt.NDArray[np.uint8]) -> Scores: ...


@dataclass(frozen=True)
class QualityModel:
    """A face image quality model.

    Attributes:
        name: for people: file and architecture.
        sha256: of the file.
        calibration: what its scores mean (see evaluation.calibration), or None.
        batch_size: faces a call that suit the device.
    """

    name: str
    sha256: str
    calibration: dict[str, Any] | None
    batch_size: int
    _run: _Runner

    def __call__(self, faces: npt.NDArray[np.uint8] | Tensor) -> Scores:
        """Scores aligned faces.

        Args:
            faces: (N, 112, 112, 3) or (N, 3, 112, 112), uint8 0..255, RGB; a numpy array or a torch
                tensor. Aligned to the 5-point template (`dataset.alignment`).

        Returns:
            (N,) float32, on the label scale: 0 is the worst and 100 the best of the training faces;
            a network's own output, not clamped.

        Raises:
            TypeError: not uint8.
            ValueError: another shape.
        """
        array = np.asarray(faces)
        if array.dtype != np.uint8:
            raise TypeError(f"expected {_FORMS}, got dtype {array.dtype}")
        if array.ndim != 4 or array.shape[1:] not in ((_SIDE, _SIDE, 3), (3, _SIDE, _SIDE)):
            raise ValueError(f"expected {_FORMS}, got shape {array.shape}")
        if array.shape[1] == 3:
            array = array.transpose(0, 2, 3, 1)
        if len(array) == 0:
            return np.empty(0, np.float32)
        return self._run(np.ascontiguousarray(array))


def load_quality_model(
    model: str | os.PathLike[str],
    backbone: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> QualityModel:
    """Loads a quality model.

    Args:
        model: a checkpoint of this project or in the published format.
        backbone: a name in models.networks.BACKBONES; None finds it from the keys.
        device: auto, cpu, cuda or cuda:i.
        precision: auto (bf16 where the device is fast at it), fp32 or bf16.

    Raises:
        UserError: no such file, or not a quality network.
    """
    path = Path(model)
    if not path.is_file():
        raise UserError(
            f"--model {model}: no such file; train one with train.py, or get the published "
            "checkpoint (README, Published weights)"
        )
    return _load_torch(path, backbone, device, precision)


def _load_torch(
    path: Path, backbone: str | None, device: str, precision: Precision
) -> QualityModel:
    import torch

    from models.checkpoints import load_network, read_about
    from models.device import choose_compute
    from models.networks import FaceModel

    compute = choose_compute(device, precision)
    about = read_about(path)
    name, network = load_network(path, recognition=False, backbone=backbone)
    module = FaceModel(network).to(memory_format=torch.channels_last).to(compute.device).eval()

    def run(faces: npt.NDArray[np.uint8]) -> Scores:
        with torch.inference_mode(), compute.autocast():
            on_device = torch.from_numpy(faces).to(compute.device, non_blocking=True)
            out: Scores = module(on_device)[:, 0].float().cpu().numpy()
        return out

    return QualityModel(
        name=f"{path.name} ({name})",
        sha256=about.get("sha256") or sha256_of(path),
        calibration=about.get("calibration"),
        batch_size=512 if compute.device.type == "cuda" else 16,
        _run=run,
    )
