"""The IR networks: R_50 of the published SDD-FIQA code, and those of AdaFace and face.evoLVe.

R_50 is an IR-50, key for key. A 112x112 face passes stages of 3, 4, 14 and 3 units with 64, 128,
256 and 512 channels. The first unit of every stage halves the map (112 -> 56 -> 28 -> 14 -> 7).
There is no BatchNorm between a unit's first convolution and its PReLU, and none after the last
unit. Other IR-50 networks differ there, so their weights do not fit this one.

The others have a BatchNorm on the last map. face.evoLVe's units are those of R_50, and take RGB.
AdaFace's units have one more BatchNorm, before the PReLU, and take BGR. Layouts read from net.py of
github.com/mk-minchul/AdaFace and backbone/model_irse.py of github.com/ZhaoJ9014/face.evoLVe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from common.device import in_float32
from models.backbones import BGR, RGB
from models.backbones.layers import EMBEDDING_DIM, MAP, PReLU, head

UNITS = (3, 4, 14, 3)  # of the stages of 64, 128, 256 and 512 channels


class Unit(nn.Module):
    """BN, conv, PReLU, conv (of stride 1 or 2), BN, plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if channels_in == channels:
            # Published as MaxPool2d(1, stride). With stride 1 that changes nothing, and takes a
            # tenth of the network's time.
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


class NormedUnit(Unit):
    """The unit with a BatchNorm before its PReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.res_layer.insert(2, nn.BatchNorm2d(channels))


def stem() -> nn.Sequential:
    """(B, 3, H, W) -> (B, 64, H, W)."""
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), PReLU(64))


def stages(unit: Callable[[int, int, int], nn.Module], units: Iterable[int]) -> nn.Sequential:
    """Four stages in one run, (B, 64, H, W) -> (B, 512, H / 16, W / 16), of so many units each.

    `unit` makes one from its channels in, channels and stride.
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


class NormedIR(nn.Module):
    """A network of AdaFace or face.evoLVe, with a quality head (`quality`) or its own head.

    Input (B, 3, 112, 112) float, (x / 255 - 0.5) / 0.5, in the colour order of `pixels`. Output
    (B, 1), the quality on the label scale 0..100, or (B, 512), the embedding before normalisation
    (AdaFace's own code divides it by its norm and returns both). `output_layer.0`, the last
    BatchNorm, belongs to the trunk and comes before either head.
    """

    def __init__(
        self,
        units: tuple[int, int, int, int] = UNITS,
        adaface: bool = True,
        recognition: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.pixels = BGR if adaface else RGB
        self.input_layer = stem()
        self.body = stages(NormedUnit if adaface else Unit, units)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(512))
        if recognition:
            self.output_layer.extend(
                [
                    nn.Dropout(dropout),
                    nn.Flatten(),
                    nn.Linear(MAP, EMBEDDING_DIM),
                    nn.BatchNorm1d(EMBEDDING_DIM, affine=not adaface),
                ]
            )
        else:
            self.quality = head(1, dropout)
        self.recognition = recognition

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 112, 112) -> (B, 1) or (B, 512)."""
        x = self.body(self.input_layer(x))  # (B, 512, 7, 7)
        if self.recognition:
            return in_float32(self.output_layer, x)
        return in_float32(self.quality, self.output_layer(x))
