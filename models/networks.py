"""The networks by name, and the one form in which every stage calls them: uint8 faces in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataset.command_line import UserError
from models.ir50 import R50
from models.mobilefacenet import MobileFaceNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {"R_50": R50, "MFN": MobileFaceNet}


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


class FaceModel(nn.Module):
    """A network with its normalisation inside: uint8 RGB faces in, its output out.

    The wrapped network's own state_dict keeps the published key names: save `model.network`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module) -> None:
        """Wraps `network`, which expects (x / 255 - 0.5) / 0.5, RGB, (B, 3, 112, 112)."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(127.5), persistent=False)
        self.register_buffer("scale", torch.tensor(1 / 127.5), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        """Runs the network.

        Args:
            faces: (B, 112, 112, 3) or (B, 3, 112, 112) uint8, RGB.

        Returns:
            (B, 1) float32 scores on the label scale, or (B, D) float32 embeddings, not normalised.
        """
        # A contiguous NHWC batch seen as NCHW is channels_last as it stands: nothing is copied.
        x = faces.permute(0, 3, 1, 2) if faces.shape[-1] == 3 else faces  # (B, 3, 112, 112)
        x = (x.float() - self.mean) * self.scale
        out: Tensor = self.network(x)
        return out
