"""Trains a quality network on pseudo-labels.

On the CPU, or one GPU:      python train.py
On the 8 GPUs of a machine:  torchrun --nproc-per-node 8 train.py
On 2 machines of 8:          torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
                                 --rdzv-endpoint HOST:29500 train.py

The settings are in train_config.py; each is a flag too. After a kill, a crash or Ctrl-C the same
command resumes from the last save.
"""

from __future__ import annotations

from typing import Annotated

from train_config import TrainConfig  # before torch (tests/scripts/test_scripts.py)

# isort: split
import tyro
from torch import Tensor, nn
from torch.nn import functional

from common.cli import EXIT_DONE, EXIT_INTERRUPTED, StopRequest, fail, run_script
from common.distributed import join_process_group
from training.run import TrainingRun


def main(config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig()) -> int:  # noqa: B008
    """Trains a quality network on pseudo-labels.

    Args:
        config: the settings.
    """
    config.check()
    with (
        join_process_group(config.device) as processes,
        TrainingRun(config, processes).opened() as run,
    ):
        if config.fit_head and not run.resumed:
            run.fit_head()
        stop = StopRequest()
        while run.position.epoch < config.epochs:
            if not train_epoch(config, run, stop):
                if processes.first:
                    fail("stopped and saved; the same command resumes from here")
                return EXIT_INTERRUPTED
            run.learner.schedule.step()  # the learning rate falls after the epochs in milestones
            run.finish_epoch()  # measures the held-out images; saves net_<epoch>epoch.pth, best.pth
        run.finish()
    return EXIT_DONE


def train_epoch(config: TrainConfig, run: TrainingRun, stop: StopRequest) -> bool:
    """Trains from where the run is to the end of the epoch; False if it was stopped, and saved."""
    learner = run.learner
    for rows, faces, labels in run.batches():  # (B,), (B, 112, 112, 3) uint8 RGB, (B,)
        with run.compute.autocast():
            scores = learner.model(faces)[:, 0]  # (B,)
        # Not the mean: an image weighs the same in batches that lack unreadable ones.
        loss = point_losses(config, scores, labels).sum() / run.plan.local_batch

        learner.optimiser.zero_grad(set_to_none=True)
        learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip_norm:
            learner.scaler.unscale_(learner.optimiser)
            nn.utils.clip_grad_norm_(learner.network.parameters(), config.clip_norm)
        learner.scaler.step(learner.optimiser)
        learner.scaler.update()

        if run.after_step(loss.detach(), rows, stop.asked):  # checks, logs, saves last.ckpt
            return False
    return True


def point_losses(config: TrainConfig, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image: (B,) scores and (B,) labels, both of 0..100 -> (B,).

    A new loss goes here; its name goes to `loss` in train_config.py.
    """
    if config.loss == "huber":
        # SmoothL1: the square divided by 2 beta inside beta, straight outside (as published).
        return functional.smooth_l1_loss(scores, labels, reduction="none", beta=config.huber_beta)
    if config.loss == "l1":
        return (scores - labels).abs()
    return (scores - labels).square()


if __name__ == "__main__":
    run_script(main)
