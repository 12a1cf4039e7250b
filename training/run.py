"""A training run: everything around the loop of train.py.

`Learner` makes the network, the optimiser and the schedule of the learning rate. train.py calls
`TrainingRun` in this order: the constructor, `opened`, `fit_head` if asked for; in each epoch
`batches`, `after_step` and `finish_epoch`; and `finish`. `_save` and `_resume` write and read
last.ckpt.
"""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.cli import note
from common.cpu import keep_freed_memory
from common.device import Compute, choose_compute
from common.distributed import ProcessGroup
from dataset.alignment_check import doubt_alignment
from dataset.columns import write_columns
from dataset.loader import batches
from models.backbones.layers import add_floor
from models.checkpoints import read_resume, save_resume
from models.networks import (
    FaceModel,
    describe_network,
    freeze_statistics,
    parameter_groups,
    quality_head,
)
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import lock_folder, write_json
from sdd_fiqa.number import count_of
from train_config import TrainConfig
from training.closed_form_head import fit_head
from training.data import (
    Rows,
    Unreadable,
    epoch_flips,
    epoch_order,
    faces_and_labels,
    read_training_list,
    sampling_weights,
)
from training.epoch_end import EpochEnd, FiniteCheck, check_held_out
from training.labels import check_labels
from training.log import EpochProgress, Log
from training.plan import Plan, Position
from training.start import start_network
from training.sync_norm import with_shared_statistics

_SAVED = ("network", "optimiser", "schedule", "scaler")  # keys of last.ckpt


class Learner:
    """What is trained, and what trains it.

    Attributes:
        start: the network's origin.
        architecture: what the .json next to a checkpoint says of the network.
        network: the quality network, whose weights are saved.
        face_model: the same with its normalisation, for validation.
        model: the same again, compiled and synchronised over processes, for training.
        optimiser, schedule: the head learns at config.lr, the trunk at config.trunk_lr times that;
            both rates fall at config.milestones.
        scaler: scales the loss in fp16.
    """

    def __init__(self, config: TrainConfig, compute: Compute, processes: ProcessGroup) -> None:
        self.start = start_network(config.finetuning_model, config.backbone, config.dropout)
        network = self.start.network
        if config.fit_head:
            add_floor(quality_head(network))
        self.architecture = describe_network(self.start.backbone, network)
        if config.sync_bn and processes.size > 1:
            network = with_shared_statistics(network, compute.device)
        self.network = network
        self.face_model = FaceModel(network).to(memory_format=torch.channels_last)
        self.face_model.to(compute.device)
        groups = parameter_groups(network, config.lr, config.trunk_lr)
        self.optimiser = torch.optim.Adam(
            groups, config.lr, config.betas, config.eps, config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(
            self.optimiser, list(config.milestones), config.lr_gamma
        )
        on_fp16 = compute.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=on_fp16)
        self.model: nn.Module = self.face_model
        if config.compile:
            self.model = torch.compile(self.model)  # type: ignore[assignment]
        if processes.size > 1:
            gpu = [compute.device] if compute.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(self.model, device_ids=gpu)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {name: getattr(self, name).state_dict() for name in _SAVED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        for name in _SAVED:
            if state[name]:  # a scaler is empty if the run began in another precision than fp16
                getattr(self, name).load_state_dict(state[name])


class TrainingRun:
    """A run of train.py: data, plan (all steps), position (finished steps), learner.

    The constructor reads the data and makes the network. `opened` then uses the folder of the run,
    and adds the log and what ends an epoch; `batches` adds the bar of each epoch.
    """

    def __init__(self, config: TrainConfig, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.folder = config.checkpoints / config.checkpoints_name
        self.compute = choose_compute(config.device, config.precision)
        if self.compute.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.data = read_training_list(config)
        if processes.first:
            check_labels(self.data, config.id_key_index)
            check_held_out(config, self.data)
            if doubt := doubt_alignment(self.data.table):
                note(f"note: {doubt}")
        images = self.data.epoch_images
        self.plan = Plan.of(images, config.batch_size, processes.size, config.epochs)
        self.position, self.resumed = Position(), False
        self.learner = Learner(config, self.compute, processes)
        self._unreadable = Unreadable(self.data, config.max_unreadable)
        self._finite = FiniteCheck(self.data, self.folder, self.compute)
        self._saved_at = time.monotonic()
        # The vote is an all-reduce and a GPU sync; check every 10 steps, well within torchrun's
        # 30 s grace period. On the CPU it is cheap.
        self._vote_every = min(config.display, 10) if self.compute.device.type == "cuda" else 1

    @contextmanager
    def opened(self) -> Iterator[TrainingRun]:
        """Locks the folder, resumes from its last save if there is one, and opens the log."""
        with lock_folder(self.folder) if self.processes.first else nullcontext():
            origin = self._resume() or self.learner.start.text
            with closing(Log(self.folder, self.processes, self.plan, self.position)) as self.log:
                if self.processes.first:
                    self._describe(origin)
                self._epoch_end = EpochEnd(self.config, self.compute, self._unreadable, self.log)
                yield self

    def _describe(self, origin: str) -> None:
        """Prints what is about to happen, and writes it to the folder."""
        data = self.data
        each = f" ({data.epoch_images} an epoch)" if data.max_per_identity else ""
        learned = count_of(len(data.train), "image")
        print(
            f"{self.learner.start.backbone} on {self.compute}: {learned} to learn from{each}, "
            f"{len(data.held_out):,} held out; {self.plan.global_batch} images a step "
            "in all"
        )
        print(f"start: {origin}")
        settings = {"command": sys.argv, "settings": self.config.plain()}
        write_json(self.folder / "config.json", settings)
        labels = data.table.values[data.held_out]  # a list that eval.py takes
        write_columns(self.folder / "held_out.txt", data.table, data.held_out, [(labels, 4)])

    def fit_head(self) -> None:
        """Gives the network a head in closed form, and measures and saves that network."""
        fit_head(self.learner.face_model, self._head_examples(), self.compute, self.processes)
        lost = self._unreadable.total_over_processes(self.processes)
        self.log.say(f"head fitted to {count_of(len(self.data.train) - lost, 'image')}")
        self._measure_and_save()

    def _head_examples(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's share of the training images: faces, labels and (B,) weights."""
        config, data = self.config, self.data
        flips = epoch_flips(len(data.table), config.seed, 0) & config.flip
        weights = np.zeros(len(data.table), np.float32)
        weights[data.train] = sampling_weights(data)
        own = self.processes.share(len(data.train))
        rows, hidden = data.train[own.start : own.stop], not self.processes.first
        bar = tqdm(total=len(rows), desc="fit head", unit="image", disable=hidden, leave=False)
        for batch in batches(data.table, rows, config.batch_size, config.num_workers):
            self._unreadable.check(batch, least=0)
            faces, labels = faces_and_labels(batch, data, flips, self.compute)
            yield faces, labels, self.compute.put(weights[batch.rows[batch.readable]])
            bar.update(len(batch.rows))
        bar.close()

    def batches(self) -> Iterator[tuple[Rows, Tensor, Tensor]]:
        """The batches of the current epoch, from the current position on.

        Yields:
            This process's slice of a global batch: its (B,) rows in the list, (B, 112, 112, 3)
            uint8 RGB faces and (B,) float32 labels; faces and labels lack the unreadable images.
        """
        config, data, position = self.config, self.data, self.position
        self._unreadable.begin_epoch()
        self._progress = EpochProgress(self.log, position, config.display)
        self.learner.face_model.train()
        if config.trunk_lr == 0:
            freeze_statistics(self.learner.network)
        order = epoch_order(data, config.seed, position.epoch, config.balanced)
        rows = self.plan.own_rows(order, self.processes.rank, position.step)
        flips = epoch_flips(len(data.table), config.seed, position.epoch) & config.flip
        for batch in batches(data.table, rows, self.plan.local_batch, config.num_workers):
            self._unreadable.check(batch)
            faces, labels = faces_and_labels(batch, data, flips, self.compute)
            # Dropout depends on the position only: a resumed run draws the same numbers.
            key = (config.seed, position.epoch, position.step, self.processes.rank)
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
            yield batch.rows, faces, labels

    def after_step(self, loss: Tensor, rows: Rows, stop: bool) -> bool:
        """Checks and logs a step; saves after config.save_minutes, or if a process must stop.

        Takes this process's scalar loss, the rows it is of, and whether this process must stop.
        Returns whether the run is saved and all processes must stop.
        """
        position = self.position
        position.step += 1
        self._finite.after_step(loss, rows, position)
        self._progress.after_step(position, loss, float(self.learner.schedule.get_last_lr()[0]))
        if position.step % self._vote_every and position.step < self.plan.steps:
            return False
        late = time.monotonic() - self._saved_at > 60 * self.config.save_minutes
        stop = self.processes.any(stop)
        if stop or self.processes.any(late):
            self._finite.check(self.learner.network)
            self._save()
        if stop:
            self._progress.bar.close()
        return stop

    def finish_epoch(self) -> None:
        """Checks, measures and saves the network of an epoch."""
        self._progress.bar.close()
        self._finite.check(self.learner.network)
        self._unreadable.total_over_processes(self.processes)
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        self._measure_and_save()

    def finish(self) -> None:
        """Prints where the best network is, how to use it, and whether it has learned anything."""
        if not len(self.data.held_out):  # else the last epoch has told
            self._epoch_end.check_constant(self.learner.face_model)
        if not self.processes.first:
            return
        print(f"{self.folder}: trained {count_of(self.config.epochs, 'epoch')}")
        script = Path(__file__).resolve().parents[1] / "eval.py"
        images = self.folder / "held_out.txt" if len(self.data.held_out) else self.config.img_list
        best = self.folder / "best.pth"
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        name = script.name if script.parent == Path.cwd() else str(script)
        command = shlex.join([python, name, str(images), "--model", str(best)])
        print(f"best network: {best}; it scores a list or a folder: {command}")
        if self._epoch_end.doubt:
            note(f"note: {self._epoch_end.doubt}")

    def _measure_and_save(self) -> None:
        learner = self.learner
        self._epoch_end.finish(learner.face_model, learner.architecture, self.position)
        self._save()

    def _save(self) -> None:
        """Writes last.ckpt."""
        if self.processes.first:
            state = {**asdict(self.position), "judged": self.config.best_metric_key()}
            content = {**self.learner.state_dict(), "state": state}
            save_resume(self.folder, self._resume_key(), content)
        self._saved_at = time.monotonic()

    def _resume(self) -> str:
        """Reads last.ckpt; returns where the run is, in words; empty if there is no save.

        Raises:
            UserError: the folder holds another run or a save that was changed by hand, or the
                processes see different folders.
        """
        saved = read_resume(self.folder, self._resume_key())
        if saved is not None:
            try:
                self._take(saved)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0]
                raise UserError(
                    f"{self.folder}: its save does not fit this training ({reason}); remove the "
                    "folder to start again"
                ) from error
        if not self.processes.agree(-1 if saved is None else self.plan.steps_done(self.position)):
            raise UserError(
                f"{self.folder}: is not the same folder in every process; put it on shared storage"
            )
        if saved is None:
            return ""
        self.resumed = True
        if self.position.epoch >= self.config.epochs:
            return f"{self.folder}: finished before; nothing to do"
        return f"{self.folder}: {self.position}"

    def _take(self, saved: dict[str, Any]) -> None:
        """Takes what `_save` wrote; raises ValueError and others where it cannot be right."""
        state = saved["state"]
        found = Position(state["epoch"], state["step"])
        known = isinstance(found.epoch, int) and isinstance(found.step, int)
        if not (known and 0 <= found.epoch < 1 << 32 and 0 <= found.step <= self.plan.steps):
            raise ValueError(f"it is at {found}")
        if state.get("judged") == self.config.best_metric_key():
            found.best = state["best"]  # measures of another kind cannot be compared
            if not found.best < math.inf:
                raise ValueError(f"its best measure is {found.best}")
        self.learner.load_state_dict(saved)
        for weight, averages in self.learner.optimiser.state.items():  # torch does not look
            if any(averages[name].shape != weight.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("an average of the optimiser has another shape")
        self.position = found

    def _resume_key(self) -> dict[str, Any]:
        """What must be equal in a run and its resume."""
        return {
            **self.config.resume_key(),
            "labels": self.data.table.sha256,
            "images a step": self.plan.global_batch,
            "people held out": self.data.split_key(),
        }
