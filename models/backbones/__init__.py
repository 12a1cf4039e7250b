"""What is known of the networks without torch: their names, and how each wants its pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Backbone = Literal[
    "R_50",
    "MFN",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "adaface_ir_18",
    "adaface_ir_50",
    "adaface_ir_101",
    "evolve_ir_50",
]


@dataclass(frozen=True)
class Pixels:
    """The input of a network: (x - mean) / scale of pixels x in 0..255, channels first.

    Attributes:
        colour: RGB or BGR.
        mean: is subtracted first.
        scale: divides the result; not 0.
    """

    colour: str
    mean: float
    scale: float

    @classmethod
    def read(cls, described: Mapping[str, Any]) -> Pixels:
        """Reads the fields of a .json file; other fields are ignored.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or has no valid value.
        """
        pixels = cls(described["colour"], float(described["mean"]), float(described["scale"]))
        if (
            pixels.colour not in ("RGB", "BGR")
            or pixels.scale == 0
            or not math.isfinite(pixels.mean + pixels.scale)
        ):
            raise ValueError(f"no input of a network: {pixels}")
        return pixels


RGB = Pixels("RGB", 127.5, 127.5)  # (x / 255 - 0.5) / 0.5
BGR = Pixels("BGR", 127.5, 127.5)
