"""The training data: labels, identities, the held-out part, the order of an epoch, batches."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.cli import note
from common.device import Compute
from common.distributed import ProcessGroup
from dataset.embeddings import open_embeddings
from dataset.identities import identities_in
from dataset.lists import (
    LABELPATH,
    PSEUDO_LABELS,
    ImageList,
    join,
    place_in_group,
    read_labelpath,
    read_table,
)
from dataset.loader import Batch
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of
from train_config import TrainConfig

Rows = npt.NDArray[np.int64]

# One seed gives three independent random streams: these numbers separate them.
_SPLIT, _ORDER, _FLIP = 1, 2, 3
LABEL_BINS = 20


@dataclass(frozen=True)
class TrainingList:
    """Labelled images, split by identity into a training part and a held-out part.

    Attributes:
        table: `<path> TAB <label>`; `table.values` holds the labels, 0..100.
        identities: (N,) int64, any numbers; equal for images of one person.
        train: (T,) rows of the training images.
        held_out: (V,) rows of the held-out images.
        listed: (N,) int64, the row of each image in the DATA.labelpath next to the labels; None if
            there is no such file or it does not list every image.
        max_per_identity: an epoch uses at most this many images of one identity; 0: all of them.
    """

    table: ImageList
    identities: Rows
    train: Rows
    held_out: Rows
    listed: Rows | None
    max_per_identity: int = 0

    @property
    def epoch_images(self) -> int:
        """How many images an epoch uses."""
        _, sizes = np.unique(self.identities[self.train], return_counts=True)
        return int(np.minimum(sizes, self.max_per_identity or len(self.train)).sum())

    def split_key(self) -> str:
        """A digest of the held-out rows and, with max_per_identity, of the identities."""
        digest = hashlib.sha256(self.held_out.tobytes())
        if self.max_per_identity:
            _, first, names = np.unique(self.identities, return_index=True, return_inverse=True)
            digest.update(first[names].tobytes())  # independent of the identities' numbers
        return digest.hexdigest()


def read_training_list(config: TrainConfig) -> TrainingList:
    """Reads a label file and holds out the share config.val_identities of its identities.

    Identities come from the DATA.labelpath next to the label file if it lists every path, else from
    part config.id_key_index of each path.

    Raises:
        UserError: paths with too few parts, or too few identities to hold any out.
    """
    path, most = config.img_list, config.max_per_identity
    try:
        table = read_table(path, "label")
    except UserError as error:
        if not path.is_file():
            raise
        raise UserError(f"{error}; {label_remedy(path)}") from error
    identities: Rows = np.zeros(len(table), np.int64)
    listed = None
    if config.val_identities or most:
        identities, listed = find_identities(table, config.id_key_index)
    names = np.unique(identities)
    count = max(1, round(config.val_identities * len(names))) if config.val_identities else 0
    if count >= len(names):
        raise UserError(
            f"{path}: has {count_of(len(names), 'identity')}, too few to hold out {count}; lower "
            "--val-identities, or set it to 0"
        )
    rng = np.random.default_rng([config.seed, _SPLIT])
    out = np.isin(identities, rng.choice(names, count, replace=False))
    return TrainingList(table, identities, np.flatnonzero(~out), np.flatnonzero(out), listed, most)


def label_remedy(file: Path) -> str:
    """What to name instead of a file that holds no labels."""
    pseudo_labels = file.with_name(PSEUDO_LABELS)
    if pseudo_labels.exists() and pseudo_labels != file:
        return f"use --img-list {shlex.quote(str(pseudo_labels))}"
    return f"make the labels with gen_pseudo_labels.py, and name its {PSEUDO_LABELS}"


def epoch_order(data: TrainingList, seed: int, epoch: int, balanced: bool = False) -> Rows:
    """The rows of an epoch, in order: (data.epoch_images,) int64, the same in every process.

    Of an identity with more than `data.max_per_identity` images, each epoch takes that many at
    random. If `balanced`, rows are drawn with replacement, so that each of LABEL_BINS equal label
    ranges that holds images comes equally often.
    """
    rng = np.random.default_rng([seed, _ORDER, epoch])
    rows = rng.permutation(data.train)
    if data.max_per_identity:
        rows = rows[place_in_group(data.identities[rows]) < data.max_per_identity]
    if not balanced:
        return rows
    bins = np.minimum(data.table.values[rows] // (100 / LABEL_BINS), LABEL_BINS - 1)
    _, bin_of, sizes = np.unique(bins, return_inverse=True, return_counts=True)
    weights = 1 / sizes[bin_of]
    return rng.choice(rows, len(rows), p=weights / weights.sum())


def epoch_flips(count: int, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: which rows of the list are mirrored in an epoch."""
    return np.random.default_rng([seed, _FLIP, epoch]).random(count) < 0.5


def sampling_weights(data: TrainingList) -> npt.NDArray[np.float32]:
    """(T,) float32: the share of epochs that use each training image."""
    _, who, sizes = np.unique(data.identities[data.train], return_inverse=True, return_counts=True)
    most = data.max_per_identity or len(data.train)
    return np.minimum(1, most / sizes[who]).astype(np.float32)


def faces_and_labels(
    batch: Batch, data: TrainingList, flips: npt.NDArray[np.bool_], compute: Compute
) -> tuple[Tensor, Tensor]:
    """The readable images of a batch: (B, 112, 112, 3) uint8 RGB faces and (B,) float32 labels."""
    rows = batch.rows[batch.readable]
    faces, mirrored = compute.put(batch.faces[batch.readable]), compute.put(flips[rows])
    labels = compute.put(data.table.values[rows].astype(np.float32))
    return torch.where(mirrored[:, None, None, None], faces.flip(2), faces), labels


def held_out_features(data: TrainingList, path: Path) -> tuple[npt.NDArray[np.float32], str]:
    """Takes the embeddings of the held-out images, (V, D), from those of the whole list.

    Returns:
        The embeddings, and a note on what could not be checked; empty if all was checked.

    Raises:
        UserError: no DATA.labelpath lists the labels, or the embeddings belong to another list.
    """
    if data.listed is None:
        raise UserError(
            f"--feats {path}: put the {LABELPATH} that it was made from next to "
            f"{data.table.file}; it says which row is which image"
        )
    file = open_embeddings(path, read_table(data.table.file.parent / LABELPATH))
    return file.take(data.listed[data.held_out]).astype(np.float32), file.note


def find_identities(table: ImageList, id_key_index: int) -> tuple[Rows, Rows | None]:
    """(N,) int64 identities, and the row of each image in DATA.labelpath if that gave them."""
    beside = table.file.parent / LABELPATH
    if beside.exists():
        listed, numbers = read_labelpath(beside)
        rows = join(table, listed)
        if np.all(rows >= 0):
            return numbers[rows].astype(np.int64), rows
    return identities_in(table, id_key_index).astype(np.int64), None


class Unreadable:
    """Counts the unreadable images: reports each once, and stops the run above a share of all."""

    def __init__(self, data: TrainingList, max_share: float) -> None:
        self.data, self.max_share = data, max_share
        self._reported: set[int] = set()
        self._epoch: set[int] = set()  # training images only

    def begin_epoch(self) -> None:
        """Starts the count of an epoch at 0."""
        self._epoch.clear()

    def report(self, batch: Batch) -> None:
        """Prints a line for each unreadable image of a batch that has none yet."""
        for position, reason in batch.failures.items():
            row = int(batch.rows[position])
            if row not in self._reported:
                path = self.data.table.path(row)
                note(f"{self.data.table.file}:{row + 1}: {path}: {reason}; skipped")
                self._reported.add(row)

    def check(self, batch: Batch, least: int = 2) -> None:
        """Reports and counts the unreadable images of a batch of training images.

        Raises:
            UserError: there are too many, or fewer than `least` images of the batch are left.
        """
        self.report(batch)
        self._epoch.update(int(batch.rows[position]) for position in batch.failures)
        self._check_share(len(self._epoch))
        left = len(batch.rows) - len(batch.failures)
        if left < least:
            raise UserError(
                f"{self.data.table.file}: a batch of {len(batch.rows)} has only "
                f"{count_of(left, 'readable image')}, and a step needs {least}; fix the list, or "
                "raise --batch-size"
            )

    def total_over_processes(self, processes: ProcessGroup) -> int:
        """The unreadable images of this epoch in all processes; every process must call it.

        Raises:
            UserError: there are too many.
        """
        total = processes.total(len(self._epoch))
        self._check_share(total)
        return total

    def _check_share(self, unreadable: int) -> None:
        images = len(self.data.train)
        if unreadable > self.max_share * images:
            raise UserError(
                f"{self.data.table.file}: unreadable: {unreadable} of {count_of(images, 'image')}, "
                f"more than --max-unreadable {self.max_share:g} allows; fix the list, or raise the "
                "limit"
            )
