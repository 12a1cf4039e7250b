"""The names of precisions, for what must not import torch."""

from __future__ import annotations

from typing import Literal, get_args

from sdd_fiqa.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def check_precision(precision: str) -> None:
    """Raises UserError on what is no Precision."""
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision}: must be one of {', '.join(get_args(Precision))}")
