"""What a network learns from, on its device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from common.device import Compute
from common.distributed import ProcessGroup
from dataset.loader import Batch, batches
from train_config import TrainConfig
from training.data import TrainingList, Unreadable, drawn_shares, epoch_flips


def put(
    batch: Batch, data: TrainingList, flips: npt.NDArray[np.bool_], compute: Compute
) -> tuple[Tensor, Tensor]:
    """What could be read of a batch, on the device: (B, 112, 112, 3) uint8 faces, (B,) labels."""
    good = batch.readable
    rows = batch.rows[good]
    faces, mirrored = compute.put(batch.faces[good]), compute.put(flips[rows])
    labels = compute.put(data.table.values[rows].astype(np.float32))
    return torch.where(mirrored[:, None, None, None], faces.flip(2), faces), labels


def head_examples(
    config: TrainConfig,
    data: TrainingList,
    compute: Compute,
    world: ProcessGroup,
    unreadable: Unreadable,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's part of what a head is fitted to: faces, labels and (B,) weights."""
    flips = epoch_flips(len(data.table), config.seed, 0) & config.flip
    weights = np.zeros(len(data.table), np.float32)
    weights[data.train] = drawn_shares(data)
    share = world.share(len(data.train))
    rows = data.train[share.start : share.stop]
    bar = tqdm(total=len(rows), desc="fit head", unit="image", disable=not world.first, leave=False)
    for batch in batches(data.table, rows, config.batch_size, config.num_workers):
        unreadable.check(batch, least=0)
        yield *put(batch, data, flips, compute), compute.put(weights[batch.rows[batch.readable]])
        bar.update(len(batch.rows))
    bar.close()
