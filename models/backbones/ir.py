"""R_50: the IR-50 network of the published SDD-FIQA code, key for key.

A 112x112 face goes through stages of 3, 4, 14 and 3 units with 64, 128, 256 and 512 channels; the
first unit of every stage halves the map (112 -> 56 -> 28 -> 14 -> 7). There is no BatchNorm between
a unit's first convolution and its PReLU and none after the last unit: other IR-50 networks differ
there, and their weights do not fit this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from common.device import in_float32
from models.backbones.layers import EMBEDDING_DIM, head
from models.backbones.prelu import PReLU

UNITS = (3, 4, 14, 3)  # of the stages of 64, 128, 256 and 512 channels


class Unit(nn.Module):
    """BN, conv, PReLU, conv (stride), BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Makes one unit; `stride` is 1 or 2."""
        super().__init__()
        self.shortcut_layer: nn.Module
        if channels_in == channels:
            # Published as MaxPool2d(1, stride): of stride 1 it changes nothing and takes a tenth of
            # the time.
            self.shortcut_layer = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
            PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        out: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return out


def stem() -> nn.Sequential:
    """(B, 3, H, W) -> (B, 64, H, W)."""
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), PReLU(64))


def stages(unit: Callable[[int, int, int], nn.Module], units: Iterable[int]) -> nn.Sequential:
    """Four stages in one run, (B, 64, H, W) -> (B, 512, H / 16, W / 16).

    Args:
        unit: makes one from its channels in, channels and stride.
        units: how many each stage has.
    """
    body: list[nn.Module] = []
    channels_in = 64
    for count, channels in zip(units, (64, 128, 256, 512), strict=True):
        for index in range(count):
            body.append(unit(channels_in, channels, 2 if index == 0 else 1))
            channels_in = channels
    return nn.Sequential(*body)


class R50(nn.Module):
    """IR-50 with a quality head (`quality`) or a recognition head (`output_layer`).

    Input (B, 3, 112, 112) float, RGB, (x / 255 - 0.5) / 0.5. Output (B, 1), the quality on the
    label scale 0..100 (linear: no sigmoid, no clamp), or (B, 512), the embedding before
    normalisation.
    """

    def __init__(self, recognition: bool = False, dropout: float = 0.5) -> None:
        """Makes the network with random weights."""
        super().__init__()
        self.input_layer = stem()
        if recognition:
            self.output_layer = head(EMBEDDING_DIM, dropout)
        else:
            self.quality = head(1, dropout)
        self.body = stages(Unit, UNITS)
        self.recognition = recognition

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1) or (B, 512)."""
        x = self.body(self.input_layer(x))  # (B, 512, 7, 7)
        return in_float32(self.output_layer if self.recognition else self.quality, x)
