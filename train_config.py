"""The settings of training: edit them here, or override them on the command line.

    python train.py --backbone MFN --epochs 10

The defaults are the published ones; a comment says where one differs and why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.backbones import Backbone
from sdd_fiqa.errors import UserError

# Settings that a resumed run may change.
_MAY_CHANGE = """img_list feats checkpoints checkpoints_name batch_size epochs best_by val_fmr
max_unreadable display save_minutes num_workers device precision compile"""

# Rules for numbers: {what a setting must be: (its test, the settings)}.
_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "be above 0": (lambda value: value > 0, "huber_beta lr eps lr_gamma save_minutes"),
    "be 0 or more": (lambda value: value >= 0, "weight_decay clip_norm trunk_lr"),
    "be 1 or more": (lambda value: value >= 1, "display num_workers"),
    "be 2 or more (BatchNorm needs two)": (lambda value: value >= 2, "batch_size"),
    "lie in [0, 1)": (lambda value: 0 <= value < 1, "dropout val_identities"),
    "lie in [0, 1]": (lambda value: 0 <= value <= 1, "max_unreadable"),
    "lie in (0, 1)": (lambda value: 0 < value < 1, "val_fmr"),
    "lie in [0, 2^31)": (lambda value: 0 <= value < 2**31, "max_per_identity"),
    "lie in [0, 2^63)": (lambda value: 0 <= value < 2**63, "seed"),
    "not be -1, the image's own name": (lambda value: value != -1, "id_key_index"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Trains a quality network on pseudo-labels."""

    # list of images and labels, `<path> TAB <label>`, as gen_pseudo_labels writes it
    img_list: Path = Path("annotations/quality_pseudo_labels.txt")
    # start from these weights: a checkpoint with a recognition or a quality head; an .onnx
    # recogniser; sface or w600k_mbf (downloaded once); small, the shipped model; default: random
    # weights
    finetuning_model: str | None = None
    # folder of all runs
    checkpoints: Path = Path("checkpoints")
    # folder of this run, below that; the same name resumes the run
    checkpoints_name: str = "sdd_fiqa"
    # network; default: the backbone of --finetuning-model, else R_50 (as published); MFN is small
    backbone: Backbone | None = None
    # loss on labels of 0..100; huber is SmoothL1
    loss: Literal["huber", "l1", "l2"] = "huber"
    # error at which the Huber loss turns from quadratic to linear, in label points
    huber_beta: float = 1.0
    # Adam's learning rate
    lr: float = 1e-4
    # Adam's betas
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
    # batch size per process; published: 625 on each of 8 GPUs, too large for most GPUs
    batch_size: int = 128
    # largest norm of the gradient; 0: no limit (as published)
    clip_norm: float = 0.0
    # before training, fit the head by ridge regression on the starting trunk, in one pass; it gets
    # a floor that keeps scores above 0; with --epochs 0 this is the model
    fit_head: bool = False
    # learning rate of the trunk, as a factor of lr; 0 freezes it, its BatchNorm statistics too
    trunk_lr: float = 1.0
    # draw images so that every part of the label range comes equally often (published: no)
    balanced: bool = False
    # most images of one identity in an epoch, other ones in each epoch, so that identities with
    # hundreds of images do not dominate; 0: all images (as published)
    max_per_identity: int = 0
    # share of the head's inputs that dropout sets to 0
    dropout: float = 0.5
    # mirror half of the images, other ones in each epoch
    flip: bool = True
    # compute BatchNorm's statistics over all processes
    sync_bn: bool = False
    # share of the identities held out for validation; 0: none (as published)
    val_identities: float = 0.05
    # which part of a path is the identity; used if no DATA.labelpath is next to the labels
    id_key_index: int = -2
    # embeddings (.npy) of the list that the labels were made from: adds the AOC on held-out images,
    # and the FNMR after discarding to the calibration
    feats: Path | None = None
    # false match rate of the AOC, and of the FNMR in the calibration
    val_fmr: float = 1e-2
    # measure on the held-out images that picks best.pth
    best_by: Literal["spearman", "mae", "aoc"] = "spearman"
    # the run stops if a larger share of the training images is unreadable
    max_unreadable: float = 0.01
    # random seed of the split, the order, the flips, the dropout and the random weights
    seed: int = 0
    # steps between two log lines
    display: int = 20
    # minutes between two saves of last.ckpt; it is also saved at the end of each epoch
    save_minutes: float = 10.0
    # decoding threads per process; default: one per core
    num_workers: int | None = None
    # auto, cpu, cuda or cuda:i
    device: str = "auto"
    # auto is bf16 if the device is fast at it, else fp32
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # use torch.compile: a slow start, then faster on GPUs
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("img_list", "checkpoints", "feats"):
            if isinstance(getattr(self, name), str):  # a default that was edited as a string
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.finetuning_model is not None:  # or as a path
            object.__setattr__(self, "finetuning_model", str(self.finetuning_model))

    def check(self) -> None:
        """Raises UserError with the rule that a setting breaks, and its value."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise _error(f"{name} must be finite", value)
        for rule, (holds, names) in _RULES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise _error(f"{name} must {rule}", value)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise _error("betas must lie in [0, 1)", self.betas)
        rising = list(self.milestones) == sorted(set(self.milestones))
        if not rising or any(epoch <= 0 for epoch in self.milestones):
            raise _error("milestones must be epochs, in rising order", self.milestones)
        if self.epochs < (not self.fit_head):
            raise _error("epochs must be 1 or more (0 with fit_head)", self.epochs)
        if self.best_by == "aoc" and (self.feats is None or self.val_identities == 0):
            raise _error("best_by aoc needs feats and val_identities above 0", self.best_by)
        if self.checkpoints_name in ("", ".", "..") or "/" in self.checkpoints_name:
            raise _error("checkpoints_name must be a folder name", self.checkpoints_name)

    def best_metric_key(self) -> list[Any]:
        """What `best` in last.ckpt measures; values of different measures cannot be compared."""
        if self.best_by != "aoc":
            return [self.best_by]
        return [self.best_by, self.val_fmr, str(self.feats)]

    def plain(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain

    def resume_key(self) -> dict[str, Any]:
        """The settings that a resumed run must not change."""
        names = _MAY_CHANGE.split()
        return {name: value for name, value in self.plain().items() if name not in names}


def _error(rule: str, value: object) -> UserError:
    return UserError(f"train_config: {rule}; got {value}")
