"""InsightFace's iresnet, with the keys of the files of arcface_torch.

It differs from R_50 in three places. A BatchNorm lies between a unit's first convolution and its
PReLU. The shortcut has a convolution wherever the map shrinks. The last map has a BatchNorm. Layout
read from recognition/arcface_torch/backbones/iresnet.py of github.com/deepinsight/insightface.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.device import in_float32
from models.backbones import RGB
from models.backbones.layers import EMBEDDING_DIM, MAP, PReLU, head


class Unit(nn.Module):
    """BN, conv, BN, PReLU, conv (of stride 1 or 2), BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        out: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return out


class IResNet(nn.Module):
    """iresnet with a quality head (`quality`) or its own recognition head (`fc`, `features`).

    Input (B, 3, 112, 112) float, RGB, (x / 255 - 0.5) / 0.5. Output (B, 1), the quality on the
    label scale 0..100, or (B, 512), the embedding before normalisation.
    """

    pixels = RGB

    def __init__(
        self, units: tuple[int, int, int, int], recognition: bool = False, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = PReLU(64)
        self.layer1 = _stage(64, 64, units[0])  # 112 -> 56
        self.layer2 = _stage(64, 128, units[1])  # -> 28
        self.layer3 = _stage(128, 256, units[2])  # -> 14
        self.layer4 = _stage(256, 512, units[3])  # -> 7
        self.bn2 = nn.BatchNorm2d(512)
        if recognition:
            self.dropout = nn.Dropout(dropout)
            self.fc = nn.Linear(MAP, EMBEDDING_DIM)
            self.features = nn.BatchNorm1d(EMBEDDING_DIM)
            self.features.weight.requires_grad_(False)  # as InsightFace trains it: all ones
        else:
            self.quality = head(1, dropout)
        self.recognition = recognition

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1) or (B, 512)."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.bn2(x)  # (B, 512, 7, 7)
        if self.recognition:
            return in_float32(nn.Sequential(nn.Flatten(), self.dropout, self.fc, self.features), x)
        return in_float32(self.quality, x)


def _stage(channels_in: int, channels: int, units: int) -> nn.Sequential:
    rest = (Unit(channels, channels, 1) for _ in range(units - 1))
    return nn.Sequential(Unit(channels_in, channels, 2), *rest)
