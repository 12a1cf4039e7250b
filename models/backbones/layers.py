"""What the networks share: how they want their pixels, and the head on a feature map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.backbones.prelu import PReLU

EMBEDDING_DIM = 512
MAP = 512 * 7 * 7  # values of the last feature map of every IR network


@dataclass(frozen=True)
class Pixels:
    """How a network wants its faces: (x - mean) / scale of 0..255 values.

    Attributes:
        colour: RGB or BGR.
        mean: subtracted first.
        scale: divided by then; not 0.
    """

    colour: str
    mean: float
    scale: float


RGB = Pixels("RGB", 127.5, 127.5)  # (x / 255 - 0.5) / 0.5
BGR = Pixels("BGR", 127.5, 127.5)


# Points of the label scale: a floored head's scores stay above 0, and bend from a straight line
# towards it over about twice as many points.
FLOOR = 10.0


def head(outputs: int, dropout: float, values: int = MAP) -> nn.Sequential:
    """The published head, (B, C, H, W) -> (B, outputs); its weights are at 1 and 3.

    Args:
        outputs: 1 for a quality, 512 for an embedding.
        dropout: share of the inputs dropped while training.
        values: C x H x W of the map below it.
    """
    return nn.Sequential(
        nn.Flatten(), PReLU(values), nn.Dropout(dropout), nn.Linear(values, outputs)
    )


def add_floor(quality: nn.Sequential, floor: float = FLOOR) -> None:
    """Gives a quality head a last step, floor log(1 + exp(x / floor)), if it has none.

    A linear head has no bottom: faces spoilt beyond use would score anything around 0. It has no
    weights, so the keys stay the published ones; the .json beside a checkpoint says it is there.
    """
    if floor_of(quality) is None:
        quality.append(nn.Softplus(beta=1 / floor))


def floor_of(quality: nn.Sequential) -> float | None:
    """The floor of a quality head, if it has one."""
    last = quality[-1]
    return 1 / last.beta if isinstance(last, nn.Softplus) else None
