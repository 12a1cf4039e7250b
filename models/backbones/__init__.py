"""The names of the networks, for flags; importing them costs no torch."""

from __future__ import annotations

from typing import Literal

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
