"""Quality models behind one call, uint8 RGB faces in, scores out; here those of .onnx files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import parse_json
from sdd_fiqa.onnx_runner import GPU_FACES, Faces, OnnxRunner, Outputs

SHIPPED = {"small": Path(__file__).with_name("small.onnx")}  # the library's models, by name
_FORMS = "uint8 RGB faces of shape (N, 112, 112, 3) or (N, 3, 112, 112)"
_CPU_FACES = 8  # faces a core in a batch
# Bytes of a small file. On a CPU, a small network is a fifth faster on one face than on eight,
# whose maps do not fit the cache. The weights of a large network do not fit it either; there one
# run of eight faces reads them once.
_SMALL = 1 << 25


@dataclass(frozen=True)
class QualityModel:
    """A face image quality model.

    Attributes:
        name: human-readable: file and architecture.
        calibration: what its scores mean (see sdd_fiqa.calibration), or None.
        batch_size: faces at a time that suit the device; a call may bring more.
        run: scores (N, 112, 112, 3) faces; returns a function that waits for the (N,) scores.
    """

    name: str
    calibration: dict[str, Any] | None
    batch_size: int
    run: Callable[[Faces], Callable[[], Outputs]]

    def __call__(self, faces: npt.ArrayLike) -> Outputs:
        """Scores aligned faces.

        Args:
            faces: (N, 112, 112, 3) or (N, 3, 112, 112), uint8 0..255, RGB (OpenCV reads BGR: pass
                `bgr[..., ::-1]`); a numpy array or a torch tensor on any device. Aligned to the
                5-point template (`sdd_fiqa.alignment`).

        Returns:
            (N,) float32, on the label scale: 0 is the worst and 100 the best of the training faces;
            the network's own output, not clamped.

        Raises:
            TypeError: not uint8 (a normalised float image, for example).
            ValueError: another shape: one face without its batch axis, grey, RGBA, not 112x112.
        """
        return self.begin(faces)()

    def begin(self, faces: npt.ArrayLike) -> Callable[[], Outputs]:
        """As a call, but returns a function that waits for the scores: a GPU works in the meantime.

        The function may be called again, for example after Ctrl-C interrupted its first call.
        """
        kind = str(getattr(faces, "dtype", "")).removeprefix("torch.")
        if not kind or kind == "uint8":  # numpy does not know all of torch's types
            array = np.asarray(faces.detach().cpu() if hasattr(faces, "detach") else faces)
            kind = str(array.dtype)
        if kind != "uint8":
            raise TypeError(
                f"expected {_FORMS}, got dtype {kind}; pass the pixels as they are, 0..255: "
                "the model normalises them itself"
            )
        allowed = (112, 112, 3), (3, 112, 112)
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
        # Writable, because torch warns otherwise; arrays from Pillow are not.
        waiting = [self.run(np.require(part, requirements=["C", "W"])) for part in parts]
        return lambda: np.concatenate([scores() for scores in waiting])


def load_onnx_model(
    path: Path, device: str = "auto", backbone: str | None = None, threads: int | None = None
) -> QualityModel:
    """Loads an .onnx file of export_onnx.py; it runs in the precision it was made in.

    The device is auto, cpu, cuda or cuda:i; of a CPU at most so many cores are used, by default
    all. With `backbone`, another architecture is refused.

    Raises:
        UserError: not a quality model, another architecture, no such device, or onnxruntime is
            missing.
    """
    runner = OnnxRunner(path, device, threads)
    takes, gives = runner.input, runner.output.shape
    if takes.type != "tensor(uint8)" or takes.shape[1:] != [112, 112, 3] or len(gives) != 1:
        raise UserError(
            f"{path}: takes {takes.type} {takes.shape} and gives {gives}; a quality model takes "
            "uint8 [N, 112, 112, 3] and gives [N]: make it with export_onnx.py"
        )
    about = runner.metadata
    name = about.get("model", "unknown network")
    if backbone not in (None, name):
        raise UserError(f"{path}: is a {name} network, not the {backbone} that was asked for")
    try:
        calibration = parse_json(about.get("calibration", "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error}); export it again") from error

    def run(faces: Faces) -> Outputs:
        scores = runner.run(faces)
        if scores.shape != (len(faces),):
            raise UserError(
                f"{path}: gives {scores.shape} for {len(faces)} faces, not a score for each; make "
                "it with export_onnx.py"
            )
        return scores

    size = GPU_FACES
    if not runner.on_gpu:
        size = 1 if path.stat().st_size < _SMALL else _CPU_FACES
    return QualityModel(
        name=f"{path.name} ({name})",
        calibration=calibration,
        batch_size=size if runner.on_gpu else _CPU_FACES * (threads or own_cores()),
        run=lambda faces: runner.begin(faces, size, run),
    )
