"""Face recognisers, torch or ONNX, behind one call: uint8 RGB faces in, embeddings out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.cli import note
from common.device import Compute, Precision, choose_compute
from models.backbones import RGB, Pixels
from sdd_fiqa.assets import ASSETS, fetch
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, sha256_of
from sdd_fiqa.onnx_runner import GPU_FACES, Faces, OnnxRunner, Outputs, is_onnx

if TYPE_CHECKING:
    from torch import nn

# The recognisers known by name. Another ONNX file is described by a .json next to it. Without that
# file, RGB is assumed, InsightFace's convention.
ONNX_RECOGNISERS = {"sface": Pixels("RGB", 0.0, 1.0), "w600k_mbf": RGB}
MIN_COSINE = 0.999  # of bf16 to float32 embeddings, for `--precision auto` to take bf16
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Recogniser:
    """A face recogniser.

    Attributes:
        about: its weights and preprocessing, for the .json next to the embeddings.
        dimension: D, the length of an embedding.
        batch_size: faces a call that suit the device.
        begin: takes (B, 112, 112, 3) uint8 RGB faces; returns a function that waits for the (B, D)
            float32 embeddings, not normalised. A GPU works in the meantime.
    """

    about: dict[str, Any]
    dimension: int
    batch_size: int
    begin: Callable[[Faces], Callable[[], Outputs]]

    def embed(self, faces: Faces) -> Outputs:
        """(B, 112, 112, 3) uint8 RGB -> (B, D) float32, not normalised."""
        return self.begin(faces)()


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
        precision: auto, fp32 or bf16. ONNX files whose layers are all known here run in torch on a
            GPU and in bf16; others run in onnxruntime, in the precision they were made in.
        probe: (B, 112, 112, 3) uint8 RGB faces, a sample of those to embed: precision auto takes
            bf16 only if their embeddings keep a cosine of MIN_COSINE to float32's.

    Raises:
        UserError: unknown name, missing or damaged file, or weights that do not fit.
    """
    known = weights in ONNX_RECOGNISERS
    path = fetch(weights) if known else Path(weights)
    if not path.is_file():
        names = ", ".join(ONNX_RECOGNISERS)
        raise UserError(f"--weights {weights}: no such file, and no known name ({names})")
    if precision != "auto":
        probe = None
    about: dict[str, Any] = {"weights": weights, "sha256": sha256_of(path)}
    if not known and not is_onnx(path):
        from models.checkpoints import load_network
        from models.networks import pixels_of

        compute = choose_compute(device, precision)
        name, network, _ = load_network(path, recognition=True, backbone=backbone)
        about["backbone"] = name
        return _in_torch(network, about, pixels_of(network), 512, compute, probe)

    pixels, dimension = describe_onnx(path)
    compute = choose_compute(device, precision)
    if str(compute) == "cpu fp32":
        return _in_onnxruntime(path, about, pixels, dimension, device)
    from models.onnx_import import read_embedder

    try:
        graph, found = read_embedder(path)
    except UserError as error:  # a layer that only onnxruntime knows, or no network at all
        if compute.device.type == "cuda":
            note(f"torch cannot run {error}; onnxruntime runs it, on the GPU if it has CUDA")
        return _in_onnxruntime(path, about, pixels, dimension, device)
    if dimension not in (0, found):
        raise UserError(f"{path}: gives an output of shape (1, {found}), not (N, {dimension})")
    graph.pixels = pixels
    return _in_torch(graph, about, pixels, found, compute, probe)


def _in_torch(
    network: nn.Module,
    about: dict[str, Any],
    pixels: Pixels,
    dimension: int,
    compute: Compute,
    probe: Faces | None,
) -> Recogniser:
    """Makes a recogniser that runs in torch; without `probe`, in the precision of `compute`."""
    from models.inference import Forward

    # Folded BatchNorms round differently in bf16: the cosine of unrecognisable faces, whose
    # embeddings are short, then fell from .997 to .983 against float32.
    forward = Forward(network, compute, fold=compute.name == "fp32")
    if probe is not None and compute.name != "fp32" and len(probe):
        full = Forward(network, choose_compute(str(compute.device), "fp32"), fold=False)
        half, exact = forward.begin(probe)(), full.begin(probe)()
        lengths = np.linalg.norm(half, axis=1) * np.linalg.norm(exact, axis=1)
        # A last BatchNorm that removes what all embeddings have in common amplifies rounding.
        if not np.all(np.sum(half * exact, axis=1) >= MIN_COSINE * lengths):
            note(
                f"{about['weights']}: {compute.name} changes its embeddings too much; uses float32"
            )
            forward = Forward(network, full.compute)
    about["preprocessing"] = {**asdict(pixels), "dimension": dimension}
    about["precision"] = f"{compute.device.type} {forward.compute.name}"
    return Recogniser(about, dimension, forward.batch_size, forward.begin)


def _in_onnxruntime(
    path: Path, about: dict[str, Any], pixels: Pixels, dimension: int, device: str
) -> Recogniser:
    """Makes a recogniser that runs in onnxruntime; a `dimension` of 0 allows any."""
    runner = OnnxRunner(path, device, content=without_prelu(path))
    kind, shape = runner.input.type, runner.input.shape
    fits = len(shape) == 4 and all(
        side == wanted or not isinstance(side, int)
        for side, wanted in zip(shape[1:], (3, 112, 112), strict=True)
    )
    if not fits or kind not in _FLOATS:
        raise UserError(
            f"{path}: takes {kind} {shape}; a recogniser takes tensor(float) [N, 3, 112, 112]"
        )
    # Some files fix the batch size (sface: 1).
    fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0

    def run(faces: Faces) -> Outputs:
        x = faces.transpose(0, 3, 1, 2)
        if pixels.colour == "BGR":
            x = x[:, ::-1]
        missing = max(0, fixed - len(x))  # filled with black faces
        x = np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0)))
        values = (x - np.float32(pixels.mean)) / np.float32(pixels.scale)
        return runner.run(np.ascontiguousarray(values, _FLOATS[kind]))[: len(faces)]

    probe = run(np.zeros((1, 112, 112, 3), np.uint8))
    if probe.ndim != 2 or dimension not in (0, probe.shape[1]):
        raise UserError(
            f"{path}: gives an output of shape {probe.shape}, not (N, {dimension or 'D'})"
        )
    dimension = int(probe.shape[1])
    about["precision"] = "as the file"
    about["preprocessing"] = {**asdict(pixels), "dimension": dimension}
    # On a CPU, single faces on parallel threads are as fast as a batch, and a row then does not
    # depend on the other faces of its batch.
    size = fixed or (GPU_FACES if runner.on_gpu else 1)
    batch_size = GPU_FACES if runner.on_gpu else 64
    return Recogniser(about, dimension, batch_size, lambda faces: runner.begin(faces, size, run))


def without_prelu(path: Path) -> bytes | None:
    """An ONNX file after `scale_prelus`.

    Returns:
        The new content. None where nothing would change, the file is damaged (onnxruntime says how)
        or in several parts, or the package onnx is missing.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        return None
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None
    whole = all(array.data_location != array.EXTERNAL for array in model.graph.initializer)
    return bytes(model.SerializeToString()) if whole and scale_prelus(model) else None


def scale_prelus(model: Any) -> bool:
    """Replaces the PRelu nodes of an ONNX model by scales, which are faster on a CPU.

    (1 - a) relu(x) + a x is PReLU with the slopes a. onnxruntime's PRelu branches on every element,
    and needs the map in another memory layout than the convolutions. Relu, Add and
    BatchNormalization work in theirs, so the scales of channels are BatchNormalizations.

    Returns:
        Whether there were any.
    """
    import onnx

    arrays: dict[str, Any] = {array.name: array for array in model.graph.initializer}
    make, nodes = onnx.helper.make_node, []
    for node in model.graph.node:
        slopes: Any = arrays.get(node.input[1]) if node.op_type == "PRelu" else None
        if slopes is None or slopes.data_type != onnx.TensorProto.FLOAT:
            nodes.append(node)
            continue
        down = onnx.numpy_helper.to_array(slopes)
        if (down == down.flat[0]).all():
            down = down.ravel()[:1]  # it holds for all, and is smaller in the file
        of_channels = down.shape[1:] == (1, 1)
        down = down.ravel() if of_channels else down
        name, x = f"{node.output[0]}/scaled", node.input[0]
        rest = [f"scaled/{kind}/{len(down)}" for kind in ("zeros", "zeros", "ones")]
        constants = {f"{name}/up": 1 - down, f"{name}/down": down}
        if of_channels:
            constants |= {rest[0]: np.zeros_like(down), rest[2]: np.ones_like(down)}
        for of, values in constants.items():
            if of not in arrays:
                arrays[of] = onnx.numpy_helper.from_array(values, of)
                model.graph.initializer.append(arrays[of])
        nodes.append(make("Relu", [x], [f"{name}/relu"]))
        for part, value in (("up", f"{name}/relu"), ("down", x)):
            given, result = [value, f"{name}/{part}"], [f"{name}/by_{part}"]
            if of_channels:
                nodes.append(make("BatchNormalization", given + rest, result, epsilon=0.0))
            else:
                nodes.append(make("Mul", given, result))
        nodes.append(make("Add", [f"{name}/by_up", f"{name}/by_down"], list(node.output)))
    changed = len(nodes) > len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return changed


def describe_onnx(path: Path) -> tuple[Pixels, int]:
    """The input and the dimension of an ONNX recogniser; 0 if its dimension is not known.

    The input is known by the file's sha256, read from the .json next to it, or assumed.

    Raises:
        UserError: the .json is damaged.
    """
    digest = sha256_of(path)
    for name, pixels in ONNX_RECOGNISERS.items():
        if ASSETS[name].sha256 == digest:
            return pixels, 0
    beside = path.with_suffix(".json")
    if not beside.exists():
        note(
            f"{path}: assumed to take RGB, (x - 127.5) / 127.5; if not, write colour, mean, scale "
            f"and dimension into {beside.name} next to it"
        )
        return RGB, 0
    described = read_json(beside)
    try:
        if set(described) != {"colour", "mean", "scale", "dimension"}:
            raise ValueError
        return Pixels.read(described), int(described["dimension"])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{beside}: must hold colour (RGB or BGR), mean, scale (not 0) and dimension "
            "(0 if not known)"
        ) from error
