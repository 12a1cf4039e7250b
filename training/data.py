"""What training reads: labels, who is on them, who is held out, and in which order they come."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.columns import write_columns
from dataset.embeddings import open_embeddings
from dataset.lists import LABELPATH, ImageList, identities_in, join, read_labelpath, read_table
from dataset.loader import Batch
from sdd_fiqa.errors import UserError

if TYPE_CHECKING:
    from common.distributed import ProcessGroup

Rows = npt.NDArray[np.int64]

# Keys that keep the random streams of one seed apart.
_SPLIT, _ORDER, _FLIP = 1, 2, 3
LABEL_BINS = 20


@dataclass(frozen=True)
class TrainingList:
    """Labelled images, divided into those to learn from and those held out.

    Attributes:
        table: `<path> TAB <label>`; `table.values` holds the labels, 0..100.
        identities: (N,) int64, any numbers; equal for images of one person.
        train: rows to learn from.
        held_out: rows of the identities held out.
        listed: (N,) int64, the row of each in the DATA.labelpath beside the labels; None where
            there is none that lists them all.
        most: images of one identity that an epoch draws, at the most; 0 draws all.
    """

    table: ImageList
    identities: Rows
    train: Rows
    held_out: Rows
    listed: Rows | None
    most: int = 0

    @property
    def epoch_images(self) -> int:
        """How many images an epoch draws."""
        if not self.most:
            return len(self.train)
        _, sizes = np.unique(self.identities[self.train], return_counts=True)
        return int(np.minimum(sizes, self.most).sum())

    def split_key(self) -> str:
        """A digest of who is held out and, where an epoch draws so many of each, of who is who."""
        digest = hashlib.sha256(self.held_out.tobytes())
        if self.most:
            _, first, names = np.unique(self.identities, return_index=True, return_inverse=True)
            digest.update(first[names].tobytes())  # whatever numbers the identities have
        return digest.hexdigest()

    def write_held_out(self, path: Path) -> None:
        """Writes the held-out images as a list that eval.py takes, `<path> TAB <label>`."""
        labels = self.table.values[self.held_out]
        write_columns(path, self.table, self.held_out, [(labels, 4)])


def read_training_list(
    path: Path, val_identities: float, id_key_index: int, seed: int, most: int = 0
) -> TrainingList:
    """Reads a label file and holds out a share of its identities.

    `most` is that of the list: how many images of an identity an epoch draws.

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
    everyone = np.arange(len(table), dtype=np.int64)
    none = np.empty(0, np.int64)
    if val_identities == 0 and not most:
        return TrainingList(table, np.zeros(len(table), np.int64), everyone, none, None)
    identities, listed = _identities(table, id_key_index)
    if val_identities == 0:
        return TrainingList(table, identities, everyone, none, listed, most)
    names = np.unique(identities)
    count = max(1, round(val_identities * len(names)))
    if count >= len(names):
        raise UserError(
            f"{path}: has {len(names)} identities, too few to hold out {count}; lower "
            "--val-identities, or set it to 0"
        )
    rng = np.random.default_rng([seed, _SPLIT])
    out = np.isin(identities, rng.choice(names, count, replace=False))
    return TrainingList(table, identities, np.flatnonzero(~out), np.flatnonzero(out), listed, most)


def epoch_order(data: TrainingList, seed: int, epoch: int, balanced: bool = False) -> Rows:
    """The order of an epoch: the same for the same seed and epoch, whatever the processes.

    Args:
        data: the list.
        seed: of the training.
        epoch: from 0.
        balanced: draw with replacement so that each of LABEL_BINS equal ranges of labels that holds
            images comes equally often, in place of every image once.

    Returns:
        (data.epoch_images,) int64, rows. Of an identity with more than `data.most` images, as many
        at random, others in each epoch.
    """
    rng = np.random.default_rng([seed, _ORDER, epoch])
    rows = rng.permutation(data.train)
    if data.most:
        rows = rows[_place_in_group(data.identities[rows]) < data.most]
    if not balanced:
        return rows
    bins = np.minimum(data.table.values[rows] // (100 / LABEL_BINS), LABEL_BINS - 1)
    _, bin_of, sizes = np.unique(bins, return_inverse=True, return_counts=True)
    weights = 1 / sizes[bin_of]
    return rng.choice(rows, len(rows), p=weights / weights.sum())


def drawn_shares(data: TrainingList) -> npt.NDArray[np.float32]:
    """(len(data.train),): the share of the epochs that each image to learn from is drawn in."""
    if not data.most:
        return np.ones(len(data.train), np.float32)
    _, who, sizes = np.unique(data.identities[data.train], return_inverse=True, return_counts=True)
    return np.minimum(1, data.most / sizes[who]).astype(np.float32)


def _place_in_group(groups: Rows) -> Rows:
    """Of each element: how many equal ones stand before it."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    sizes = np.diff(np.append(starts, len(groups)))
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return places


def held_out_features(data: TrainingList, path: Path) -> tuple[npt.NDArray[np.float32], str]:
    """The embeddings of the held-out images, (V, D), from those of the whole list.

    Returns:
        Them, and what could not be checked, in words; empty where all was.

    Raises:
        UserError: there is no DATA.labelpath that lists the labels, or the embeddings are not its.
    """
    if data.listed is None:
        raise UserError(
            f"--feats {path}: needs the {LABELPATH} that it was made from beside "
            f"{data.table.file}, to know which row is which image"
        )
    listed = read_table(data.table.file.parent / LABELPATH)
    file, origin = open_embeddings(path, listed)
    try:
        return file.take(data.listed[data.held_out]).astype(np.float32), origin.note
    finally:
        file.close()


def epoch_flips(count: int, seed: int, epoch: int) -> npt.NDArray[np.bool_]:
    """(N,) bool: which rows of the list are mirrored in an epoch."""
    return np.random.default_rng([seed, _FLIP, epoch]).random(count) < 0.5


def _identities(table: ImageList, id_key_index: int) -> tuple[Rows, Rows | None]:
    beside = table.file.parent / LABELPATH
    if beside.exists():
        listed, numbers = read_labelpath(beside)
        rows = join(table, listed)
        if np.all(rows >= 0):
            return numbers[rows].astype(np.int64), rows
    return identities_in(table, id_key_index).astype(np.int64), None


class Unreadable:
    """Counts the images that cannot be read: each reported once, too many stop the run."""

    def __init__(self, data: TrainingList, most: float) -> None:
        """Allows the share `most` of the images to learn from."""
        self.data, self.most = data, most
        self._reported: set[int] = set()
        self._epoch: set[int] = set()  # of the images to learn from

    def begin_epoch(self) -> None:
        """From here on the images come anew."""
        self._epoch.clear()

    def report(self, batch: Batch) -> None:
        """Says which images of a batch cannot be read, where that was not said before."""
        for position, reason in batch.failures.items():
            row = int(batch.rows[position])
            if row not in self._reported:
                path = self.data.table.path(row)
                note(f"{self.data.table.file}:{row + 1}: {path}: {reason}; skipped")
                self._reported.add(row)

    def check(self, batch: Batch, least: int = 2) -> None:
        """Reports what is new in a batch of images to learn from.

        Raises:
            UserError: more than the share allowed, or fewer than `least` images left of a batch.
        """
        self.report(batch)
        self._epoch.update(int(batch.rows[position]) for position in batch.failures)
        self._refuse(len(self._epoch))
        left = len(batch.rows) - len(batch.failures)
        if left < least:
            raise UserError(
                f"{self.data.table.file}: {left} images of a batch of {len(batch.rows)} can be "
                f"read, fewer than the {least} that a step needs; mend the list, or raise "
                "--batch-size"
            )

    def together(self, world: ProcessGroup) -> int:
        """How many images of this epoch no process could read; every process must ask.

        Raises:
            UserError: more than the share allowed.
        """
        bad = world.total(len(self._epoch))
        self._refuse(bad)
        return bad

    def _refuse(self, bad: int) -> None:
        all_rows = len(self.data.train)
        if bad > self.most * all_rows:
            raise UserError(
                f"{self.data.table.file}: {bad} of {all_rows} images cannot be read, more than "
                f"--max-unreadable {self.most:g} allows; mend the list, or allow more"
            )
