"""The settings of training: edit them here, or override them on the command line.

    python train.py --backbone MFN --epochs 10

The defaults are the published ones; a comment says where one differs and why.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.backbones import Backbone

# Settings that may differ between a run and the one that goes on with it.
MAY_CHANGE = {
    *("img_list", "feats", "checkpoints", "checkpoints_name", "batch_size", "epochs", "best_by"),
    *(
        "val_fmr",
        "max_unreadable",
        "display",
        "save_minutes",
        "num_workers",
        "device",
        "precision",
        "compile",
    ),
}


@dataclass(frozen=True)
class TrainConfig:
    """Trains a quality network on pseudo-labels."""

    # labels to learn, `<path> TAB <label>`, as gen_pseudo_labels writes them
    img_list: Path = Path("annotations/quality_pseudo_labels.txt")
    # start from this: a checkpoint with a recognition or a quality head, by key name; an .onnx
    # recogniser; sface or w600k_mbf (fetched once); small, the shipped model; None starts from
    # random weights
    finetuning_model: str | None = None
    # folder of all trainings
    checkpoints: Path = Path("checkpoints")
    # this training's folder below it; the same name goes on where it stopped
    checkpoints_name: str = "sdd_fiqa"
    # the network; None takes that of finetuning_model and, where there is none, R_50 (as
    # published); MFN is the small one
    backbone: Backbone | None = None
    # huber (SmoothL1), l1 or l2, on labels of 0..100
    loss: Literal["huber", "l1", "l2"] = "huber"
    # where Huber turns from square to straight, in label points
    huber_beta: float = 1.0
    # Adam's learning rate
    lr: float = 1e-4
    # Adam's averaging constants
    betas: tuple[float, float] = (0.9, 0.99)
    # Adam's epsilon
    eps: float = 1e-6
    # L2 penalty, added to the gradient
    weight_decay: float = 5e-4
    # epochs after which lr is multiplied by lr_gamma
    milestones: tuple[int, ...] = (5, 10)
    # factor at each milestone
    lr_gamma: float = 0.1
    # passes over the training images
    epochs: int = 20
    # images a step and process; published: 5000 over 8 GPUs, 625 each, more than most memories hold
    batch_size: int = 128
    # clip the gradient's norm to this; 0 does not (as published)
    clip_norm: float = 0.0
    # begin with the head that ridge regression gives on the trunk as it starts, in one pass and
    # without a rate to choose, and with a floor that keeps scores above 0; with --epochs 0 that is
    # the model
    fit_head: bool = False
    # the trunk's learning rate, as a factor on lr; 0 freezes the trunk and its BatchNorm statistics
    trunk_lr: float = 1.0
    # draw images so that every label of 0..100 comes equally often (published: as they come)
    balanced: bool = False
    # images of one identity that an epoch draws, at the most, others each epoch: keeps the few with
    # hundreds from outweighing the rest; 0 draws all (as published)
    max_per_identity: int = 0
    # share of the head's inputs dropped in training
    dropout: float = 0.5
    # mirror half of the images, others each epoch
    flip: bool = True
    # share BatchNorm's statistics among processes
    sync_bn: bool = False
    # share of the identities held out to validate on (published: none); 0 holds out none
    val_identities: float = 0.05
    # which part of a path is the identity, where no DATA.labelpath beside the labels says it
    id_key_index: int = -2
    # embeddings (.npy) of the list that the labels were made from: adds AOC on the held-out images,
    # and to the calibration what FNMR a discarded share leaves
    feats: Path | None = None
    # false match rate of the AOC, and of the FNMR in the calibration
    val_fmr: float = 1e-2
    # which measure on the held-out images picks best.pth
    best_by: Literal["spearman", "mae", "aoc"] = "spearman"
    # share of unreadable training images at which the run stops
    max_unreadable: float = 0.01
    # seed of the split, the order, the flips, the dropout and the random weights
    seed: int = 0
    # steps between two log lines
    display: int = 20
    # minutes between two saves of last.ckpt within an epoch; it is saved at each epoch's end anyway
    save_minutes: float = 10.0
    # decoding threads a process; None takes one a core
    num_workers: int | None = None
    # auto, cpu, cuda or cuda:i
    device: str = "auto"
    # auto takes bf16 where the device is fast at it
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # compile the network with torch.compile: slow to start, then faster on GPUs
    compile: bool = False

    def rules(self) -> dict[str, bool]:
        """What must hold of the settings: {rule: whether it does}."""
        return {
            **{
                f"{name} must be finite": math.isfinite(value)
                for name, value in vars(self).items()
                if isinstance(value, float)
            },
            "huber_beta must be above 0": self.huber_beta > 0,
            "lr must be above 0": self.lr > 0,
            "betas must lie in [0, 1)": all(0 <= beta < 1 for beta in self.betas),
            "eps must be above 0": self.eps > 0,
            "weight_decay must be 0 or more": self.weight_decay >= 0,
            "milestones must be epochs, in rising order": (
                list(self.milestones) == sorted(set(self.milestones))
                and all(epoch > 0 for epoch in self.milestones)
            ),
            "lr_gamma must be above 0": self.lr_gamma > 0,
            "epochs must be 1 or more (0 with fit_head)": self.epochs >= (not self.fit_head),
            "batch_size must be 2 or more (BatchNorm needs two)": self.batch_size >= 2,
            "clip_norm must be 0 or more": self.clip_norm >= 0,
            "trunk_lr must be 0 or more": self.trunk_lr >= 0,
            "max_per_identity must lie in [0, 2^31)": 0 <= self.max_per_identity < 2**31,
            "dropout must lie in [0, 1)": 0 <= self.dropout < 1,
            "val_identities must lie in [0, 1)": 0 <= self.val_identities < 1,
            "id_key_index must not be -1, the image's own name": self.id_key_index != -1,
            "val_fmr must lie in (0, 1)": 0 < self.val_fmr < 1,
            "best_by aoc needs feats and val_identities above 0": (
                self.best_by != "aoc" or (self.feats is not None and self.val_identities > 0)
            ),
            "max_unreadable must lie in [0, 1]": 0 <= self.max_unreadable <= 1,
            "seed must lie in [0, 2^63)": 0 <= self.seed < 2**63,
            "display must be 1 or more": self.display >= 1,
            "save_minutes must be above 0": self.save_minutes > 0,
            "num_workers must be 1 or more": self.num_workers is None or self.num_workers >= 1,
            "checkpoints_name must be a folder name": (
                self.checkpoints_name not in ("", ".", "..") and "/" not in self.checkpoints_name
            ),
        }

    def judged(self) -> list[Any]:
        """What best.pth is the best by; measures of other kinds are not to be compared."""
        if self.best_by != "aoc":
            return [self.best_by]
        return [self.best_by, self.val_fmr, str(self.feats)]

    def plain(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    def key(self) -> dict[str, Any]:
        """The settings that must stay equal for a training to be gone on with."""
        return {name: value for name, value in self.plain().items() if name not in MAY_CHANGE}
