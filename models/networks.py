"""The networks by name, and the model that every stage calls: uint8 faces in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.backbones import RGB, Pixels
from models.backbones.ir import R50, NormedIR
from models.backbones.iresnet import IResNet
from models.backbones.layer_graph import GraphNetwork
from models.backbones.layers import floor_of
from models.backbones.mobilefacenet import MobileFaceNet
from sdd_fiqa.errors import UserError

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "R_50": R50,
    "MFN": MobileFaceNet,
    "iresnet18": partial(IResNet, (2, 2, 2, 2)),
    "iresnet34": partial(IResNet, (3, 4, 6, 3)),
    "iresnet50": partial(IResNet, (3, 4, 14, 3)),
    "iresnet100": partial(IResNet, (3, 13, 30, 3)),
    "adaface_ir_18": partial(NormedIR, (2, 2, 2, 2)),
    "adaface_ir_50": NormedIR,
    "adaface_ir_101": partial(NormedIR, (3, 13, 30, 3)),
    "evolve_ir_50": partial(NormedIR, adaface=False),
}
HEAD = "quality."  # prefix of the head's keys in a quality network; the rest is its trunk


def build_network(backbone: str, *, recognition: bool = False, dropout: float = 0.5) -> nn.Module:
    """Makes a network with random weights.

    Args:
        backbone: a name in BACKBONES.
        recognition: a recognition head, (B, 512) embeddings, in place of the quality head (B, 1).
        dropout: share of the head's inputs dropped while training.

    Raises:
        UserError: unknown name.
    """
    if backbone not in BACKBONES:
        raise UserError(f"backbone {backbone!r} is not known; choose from {', '.join(BACKBONES)}")
    return BACKBONES[backbone](recognition=recognition, dropout=dropout)


def pixels_of(network: nn.Module) -> Pixels:
    """The input of a network; RGB, (x - 127.5) / 127.5, if it has no `pixels`."""
    pixels = getattr(network, "pixels", RGB)
    assert isinstance(pixels, Pixels)
    return pixels


def describe_network(backbone: str, network: nn.Module) -> dict[str, Any]:
    """What the .json next to a quality network's weights must hold to rebuild the network."""
    about: dict[str, Any] = {
        "architecture": backbone,
        "head": "quality",
        "input": {"size": 112, **asdict(pixels_of(network))},
    }
    if (floor := floor_of(quality_head(network))) is not None:
        about["floor"] = floor
    if isinstance(network, GraphNetwork):
        about["graph"] = network.graph
    return about


def quality_head(network: nn.Module) -> nn.Sequential:
    """The head of a quality network."""
    head = network.get_submodule(HEAD.rstrip("."))
    assert isinstance(head, nn.Sequential)
    return head


class FaceModel(nn.Module):
    """A network with its normalisation inside: uint8 RGB faces in, its output out.

    The keys of its state_dict have a prefix. To keep the published keys, save `model.network`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        pixels = pixels_of(network)
        self.bgr = pixels.colour == "BGR"
        self.register_buffer("mean", torch.tensor(pixels.mean), persistent=False)
        self.register_buffer("scale", torch.tensor(1 / pixels.scale), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 112, 112, 3) or (B, 3, 112, 112) uint8 RGB faces -> the network's output, float32.

        That is (B, 1) scores on the label scale, or (B, D) embeddings, not normalised.
        """
        # A contiguous NHWC batch, permuted to NCHW, is channels_last: nothing is copied.
        x = faces.permute(0, 3, 1, 2) if faces.shape[-1] == 3 else faces  # (B, 3, 112, 112)
        if self.bgr:
            # Swapping bytes is cheapest. `flip` would need ONNX opset 10.
            x = torch.cat([x[:, 2:], x[:, 1:2], x[:, :1]], 1)
        x = (x.float() - self.mean) * self.scale
        out: Tensor = self.network(x)
        return out


def parameter_groups(network: nn.Module, lr: float, trunk_lr: float) -> list[dict[str, Any]]:
    """An optimiser's groups: the head at `lr`, the trunk at `trunk_lr` times that; 0 freezes it."""
    head = list(quality_head(network).parameters())
    trunk = [value for name, value in network.named_parameters() if not name.startswith(HEAD)]
    if trunk_lr == 0:
        for parameter in trunk:
            parameter.requires_grad_(False)
        return [{"params": head}]
    return [{"params": head}, {"params": trunk, "lr": lr * trunk_lr}]


def freeze_statistics(network: nn.Module) -> None:
    """Puts the trunk into evaluation mode, so that a frozen trunk's BatchNorms do not change."""
    for name, child in network.named_children():
        if not f"{name}.".startswith(HEAD):
            child.eval()
