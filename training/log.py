"""What a training says while it runs: JSON lines for programs, bars and curves for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.distributed import ProcessGroup
from sdd_fiqa.files import make_parent, replacing


class Log:
    """stats.jsonl, TensorBoard events and the progress bar; only the first process writes."""

    def __init__(self, folder: Path, world: ProcessGroup, epochs: int, step: int) -> None:
        """Opens the log of a training that has done so many epochs and steps; later lines go."""
        self._on = world.first
        if not self._on:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "stats.jsonl"
        make_parent(path)
        kept = [
            line
            for line in _lines(path)
            if line["step"] <= step and ("loss" in line or line["epoch"] <= epochs)
        ]
        with replacing(path) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, *, step: int, epoch: int, **values: float) -> None:
        """One line of numbers."""
        if not self._on:
            return
        self._file.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """One line for people, on stdout, above the bar."""
        if self._on:
            tqdm.write(text)

    def bar(self, steps: int, done: int, name: str) -> tqdm[Any]:
        """The progress bar of an epoch."""
        return tqdm(
            total=steps,
            initial=done,
            desc=name,
            unit="step",
            disable=not self._on,
            leave=False,
        )

    def close(self) -> None:
        """Closes the files."""
        if self._on:
            self._file.close()
            self._events.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a stats.jsonl; none where there is no file."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break  # torn by a kill
        if not isinstance(line, dict) or not all(
            isinstance(line.get(name), int) for name in ("step", "epoch")
        ):
            break  # not ours
        lines.append(line)
    return lines
