"""Losses and weights that are NaN or infinite: a training stops at them and keeps its last save."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dataset.loader import Batch
from models.checkpoints import RESUME
from sdd_fiqa.errors import UserError
from training.data import TrainingList


def check_finite(
    fetched: Callable[[], Any],
    batch: Batch,
    state: dict[str, Any],
    data: TrainingList,
    folder: Path,
) -> None:
    """Stops at a loss that is NaN or infinite: says where, with which files, what to go back to."""
    loss = float(fetched())
    if not math.isfinite(loss):
        raise _stop(f"loss {loss}", batch, state, data, folder)


def check_weights(
    network: nn.Module, batch: Batch, state: dict[str, Any], data: TrainingList, folder: Path
) -> None:
    """Stops before weights that are NaN or infinite are saved, or measured.

    Every process has the same weights, so all stop: a process's own losses are finite where
    another's was not, and so is the loss before a gradient that is not.
    """
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise _stop(f"{name} no longer finite", batch, state, data, folder)


def _stop(
    what: str, batch: Batch, state: dict[str, Any], data: TrainingList, folder: Path
) -> UserError:
    shown = ", ".join(data.table.paths_at(batch.rows[:5]))
    saved = f"the last good save stands in {folder}; " if (folder / RESUME).exists() else ""
    return UserError(
        f"{what} by epoch {state['epoch'] + 1}, step {state['step']} (its batch: {shown}, ...); "
        f"{saved}begin anew with a lower --lr and another --checkpoints-name"
    )
