"""R_50: the IR-50 network of the published SDD-FIQA code, key for key.

A 112x112 face goes through stages of 3, 4, 14 and 3 units with 64, 128, 256 and 512 channels; the
first unit of every stage halves the map (112 -> 56 -> 28 -> 14 -> 7). There is no BatchNorm between
a unit's first convolution and its PReLU and none after the last unit: other IR-50 networks differ
there, and their weights do not fit this one.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.device import in_float32
from models.prelu import PReLU

EMBEDDING_DIM = 512
_STAGES = ((3, 64), (4, 128), (14, 256), (3, 512))  # (units, channels)
_MAP = 512 * 7 * 7  # values after the last stage


class Unit(nn.Module):
    """BN, conv, PReLU, conv (stride), BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Makes one unit; `stride` is 1 or 2."""
        super().__init__()
        self.shortcut_layer: nn.Module
        if channels_in == channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
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


def _head(outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), PReLU(_MAP), nn.Dropout(dropout), nn.Linear(_MAP, outputs))


class R50(nn.Module):
    """IR-50 with a quality head (`quality`) or a recognition head (`output_layer`).

    Input (B, 3, 112, 112) float, RGB, (x / 255 - 0.5) / 0.5. Output (B, 1), the quality on the
    label scale 0..100 (linear: no sigmoid, no clamp), or (B, 512), the embedding before
    normalisation.
    """

    def __init__(self, recognition: bool = False, dropout: float = 0.5) -> None:
        """Makes the network with random weights."""
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), PReLU(64)
        )
        if recognition:
            self.output_layer = _head(EMBEDDING_DIM, dropout)
        else:
            self.quality = _head(1, dropout)
        units: list[nn.Module] = []
        channels_in = 64
        for count, channels in _STAGES:
            for index in range(count):
                units.append(Unit(channels_in, channels, stride=2 if index == 0 else 1))
                channels_in = channels
        self.body = nn.Sequential(*units)
        self.recognition = recognition

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1) or (B, 512)."""
        x = self.body(self.input_layer(x))  # (B, 512, 7, 7)
        return in_float32(self.output_layer if self.recognition else self.quality, x)
