"""MFN: the 112x112 MobileFaceNet of the published SDD-FIQA code, key for key."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from common.device import in_float32
from models.backbones.layers import EMBEDDING_DIM, Convolution, PReLU, head


class ConvBlock(nn.Module):
    """Convolution without bias, BN and, unless `linear`, PReLU."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int = 0,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Convolution(
            channels_in, channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.prelu = nn.Identity() if linear else PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        out: Tensor = self.prelu(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """1x1 up to `groups` channels, 3x3 depthwise, 1x1 down; plus its input if `residual`."""

    def __init__(
        self, channels_in: int, channels: int, groups: int, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv = ConvBlock(channels_in, groups)
        self.conv_dw = ConvBlock(groups, groups, 3, stride, groups, padding=1)
        self.project = ConvBlock(groups, channels, linear=True)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        out: Tensor = self.project(self.conv_dw(self.conv(x)))
        return x + out if self.residual else out


def residuals(channels: int, count: int, groups: int) -> nn.Sequential:
    """`count` residual bottlenecks of one width, (B, C, H, W) -> the same shape."""
    run = (Bottleneck(channels, channels, groups, residual=True) for _ in range(count))
    return nn.Sequential(OrderedDict(model=nn.Sequential(*run)))


class MobileFaceNet(nn.Module):
    """MobileFaceNet with a quality head (`quality`) or a recognition head (`output_layer`).

    Input and output are those of `R50`.
    """

    def __init__(self, recognition: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 64, 3, 2, padding=1)  # 112 -> 56
        self.conv2_dw = ConvBlock(64, 64, 3, 1, groups=64, padding=1)
        self.conv_23 = Bottleneck(64, 64, groups=128, stride=2)  # -> 28
        self.conv_3 = residuals(64, 4, groups=128)
        self.conv_34 = Bottleneck(64, 128, groups=256, stride=2)  # -> 14
        self.conv_4 = residuals(128, 6, groups=256)
        self.conv_45 = Bottleneck(128, 128, groups=512, stride=2)  # -> 7
        self.conv_5 = residuals(128, 2, groups=256)
        self.conv_6_sep = ConvBlock(128, 512)
        if recognition:
            parts = OrderedDict(
                conv_6_dw=ConvBlock(512, 512, 7, groups=512, linear=True),  # of the whole map
                flatten=nn.Flatten(),
                linear=nn.Linear(512, EMBEDDING_DIM, bias=False),
                bn=nn.BatchNorm1d(EMBEDDING_DIM),
            )
            self.output_layer = nn.Sequential(parts)
        else:
            self.quality = head(1, dropout)
        self.recognition = recognition

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1) or (B, 512)."""
        x = self.conv_23(self.conv2_dw(self.conv1(x)))
        x = self.conv_34(self.conv_3(x))
        x = self.conv_45(self.conv_4(x))
        x = self.conv_6_sep(self.conv_5(x))  # (B, 512, 7, 7)
        return in_float32(self.output_layer if self.recognition else self.quality, x)
