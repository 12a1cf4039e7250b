"""Face recognisers, torch or ONNX, behind one call: uint8 RGB faces in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from common.cli import note
from common.precision import Precision
from sdd_fiqa.assets import fetch
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, sha256_of
from sdd_fiqa.quality_onnx import first_line, is_onnx, open_onnx

if TYPE_CHECKING:
    from torch import nn

    from common.device import Compute

Faces = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxInput:
    """How an ONNX recogniser wants its faces: (x - mean) / scale of 0..255 pixels, NCHW.

    Attributes:
        colour: RGB or BGR.
        mean: subtracted first.
        scale: divided by then.
        dimension: length of its embedding; 0 when not known beforehand.
    """

    colour: str
    mean: float
    scale: float
    dimension: int


# The recognisers known by name. Another ONNX file is described by a .json beside it with the same
# fields; without one it is taken to follow InsightFace's convention.
ONNX_RECOGNISERS = {
    "sface": OnnxInput("RGB", 0.0, 1.0, 128),
    "w600k_mbf": OnnxInput("RGB", 127.5, 127.5, 512),
}
MIN_COSINE = 0.999  # of bf16 to float32 embeddings, for `--precision auto` to take bf16
_INSIGHTFACE = OnnxInput("RGB", 127.5, 127.5, 0)
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Recogniser(Protocol):
    """What extract_feats needs of a recogniser."""

    about: dict[str, Any]  # weights and preprocessing, for the .json beside the embeddings
    dimension: int  # D
    batch_size: int  # faces a call that suit the device

    def embed(self, faces: Faces) -> Embeddings:
        """(B, 112, 112, 3) uint8 RGB -> (B, D) float32, not normalised."""

    def begin(self, faces: Faces) -> Callable[[], Embeddings]:
        """As `embed`, but what is returned waits for the embeddings: a GPU works on meanwhile."""


def load_recogniser(
    weights: str,
    backbone: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    probe: Faces | None = None,
) -> Recogniser:
    """Loads a recogniser.

    Args:
        weights: a name in ONNX_RECOGNISERS (fetched once, then cached), an .onnx file, or a torch
            checkpoint with a recognition head.
        backbone: a name in models.networks.BACKBONES, for torch checkpoints; None finds it from
            the keys.
        device: auto, cpu, cuda or cuda:i.
        precision: auto, fp32 or bf16. ONNX files of layers that torch knows run in torch on a GPU
            and in bf16; others in onnxruntime, in the precision they were made in.
        probe: (B, 112, 112, 3) uint8 RGB faces, some of those to come: with precision auto, bf16 is
            taken only if their embeddings keep a cosine of MIN_COSINE to float32's.

    Raises:
        UserError: unknown name, missing or damaged file, or weights that do not fit.
    """
    if weights in ONNX_RECOGNISERS:
        path, wants = fetch(weights), ONNX_RECOGNISERS[weights]
        return _load_onnx(path, weights, wants, device, precision, probe)
    if not Path(weights).is_file():
        known = ", ".join(ONNX_RECOGNISERS)
        raise UserError(f"--weights {weights}: no such file, and no known name ({known})")
    if is_onnx(weights):
        path = Path(weights)
        return _load_onnx(path, weights, describe_onnx(path), device, precision, probe)
    return _load_torch(weights, backbone, device, precision, probe)


def _load_torch(
    weights: str, backbone: str | None, device: str, precision: Precision, probe: Faces | None
) -> Recogniser:
    from common.device import choose_compute
    from models.checkpoints import load_network
    from models.networks import pixels_of

    compute = choose_compute(device, precision)
    name, network, _ = load_network(weights, recognition=True, backbone=backbone)
    described = {**asdict(pixels_of(network)), "dimension": 512}
    about = {
        "weights": weights,
        "sha256": sha256_of(weights),
        "backbone": name,
        "preprocessing": described,
    }
    return _TorchRecogniser(network, about, compute, probe if precision == "auto" else None)


def _load_onnx(
    path: Path, name: str, wants: OnnxInput, device: str, precision: Precision, probe: Faces | None
) -> Recogniser:
    """Its layers in torch where that is faster, on a GPU or in bf16; else onnxruntime."""
    from common.device import choose_compute

    compute = choose_compute(device, precision)
    if str(compute) == "cpu fp32":
        return _OnnxRecogniser(path, name, wants, device)
    from models.backbones import Pixels
    from models.onnx_import import read_embedder

    try:
        network, dimension = read_embedder(path)
    except UserError as error:  # layers that only onnxruntime knows, or no network: it says which
        if compute.device.type == "cuda":
            note(f"torch cannot run {error}; onnxruntime runs it, on the GPU if it has CUDA")
        return _OnnxRecogniser(path, name, wants, device)
    if wants.dimension not in (0, dimension):
        raise UserError(
            f"{path}: gives an output of shape (1, {dimension}), not (N, {wants.dimension})"
        )
    network.pixels = Pixels(wants.colour, wants.mean, wants.scale)
    about = {
        "weights": name,
        "sha256": sha256_of(path),
        "preprocessing": {**asdict(wants), "dimension": dimension},
    }
    return _TorchRecogniser(network, about, compute, probe if precision == "auto" else None)


class _TorchRecogniser:
    def __init__(
        self, network: nn.Module, about: dict[str, Any], compute: Compute, probe: Faces | None
    ) -> None:
        """`probe`: None keeps the precision whatever it does to the embeddings."""
        from common.device import choose_compute
        from models.inference import Forward

        # Folded BatchNorms round differently in bf16: faces spoilt beyond recognition, whose
        # embeddings are short, then fell from a cosine of .997 to float32 to .983.
        self._forward = Forward(network, compute, fold=compute.name == "fp32")
        if probe is not None and compute.name != "fp32" and len(probe):
            full = self._forward.again(choose_compute(str(compute.device), "fp32"))
            if not _close(self._forward.begin(probe)(), full.begin(probe)()):
                note(
                    f"{about['weights']}: in {compute.name} its embeddings drift; float32 is taken"
                )
                self._forward = Forward(network, full.compute)
        self.dimension = about["preprocessing"]["dimension"]
        self.batch_size = self._forward.batch_size
        precision = f"{compute.device.type} {self._forward.compute.name}"
        self.about = {**about, "precision": precision}

    def embed(self, faces: Faces) -> Embeddings:
        return self.begin(faces)()

    def begin(self, faces: Faces) -> Callable[[], Embeddings]:
        return self._forward.begin(faces)


def _close(half: Embeddings, full: Embeddings) -> bool:
    """Whether bf16 leaves the embeddings of some faces where float32 has them.

    A last BatchNorm that removes what all embeddings share blows their rounding up.
    """
    lengths = np.linalg.norm(half, axis=1) * np.linalg.norm(full, axis=1)
    return bool(np.all(np.sum(half * full, axis=1) >= MIN_COSINE * lengths))


class _OnnxRecogniser:
    def __init__(self, path: Path, name: str, wants: OnnxInput, device: str) -> None:
        network = open_onnx(path, device)
        self._session, self._input = network.session, network.input
        shape = self._input.shape
        if len(shape) != 4 or any(
            isinstance(side, int) and side != wanted
            for side, wanted in zip(shape[1:], (3, 112, 112), strict=True)
        ):
            raise UserError(f"{path}: takes input {shape}; a recogniser takes [N, 3, 112, 112]")
        if self._input.type not in _FLOATS:
            raise UserError(f"{path}: takes {self._input.type}; a recogniser takes tensor(float)")
        self._wants = wants
        # On the CPU single faces on parallel threads are as fast as a batch, and a row then does
        # not depend on the batch it came in. A graph may also be fixed to a batch (sface: 1).
        self._fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
        self._at_once = self._fixed or (None if network.on_gpu else 1)  # None: the whole batch
        self._pool = ThreadPoolExecutor(1 if network.on_gpu else own_cores(), "embed")
        try:
            probe = self._run(np.zeros((1, 112, 112, 3), np.uint8))
        except Exception as error:
            raise UserError(
                f"{path}: does not run on a face of [1, 3, 112, 112] ({first_line(error)})"
            ) from error
        if probe.ndim != 2 or wants.dimension not in (0, probe.shape[1]):
            raise UserError(
                f"{path}: gives an output of shape {probe.shape}, not (N, {wants.dimension or 'D'})"
            )
        self.dimension = int(probe.shape[1])
        self.batch_size = 512 if network.on_gpu else 64
        described = {**asdict(wants), "dimension": self.dimension}
        self.about = {
            "weights": name,
            "sha256": sha256_of(path),
            "precision": "as the file",
            "preprocessing": described,
        }

    def embed(self, faces: Faces) -> Embeddings:
        return self.begin(faces)()

    def begin(self, faces: Faces) -> Callable[[], Embeddings]:
        step = self._at_once or len(faces)
        parts = [faces[start : start + step] for start in range(0, len(faces), step)]
        embeddings = [self._pool.submit(self._run, part) for part in parts]
        return lambda: np.concatenate([part.result() for part in embeddings])

    def _run(self, faces: Faces) -> Embeddings:
        count = len(faces)
        if count < self._fixed:  # filled up with black
            black: Faces = np.zeros((self._fixed - count, *faces.shape[1:]), np.uint8)
            faces = np.concatenate([faces, black])
        x = faces.transpose(0, 3, 1, 2)
        if self._wants.colour == "BGR":
            x = x[:, ::-1]
        values = (x - np.float32(self._wants.mean)) / np.float32(self._wants.scale)
        inputs = {self._input.name: np.ascontiguousarray(values, _FLOATS[self._input.type])}
        return np.asarray(self._session.run(None, inputs)[0], np.float32)[:count]


def describe_onnx(path: Path) -> OnnxInput:
    """The input of an ONNX file: known by its bytes, by the .json beside it, or assumed."""
    from sdd_fiqa.assets import ASSETS

    digest = sha256_of(path)
    for name, wants in ONNX_RECOGNISERS.items():
        if ASSETS[name].sha256 == digest:
            return wants
    beside = path.with_suffix(".json")
    if beside.exists():
        try:
            wants = OnnxInput(**read_json(beside))
            numbers = (float(wants.mean), float(wants.scale), int(wants.dimension))
            if (
                wants.colour not in ("RGB", "BGR")
                or wants.scale == 0
                or not np.isfinite(numbers).all()
            ):
                raise ValueError
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{beside}: must hold colour (RGB or BGR), mean, scale (not 0) and dimension "
                "(0 when not known)"
            ) from error
        return OnnxInput(wants.colour, *numbers)
    note(
        f"{path}: taken to want RGB, (x - 127.5) / 127.5; if not, write colour, mean, scale and "
        f"dimension into {beside.name} beside it"
    )
    return _INSIGHTFACE
