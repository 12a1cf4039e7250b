"""What training reads: labels, who is on them, who is held out, and in which order they come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.command_line import UserError
from dataset.lists import LABELPATH, Table, join, read_labelpath, read_table

Rows = npt.NDArray[np.int64]

# Keys that keep the random streams of one seed apart.
_SPLIT, _ORDER, _FLIP = 1, 2, 3


@dataclass(frozen=True)
class TrainingList:
    """Labelled images, divided into those to learn from and those held out.

    Attributes:
        table: `<path> TAB <label>`; `table.values` holds the labels, 0..100.
        identities: (N,) int64, any numbers; equal for images of one person.
        train: rows to learn from.
        held_out: rows of the identities held out.
    """

    table: Table
    identities: Rows
    train: Rows
    held_out: Rows


def read_training_list(
    path: Path, val_identities: float, id_key_index: int, seed: int
) -> TrainingList:
    """Reads a label file and holds out a share of its identities.

    Identities come from a DATA.labelpath beside the label file if that lists every path, else from
    part `id_key_index` of each path.

    Raises:
        UserError: a label outside [0, 100] or not finite, paths with too few parts, or too few
            identities to hold any out.
    """
    table = read_table(path, "label")
    labels = table.values
    bad = np.flatnonzero(~((labels >= 0) & (labels <= 100)))
    if len(bad):
        raise UserError(
            f"{path}:{bad[0] + 1}: label {labels[bad[0]]:g} is outside 0..100; make the labels "
            "with gen_pseudo_labels"
        )
    if val_identities == 0:
        none = np.empty(0, np.int64)
        everyone = np.arange(len(table), dtype=np.int64)
        return TrainingList(table, np.zeros(len(table), np.int64), everyone, none)
    identities = _identities(table, id_key_index)
    names = np.unique(identities)
    count = max(1, round(val_identities * len(names)))
    if count >= len(names):
        raise UserError(
            f"{path}: has {len(names)} identities, too few to hold out {count}; lower "
            "--val-identities, or set it to 0"
        )
    rng = np.random.default_rng([seed, _SPLIT])
    out = np.isin(identities, rng.choice(names, count, replace=False))
    return TrainingList(table, identities, np.flatnonzero(~out), np.flatnonzero(out))


def epoch_order(rows: Rows, seed: int, epoch: int) -> Rows:
    """The order of an epoch: the same for the same seed and epoch, whatever the processes."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(rows)


def epoch_flips(count: int, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: which rows of the list are mirrored in an epoch."""
    return np.random.default_rng([seed, _FLIP, epoch]).random(count) < 0.5


def _identities(table: Table, id_key_index: int) -> Rows:
    beside = table.file.parent / LABELPATH
    if beside.exists():
        listed, numbers = read_labelpath(beside)
        rows = join(table, listed)
        if np.all(rows >= 0):
            return numbers[rows].astype(np.int64)
    names: dict[str, int] = {}
    identities = np.empty(len(table), np.int64)
    for row, path in enumerate(table.paths()):
        parts = path.split("/")
        if not -len(parts) <= id_key_index < len(parts):
            raise UserError(
                f"{table.file}:{row + 1}: {path} has no part {id_key_index} to take the identity "
                "from; set --id-key-index, or --val-identities 0"
            )
        identities[row] = names.setdefault(parts[id_key_index], len(names))
    return identities
