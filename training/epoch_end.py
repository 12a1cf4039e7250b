"""The end of an epoch: is the network finite, how good is it on held-out images, is it the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.cli import note
from common.device import Compute
from dataset.loader import batches
from evaluation.edc.areas import FEW_ERRORS, areas
from evaluation.edc.curves import Curve
from evaluation.held_out import calibration, held_out_curve, held_out_measures
from models.checkpoints import RESUME, save_network
from models.networks import FaceModel
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of
from train_config import TrainConfig
from training.data import Rows, TrainingList, Unreadable, held_out_features
from training.log import Log
from training.plan import Position

Scores = npt.NDArray[np.float32]

_NO_CORRELATION = 0.1  # Spearman's
_CONSTANT = 0.1  # points between the lowest and the highest score
_PROBED = 100
_LEARN = (
    "train with more --epochs or a higher --lr, or start from a recogniser: --finetuning-model "
    "w600k_mbf --fit-head"
)
_RESTART = "restart with a lower --lr and another --checkpoints-name"


class FiniteCheck:
    """Stops a run whose loss or weights are NaN or infinite, before they are measured or saved."""

    def __init__(self, data: TrainingList, folder: Path, compute: Compute) -> None:
        self.data, self.folder, self.compute = data, folder, compute
        self._last: tuple[Callable[[], Any], Rows, str] | None = None

    def after_step(self, loss: Tensor, rows: Rows, position: Position) -> None:
        """Checks the loss of the previous step, so that the GPU is not stalled; keeps this one."""
        self.check()
        self._last = self.compute.fetch(loss), rows, str(position)

    def check(self, network: nn.Module | None = None) -> None:
        """Checks the loss of the last step and, of a network, the weights after it.

        All processes have the same weights, so all of them stop. Their losses differ, and a finite
        loss can have a gradient that is not finite.
        """
        if self._last is None:
            return
        fetched, rows, where = self._last
        loss = float(fetched())
        wrong = [] if math.isfinite(loss) else [f"the loss is {loss}"]
        state = {} if network is None else network.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                wrong.append(f"{name} is no longer finite")
        if wrong:
            batch = ", ".join(self.data.table.paths_at(rows[:5]))
            saved = f"the last good save is in {self.folder}; " * (self.folder / RESUME).exists()
            raise UserError(
                f"{wrong[0]} after {where} (its batch: {batch}, ...); {saved}{_RESTART}"
            )


def check_held_out(config: TrainConfig, data: TrainingList) -> None:
    """Before training: refuses embeddings that give no AOC on the held-out images.

    Raises:
        UserError: even the labels themselves, taken as scores, have no AOC.
    """
    if config.feats is not None and len(data.held_out):
        unchecked = _curve(config, data, data.table.values[data.held_out].astype(np.float32))[1]
        if unchecked:
            note(f"note: {unchecked}")


def _curve(config: TrainConfig, data: TrainingList, scores: Scores) -> tuple[Curve, str]:
    """Error against discard of the held-out images, and a note on what could not be checked."""
    assert config.feats is not None
    features, unchecked = held_out_features(data, config.feats)
    people = data.identities[data.held_out]
    return held_out_curve(scores, features, people, config.val_fmr), unchecked


@dataclass
class EpochEnd:
    """Measures and saves the network of each epoch.

    `doubt` says why the network of the last epoch seems to have learned nothing; empty if it has.
    """

    config: TrainConfig
    compute: Compute
    unreadable: Unreadable
    log: Log
    doubt: str = ""

    def finish(self, model: FaceModel, architecture: dict[str, Any], position: Position) -> None:
        """Measures a network on the held-out images, saves it, and updates `position.best`.

        All processes score the images; the first one measures and writes. `architecture` goes to
        the .json next to the checkpoint.
        """
        data, epoch, folder = self.unreadable.data, position.epoch, self.log.folder
        scores = self.scores(model, data.held_out) if len(data.held_out) else None
        if not self.log.processes.first:
            return
        measures: dict[str, float] = {}
        table = None
        if scores is not None:
            measures, table = self._measure(scores, epoch)
            self.log.write(epoch=epoch, step=self.log.plan.steps_done(position), **measures)
        training = {"epoch": epoch, "labels_sha256": data.table.sha256, **measures}
        about = {**architecture, "training": training, "calibration": table}
        save_network(folder / f"net_{epoch}epoch.pth", model.network, about)
        value = measures.get(self.config.best_by, -math.inf)  # without a measure, the last is best
        if self.config.best_by == "mae" and math.isfinite(value):
            value = -value
        if value > position.best or position.best == -math.inf:
            save_network(folder / "best.pth", model.network, about)
        position.best = max(value, position.best)

    @torch.inference_mode()
    def scores(self, model: nn.Module, rows: Rows) -> Scores:
        """(V,) float32 scores of some images, NaN where unreadable; the processes share the work.

        Unreadable images are reported, but do not count against --max-unreadable.
        """
        data, processes = self.unreadable.data, self.log.processes
        model.eval()
        if processes.size > 1:  # BatchNorm statistics differ; the first process saves its own
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        scores = torch.zeros(len(rows), device=self.compute.device)
        own = processes.share(len(rows))
        at, rows = own.start, rows[own.start : own.stop]
        for batch in batches(data.table, rows, self.config.batch_size, self.config.num_workers):
            self.unreadable.report(batch)
            with self.compute.autocast():
                part = model(self.compute.put(batch.faces))[:, 0].float()
            readable = self.compute.put(batch.readable)
            if not bool(torch.isfinite(part[readable]).all()):
                diverged = "the scores of some images are not finite: the training has diverged"
                raise UserError(f"{diverged}; {_RESTART}")
            part[~readable] = torch.nan
            scores[at : at + len(part)] = part
            at += len(part)
        if processes.size > 1:
            dist.all_reduce(scores)
        return np.asarray(scores.cpu().numpy())

    def check_constant(self, model: nn.Module) -> None:
        """Sets `doubt` from the scores of some training images; every process must call it."""
        self._doubt_constant(self.scores(model, self.unreadable.data.train[:_PROBED]))

    def _doubt_constant(self, scores: Scores) -> None:
        good, self.doubt = scores[np.isfinite(scores)], ""
        if len(good) > 1 and np.ptp(good) < _CONSTANT:
            self.doubt = f"the network gives every image the score {good[0]:.1f}; {_LEARN}"

    def _measure(
        self, scores: Scores, epoch: int
    ) -> tuple[dict[str, float], dict[str, Any] | None]:
        """The measures of (V,) scores, and their calibration."""
        if not np.isfinite(scores).any():
            self.log.say(f"epoch {epoch}: no held-out image is readable: no measures")
            return {}, None
        data = self.unreadable.data
        labels = data.table.values[data.held_out]
        measures = held_out_measures(scores, labels)
        self._doubt_constant(scores)
        if not self.doubt and np.ptp(labels) and measures["spearman"] < _NO_CORRELATION:
            correlation = (
                f"Spearman {measures['spearman']:.2f} on {count_of(len(labels), 'held-out image')}"
            )
            self.doubt = f"{correlation}: the scores do not follow the labels; {_LEARN}"
        curve, few = None, ""
        if self.config.feats is not None:
            try:
                curve = _curve(self.config, data, scores)[0]
                measures["aoc"] = areas(curve)["aoc"]
                if curve.errors[0] < FEW_ERRORS:
                    few = f" (AOC from only {count_of(int(curve.errors[0]), 'error')})"
            except UserError as error:  # too few pairs with these scores; the rest is still useful
                self.log.say(f"epoch {epoch}: no AOC ({error})")
        found = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        self.log.say(f"epoch {epoch}: {found}{few}")
        if curve is not None:
            measures["aoc_errors"] = float(curve.errors[0])
        return measures, calibration(scores, curve)
