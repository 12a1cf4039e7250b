"""The network that a training starts from: random weights, a checkpoint, an ONNX recogniser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from models.backbones.layer_graph import GraphNetwork
from models.checkpoints import load_network
from models.networks import HEAD, build_network
from models.onnx_import import read_trunk
from models.pretrained import PRETRAINED
from models.recognisers import ONNX_RECOGNISERS, describe_onnx
from models.state_dicts import LoadReport, copy_fitting, find_trunk, read_state
from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError
from sdd_fiqa.onnx_runner import is_onnx


@dataclass(frozen=True)
class StartingNetwork:
    """A quality network ready to train.

    Attributes:
        backbone: its name, as the .json next to its checkpoints has it.
        network: the network.
        text: human-readable: what was loaded and what is new.
    """

    backbone: str
    network: nn.Module
    text: str


def start_network(
    weights: str | None, backbone: str | None = None, dropout: float = 0.5
) -> StartingNetwork:
    """Makes a quality network and fills its trunk.

    Args:
        weights: a checkpoint with a recognition head or with a quality head, which is loaded too;
            an .onnx recogniser; a name in ONNX_RECOGNISERS (downloaded once) or in PRETRAINED;
            None: random weights.
        backbone: a name in BACKBONES; default: that of the weights, else R_50.
        dropout: share of the head's inputs that dropout sets to 0.

    Raises:
        UserError: unreadable, fits no known network, or has another backbone.
    """
    if weights is None:
        name = backbone or "R_50"
        return StartingNetwork(name, build_network(name, dropout=dropout), "random weights")
    weights = str(PRETRAINED.get(weights, weights))
    if weights not in ONNX_RECOGNISERS and not Path(weights).is_file():
        names = ", ".join([*ONNX_RECOGNISERS, *PRETRAINED])
        raise UserError(f"--finetuning-model {weights}: no such file; known names: {names}")
    if weights in ONNX_RECOGNISERS or is_onnx(weights):
        start = _from_onnx(weights, dropout)
    else:
        start = _from_checkpoint(weights, backbone, dropout)
    if backbone not in (None, start.backbone):
        raise UserError(
            f"--finetuning-model {weights}: is a {start.backbone} network, not {backbone}; remove "
            "--backbone"
        )
    return start


def _from_checkpoint(path: str, backbone: str | None, dropout: float) -> StartingNetwork:
    state = read_state(path)
    if any(key.startswith(HEAD) for key in state):
        name, network, _ = load_network(path, recognition=False, dropout=dropout)
        loaded = LoadReport(list(state), [], [])
    else:
        name = find_trunk(state, path, backbone)
        network = build_network(name, dropout=dropout)
        loaded = copy_fitting(network, state)
    return StartingNetwork(name, network, f"{path} ({name}): {loaded}")


def _from_onnx(weights: str, dropout: float) -> StartingNetwork:
    known = weights in ONNX_RECOGNISERS
    path = fetch(weights) if known else Path(weights)
    pixels, _ = describe_onnx(path)
    graph, state, unused = read_trunk(path)
    network = GraphNetwork(graph, pixels, dropout)
    network.trunk.load_state_dict(state)
    name, layers = f"onnx:{weights if known else path.stem}", graph["layers"]
    shape = " x ".join(str(side) for side in graph["map"])
    norms = any(layer["op"] == "BatchNormalization" for layer in layers)
    folded = "" if norms else ", BatchNorm is folded in, so it trains without"
    new = [key for key in network.state_dict() if key.startswith(HEAD)]
    loaded = LoadReport(list(state), new, unused)
    what = f"{weights} ({name}, {len(layers)} layers up to a map of {shape}{folded})"
    return StartingNetwork(name, network, f"{what}: {loaded}")
