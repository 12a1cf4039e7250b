"""The IR networks of AdaFace and face.evoLVe: as R_50, with a BatchNorm on the last map.

AdaFace's units have one more BatchNorm, between the first convolution and the PReLU, and its
weights take BGR; face.evoLVe's units are those of R_50, and take RGB. Layouts read from net.py of
github.com/mk-minchul/AdaFace and backbone/model_irse.py of github.com/ZhaoJ9014/face.evoLVe.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.device import in_float32
from models.backbones import ir as ir50
from models.backbones.layers import BGR, EMBEDDING_DIM, MAP, RGB, head


class NormedUnit(ir50.Unit):
    """R_50's unit with a BatchNorm before its PReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Makes one unit; `stride` is 1 or 2."""
        super().__init__(channels_in, channels, stride)
        norm, conv, *rest = self.res_layer
        self.res_layer = nn.Sequential(norm, conv, nn.BatchNorm2d(channels), *rest)


class NormedIR(nn.Module):
    """The network, with a quality head (`quality`) or its own recognition head.

    Input (B, 3, 112, 112) float, (x / 255 - 0.5) / 0.5, in the colour order of `pixels`. Output
    (B, 1), the quality on the label scale 0..100, or (B, 512), the embedding before normalisation
    (AdaFace's own code divides it by its norm and returns both). `output_layer.0`, the last
    BatchNorm, belongs to the trunk: it is there under both heads.
    """

    def __init__(
        self,
        units: tuple[int, int, int, int] = ir50.UNITS,
        adaface: bool = True,
        recognition: bool = False,
        dropout: float = 0.5,
    ) -> None:
        """Makes the network with random weights; `units` of each stage, AdaFace's or evoLVe's."""
        super().__init__()
        self.pixels = BGR if adaface else RGB
        self.input_layer = ir50.stem()
        self.body = ir50.stages(NormedUnit if adaface else ir50.Unit, units)
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
