"""What a run reports: JSON lines for programs; bars, lines and TensorBoard curves for people."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from common.distributed import ProcessGroup
from sdd_fiqa.files import make_parent, replacing
from training.plan import Plan, Position


class Log:
    """stats.jsonl, TensorBoard events and lines on stdout; only the first process writes."""

    def __init__(
        self, folder: Path, processes: ProcessGroup, plan: Plan, position: Position
    ) -> None:
        """Opens the log of a run that is at `position`, and drops later lines."""
        self.folder, self.processes, self.plan = folder, processes, plan
        if not processes.first:
            return
        from torch.utils.tensorboard import SummaryWriter

        path, step = folder / "stats.jsonl", plan.steps_done(position)
        make_parent(path)
        kept = _kept_lines(path, step, position.epoch) if path.exists() else []
        with replacing(path) as file:
            file.writelines(f"{line}\n" for line in kept)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, *, step: int, epoch: int, **values: float) -> None:
        """Writes one line of numbers."""
        if not self.processes.first:
            return
        self._file.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Prints one line on stdout, above the bar."""
        if self.processes.first:
            tqdm.write(text)

    def close(self) -> None:
        """Closes the files."""
        if self.processes.first:
            self._file.close()
            self._events.close()


class EpochProgress:
    """The bar of an epoch, and a line of the log every `display` steps."""

    def __init__(self, log: Log, position: Position, display: int) -> None:
        self.log, self.display = log, display
        self.bar: tqdm[Any] = tqdm(
            total=log.plan.steps,
            initial=position.step,
            desc=f"epoch {position.epoch + 1}/{log.plan.epochs}",
            unit="step",
            disable=not log.processes.first,
            leave=False,
        )
        self._logged, self._since = position.step, time.monotonic()

    def after_step(self, position: Position, loss: Tensor, lr: float) -> None:
        """Shows a finished step with its scalar loss; every process must call it."""
        plan = self.log.plan
        self.bar.update()
        if position.step % self.display and position.step < plan.steps:
            return
        mean, now = self.log.processes.mean(loss), time.monotonic()
        rate = (position.step - self._logged) * plan.global_batch / (now - self._since)
        self._logged, self._since = position.step, now
        self.bar.set_postfix_str(f"loss {mean:.3f}, {rate:.0f} images/s")
        done = plan.steps_done(position)
        left = (plan.epochs * plan.steps - done) * plan.global_batch / rate
        numbers = {"loss": mean, "lr": lr, "images_per_s": rate, "seconds_left": left}
        self.log.write(epoch=position.epoch + 1, step=done, **numbers)


def _kept_lines(path: Path, step: int, epoch: int) -> list[str]:
    """The lines of a stats.jsonl up to a step and an epoch, and up to the first invalid line."""
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["step"] <= step and ("loss" in line or line["epoch"] <= epoch):
                kept.append(text)
        except (ValueError, RecursionError, LookupError, TypeError):
            break  # half a line: the run was killed
    return kept
