"""Loads quality models: torch checkpoints here, .onnx files with sdd_fiqa, without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from common.device import Precision, check_precision, choose_compute
from models.pretrained import find_model
from sdd_fiqa.cores import nvidia_driver, parse_device
from sdd_fiqa.errors import UserError
from sdd_fiqa.onnx_runner import Faces, Outputs, is_onnx
from sdd_fiqa.quality_onnx import SHIPPED, QualityModel, load_onnx_model


def load_quality_model(
    model: str | os.PathLike[str],
    backbone: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> QualityModel:
    """Loads a quality model.

    Args:
        model: a name in models.pretrained.PRETRAINED (on a CPU, and where torch is missing, this is
            the library's ONNX file, unless bf16 is asked for); a checkpoint of this project or in
            the published format; or an .onnx file of export_onnx.py (run by onnxruntime: torch is
            not imported).
        backbone: a name in models.networks.BACKBONES; None finds it from the file.
        device: auto, cpu, cuda or cuda:i.
        precision: auto (bf16 where the device is fast at it), fp32 or bf16; an .onnx file runs in
            the precision it was made in.

    Raises:
        UserError: no such file or name, not a quality network, or no such device or precision.

    Example:
        >>> model = load_quality_model("small")  # doctest: +SKIP
        >>> scores = model(faces)  # (N, 112, 112, 3) uint8 RGB -> (N,)  # doctest: +SKIP
    """
    check_precision(precision)
    path = find_model(model)
    if precision != "bf16" and not _gpu_and_torch(device):
        path = SHIPPED.get(os.fspath(model), path)
    if is_onnx(path):
        if precision == "bf16":
            raise UserError(
                f"--precision bf16: {path} runs in the precision it was made in; leave the flag "
                "out, or score with the checkpoint"
            )
        return load_onnx_model(path, device, backbone)
    return _load_checkpoint(path, backbone, device, precision)


def _load_checkpoint(
    path: Path, backbone: str | None, device: str, precision: Precision
) -> QualityModel:
    try:
        from models.checkpoints import load_network
        from models.inference import Forward
    except ImportError as error:
        raise UserError(
            f"{path}: a checkpoint needs torch ({error}): pip install -r requirements.txt, or "
            "score with an .onnx file of export_onnx.py"
        ) from error
    compute = choose_compute(device, precision)
    name, network, about = load_network(path, recognition=False, backbone=backbone)
    forward = Forward(network, compute)

    def run(faces: Faces) -> Callable[[], Outputs]:
        outputs = forward.begin(faces)
        return lambda: outputs()[:, 0]

    return QualityModel(
        name=f"{path.name} ({name})",
        calibration=about.get("calibration"),
        batch_size=forward.batch_size,
        run=run,
    )


def _gpu_and_torch(device: str) -> bool:
    """Whether `--device` means a GPU that torch can use; without a GPU torch is not imported."""
    kind, _ = parse_device(device)
    if kind == "cpu" or (kind == "auto" and not nvidia_driver()):
        return False
    try:
        import torch
    except ImportError:
        return False
    return kind == "cuda" or torch.cuda.is_available()
