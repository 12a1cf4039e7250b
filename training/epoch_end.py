"""What ends an epoch: the network measured on who was held out, and saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from common.cli import note
from common.device import Compute
from common.distributed import ProcessGroup
from dataset.loader import batches
from evaluation.edc.areas import areas
from evaluation.edc.curves import Curve
from evaluation.held_out import calibration, held_out_curve, held_out_measures
from models.checkpoints import save_network
from sdd_fiqa.errors import UserError
from train_config import TrainConfig
from training.data import TrainingList, Unreadable, held_out_features
from training.log import Log


@torch.inference_mode()
def validate(
    config: TrainConfig,
    data: TrainingList,
    unreadable: Unreadable,
    model: nn.Module,
    compute: Compute,
    world: ProcessGroup,
) -> npt.NDArray[np.float32]:
    """Scores of the held-out images, (V,) float32, NaN where unreadable; the processes share it.

    Unreadable ones are reported and count for nothing.
    """
    model.eval()
    if world.size > 1:  # each process's last batch has moved BatchNorm's statistics its own way
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)  # whose network is saved
    scores = torch.zeros(len(data.held_out), device=compute.device)
    own = world.share(len(data.held_out))
    at = own.start
    rows = data.held_out[own.start : own.stop]
    for batch in batches(data.table, rows, config.batch_size, config.num_workers):
        unreadable.report(batch)
        with compute.autocast():
            part = model(compute.put(batch.faces))[:, 0].float()
        readable = compute.put(batch.readable)
        if not bool(torch.isfinite(part[readable]).all()):
            raise UserError(
                "scores of images held out are not finite: the training has diverged; begin anew "
                "with a lower --lr and another --checkpoints-name"
            )
        part[~readable] = torch.nan
        scores[at : at + len(part)] = part
        at += len(part)
    if world.size > 1:
        dist.all_reduce(scores)
    out: npt.NDArray[np.float32] = scores.cpu().numpy()
    return out


def check_held_out(config: TrainConfig, data: TrainingList, world: ProcessGroup) -> None:
    """Refuses before training what an epoch's end would: embeddings that do not serve, few pairs.

    Raises:
        UserError: the labels themselves, as scores, have no AOC on the held-out images.
    """
    if world.first and config.feats is not None and len(data.held_out):
        labels = data.table.values[data.held_out].astype(np.float32)
        features, unchecked = held_out_features(data, config.feats)
        _curve(config, features, data, labels)
        if unchecked:
            note(f"note: {unchecked}")


def _curve(
    config: TrainConfig,
    features: npt.NDArray[np.float32],
    data: TrainingList,
    scores: npt.NDArray[np.float32],
) -> Curve:
    return held_out_curve(scores, features, data.identities[data.held_out], config.val_fmr)


def finish_epoch(
    config: TrainConfig,
    data: TrainingList,
    unreadable: Unreadable,
    model: nn.Module,
    network: nn.Module,
    architecture: dict[str, Any],
    compute: Compute,
    world: ProcessGroup,
    folder: Path,
    state: dict[str, Any],
    steps: int,
    log: Log,
) -> None:
    """Measures the network on the held-out images and saves it, best.pth too if it is the best.

    All processes score; the first measures, writes, and knows the best.
    """
    scores = None
    if len(data.held_out):
        scores = validate(config, data, unreadable, model, compute, world)
    if not world.first:
        return
    measures: dict[str, float] = {}
    about: dict[str, Any] = {
        **architecture,
        "training": {"epoch": state["epoch"], "labels_sha256": data.table.sha256},
        "calibration": None,
    }
    if scores is not None:
        curve = None
        if np.isfinite(scores).any():
            measures = held_out_measures(scores, data.table.values[data.held_out])
        else:
            log.say(f"epoch {state['epoch']}: no image held out has a score: no measures")
        if config.feats is not None and measures:
            try:
                curve = _curve(config, held_out_features(data, config.feats)[0], data, scores)
                measures["aoc"] = areas(curve)["aoc"]
            except UserError as error:  # these scores keep too few pairs: no reason to lose them
                log.say(f"epoch {state['epoch']}: no AOC ({error})")
        about["training"].update(measures)
        about["calibration"] = calibration(scores, curve)
        log.write(epoch=state["epoch"], step=state["epoch"] * steps, **measures)
        if measures:
            found = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
            log.say(f"epoch {state['epoch']}: {found}")
    value = measures.get(config.best_by, -math.inf)  # without a measure, the last is the best
    better = -value if config.best_by == "mae" and math.isfinite(value) else value
    best = better > state["best"] or state["best"] == -math.inf
    save_network(folder / f"net_{state['epoch']}epoch.pth", network, about)
    if best:
        save_network(folder / "best.pth", network, about)
    state["best"] = max(better, state["best"])
