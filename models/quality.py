"""Quality models, torch or ONNX, behind one call: uint8 RGB faces in, scores out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from common.precision import Precision, check_precision
from models.pretrained import find_model
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.quality_onnx import first_line, is_onnx, open_onnx

if TYPE_CHECKING:
    from torch import Tensor

Scores = npt.NDArray[np.float32]
_SIDE = 112
_FORMS = "uint8 RGB faces of shape (N, 112, 112, 3) or (N, 3, 112, 112)"
_ONNX_FACES = 8  # a run, on one thread of the CPU


class _Runner(Protocol):
    def __call__(self, faces: npt.NDArray[np.uint8]) -> Callable[[], Scores]: ...


@dataclass(frozen=True)
class QualityModel:
    """A face image quality model.

    Attributes:
        name: for people: file and architecture.
        calibration: what its scores mean (see evaluation.calibration), or None.
        batch_size: faces at a time that suit the device; a call may bring more.
    """

    name: str
    calibration: dict[str, Any] | None
    batch_size: int
    _run: _Runner

    def __call__(self, faces: npt.NDArray[np.uint8] | Tensor) -> Scores:
        """Scores aligned faces.

        Args:
            faces: (N, 112, 112, 3) or (N, 3, 112, 112), uint8 0..255, RGB (OpenCV reads BGR: pass
                `bgr[..., ::-1]`); a numpy array or a torch tensor on any device. Aligned to the
                5-point template (`sdd_fiqa.alignment`).

        Returns:
            (N,) float32, on the label scale: 0 is the worst and 100 the best of the training faces;
            a network's own output, not clamped.

        Raises:
            TypeError: not uint8 (a normalised float image, say).
            ValueError: another shape: one face without its batch axis, grey, RGBA, not 112x112.
        """
        return self.begin(faces)()

    def begin(self, faces: npt.NDArray[np.uint8] | Tensor) -> Callable[[], Scores]:
        """As a call, but what is returned waits for the scores: a GPU works on meanwhile.

        It may be asked again: Ctrl-C may have cut the first wait short.
        """
        kind = str(getattr(faces, "dtype", "")).removeprefix("torch.")
        if not kind or kind == "uint8":  # numpy does not know all of torch's kinds
            array = np.asarray(faces.detach().cpu() if hasattr(faces, "detach") else faces)
            kind = str(array.dtype)
        if kind != "uint8":
            raise TypeError(
                f"expected {_FORMS}, got dtype {kind}; pass the pixels as they are, 0..255: "
                "the model normalises them itself"
            )
        allowed = (_SIDE, _SIDE, 3), (3, _SIDE, _SIDE)
        if array.shape in allowed:
            raise ValueError(f"expected {_FORMS}, got {array.shape}: one face is faces[None]")
        if array.ndim != 4 or array.shape[1:] not in allowed:
            raise ValueError(f"expected {_FORMS}, got shape {array.shape}")
        if array.shape[1] == 3:
            array = array.transpose(0, 2, 3, 1)
        if len(array) == 0:
            return lambda: np.empty(0, np.float32)
        size = self.batch_size  # larger batches are slower on a CPU, and may not fit a GPU
        parts = (array[start : start + size] for start in range(0, len(array), size))
        # Writable, or torch warns; what PIL gives numpy is not.
        waiting = [self._run(np.require(part, requirements=["C", "W"])) for part in parts]
        return lambda: np.concatenate([scores() for scores in waiting])


def load_quality_model(
    model: str | os.PathLike[str],
    backbone: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
) -> QualityModel:
    """Loads a quality model.

    Args:
        model: a name in models.pretrained.PRETRAINED; a checkpoint of this project or in the
            published format; or an .onnx file of export_onnx.py (through onnxruntime: torch is not
            imported).
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
    if is_onnx(path):
        return _load_onnx(path, backbone, device, precision)
    return _load_torch(path, backbone, device, precision)


def _load_torch(
    path: Path, backbone: str | None, device: str, precision: Precision
) -> QualityModel:
    from common.device import choose_compute
    from models.checkpoints import load_network
    from models.inference import Forward

    compute = choose_compute(device, precision)
    name, network, about = load_network(path, recognition=False, backbone=backbone)
    forward = Forward(network, compute)

    def run(faces: npt.NDArray[np.uint8]) -> Callable[[], Scores]:
        outputs = forward.begin(faces)
        return lambda: outputs()[:, 0]

    return QualityModel(
        name=f"{path.name} ({name})",
        calibration=about.get("calibration"),
        batch_size=forward.batch_size,
        _run=run,
    )


def _load_onnx(path: Path, backbone: str | None, device: str, precision: Precision) -> QualityModel:
    if precision == "bf16":
        raise UserError(
            f"--precision bf16: {path} runs in the precision it was made in; leave the flag out, "
            "or score with the checkpoint"
        )
    network = open_onnx(path, device)
    session, wants = network.session, network.input
    gives = session.get_outputs()[0].shape
    if wants.type != "tensor(uint8)" or wants.shape[1:] != [_SIDE, _SIDE, 3] or len(gives) != 1:
        raise UserError(
            f"{path}: takes {wants.type} {wants.shape} and gives {gives}; a quality model takes "
            f"uint8 [N, {_SIDE}, {_SIDE}, 3] and gives [N]: make it with export_onnx.py"
        )
    about = session.get_modelmeta().custom_metadata_map
    name = about.get("model", "unknown network")
    if backbone not in (None, name):
        raise UserError(f"{path}: is a {name} network, not the {backbone} that was asked for")
    try:
        calibration = json.loads(about.get("calibration", "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}); export it again") from error

    step = 512 if network.on_gpu else _ONNX_FACES
    pool = ThreadPoolExecutor(1 if network.on_gpu else own_cores(), thread_name_prefix="score")

    def some(faces: npt.NDArray[np.uint8]) -> Scores:
        try:
            scores = np.asarray(session.run(None, {wants.name: faces})[0], np.float32)
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise UserError(
                f"{path}: does not run on {len(faces)} faces ({first_line(error)}); make it with "
                "export_onnx.py"
            ) from error
        if scores.shape != (len(faces),):
            raise UserError(
                f"{path}: gives {scores.shape} for {len(faces)} faces, not a score for each; make "
                "it with export_onnx.py"
            )
        return scores

    def run(faces: npt.NDArray[np.uint8]) -> Callable[[], Scores]:
        parts = [faces[start : start + step] for start in range(0, len(faces), step)]
        scores = [pool.submit(some, part) for part in parts]
        return lambda: np.concatenate([part.result() for part in scores])

    return QualityModel(
        name=f"{path.name} ({name})",
        calibration=calibration,
        batch_size=512 if network.on_gpu else _ONNX_FACES * own_cores(),
        _run=run,
    )
