"""Trains a quality network on pseudo-labels.

On the CPU, or one GPU:      python train.py
On the 8 GPUs of a machine:  torchrun --nproc-per-node 8 train.py
On 2 machines of 8:          torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
                                 --rdzv-endpoint HOST:29500 train.py

The settings stand in train_config.py; each is a flag too. The same command goes on after a kill,
a crash or Ctrl-C from the last save.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from common.distributed import (  # first: how torch's threads wait is set with it
    ProcessGroup,
    join_process_group,
)

# isort: split
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from common.cli import EXIT_DONE, EXIT_INTERRUPTED, StopRequest, fail, run_script
from common.cpu import keep_freed_memory
from common.device import Compute, choose_compute
from dataset.loader import Batch, batches
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
from train_config import TrainConfig
from training.closed_form_head import fit_head
from training.data import TrainingList, Unreadable, epoch_flips, epoch_order, read_training_list
from training.epoch_end import check_held_out, finish_epoch
from training.examples import head_examples, put
from training.finite import check_finite, check_weights
from training.log import Log
from training.start import start_network
from training.sync_norm import with_shared_statistics


def main(config: Annotated[TrainConfig, tyro.conf.arg(name="")]) -> int:
    """Trains a quality network on pseudo-labels.

    Args:
        config: the settings.
    """
    for rule, holds in config.rules().items():
        if not holds:
            raise UserError(f"train_config: {rule}; got {getattr(config, rule.split()[0])}")
    with join_process_group(config.device) as world, ExitStack() as alone:
        return train(config, world, alone)


def train(config: TrainConfig, world: ProcessGroup, alone: ExitStack) -> int:
    """The whole of it: the data, the network, the loop. Returns an exit code.

    `alone` keeps other trainings out of the folder until this one ends.
    """
    compute = choose_compute(config.device, config.precision)
    if compute.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    data = read_training_list(
        config.img_list,
        config.val_identities,
        config.id_key_index,
        config.seed,
        config.max_per_identity,
    )
    check_held_out(config, data, world)
    # A small list is one batch; else the images over a multiple of the batch sit out one epoch.
    images = data.epoch_images
    local = min(config.batch_size, images // world.size)
    if local < 2:
        raise UserError(f"{config.img_list}: {images} images to learn from are too few")
    step_size = local * world.size
    steps = images // step_size
    total = steps * config.epochs

    start = start_network(config.finetuning_model, config.backbone, config.dropout)
    network, started = start.network, start.text
    if config.fit_head:
        add_floor(quality_head(network))
    architecture = describe_network(start.backbone, network)  # for the .json of each checkpoint
    if config.sync_bn and world.size > 1:
        network = with_shared_statistics(network, compute.device)
    model: nn.Module = FaceModel(network).to(memory_format=torch.channels_last)
    model.to(compute.device)
    optimiser = torch.optim.Adam(
        parameter_groups(network, config.lr, config.trunk_lr),
        config.lr,
        config.betas,
        config.eps,
        config.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype == torch.float16)
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimiser, list(config.milestones), config.lr_gamma
    )

    folder = config.checkpoints / config.checkpoints_name
    if world.first:
        alone.enter_context(lock_folder(folder))
    key = {**config.key(), "labels": data.table.sha256, "images a step": step_size}
    key["people held out"] = data.split_key()
    state: dict[str, Any] = {"epoch": 0, "step": 0, "best": -math.inf}
    resumed = read_resume(folder, key)
    at = -1 if resumed is None else resumed["state"]["epoch"] * steps + resumed["state"]["step"]
    if not world.agree(at):
        raise UserError(f"{folder}: not the same to every machine; it must be on shared storage")
    if resumed is not None:
        network.load_state_dict(resumed["network"])
        optimiser.load_state_dict(resumed["optimiser"])
        schedule.load_state_dict(resumed["schedule"])
        if resumed["scaler"]:  # empty where the run began in another precision than fp16
            scaler.load_state_dict(resumed["scaler"])
        state = resumed["state"]
        if state.get("judged") != config.judged():
            state["best"] = -math.inf  # of another measure: nothing to compare with
        started = f"{folder}: epoch {state['epoch'] + 1}, step {state['step']}"
        if state["epoch"] >= config.epochs:
            started = f"{folder}: finished before; nothing to do"
    state["judged"] = config.judged()
    log = Log(folder, world, state["epoch"], state["epoch"] * steps + state["step"])
    if world.first:
        describe(config, start.backbone, data, folder, started, compute, step_size)
    running: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    if world.size > 1:
        on_gpu = [compute.device] if compute.device.type == "cuda" else None
        running = nn.parallel.DistributedDataParallel(running, device_ids=on_gpu)

    def save() -> None:
        if world.first:
            content = {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "state": state,
            }
            save_resume(folder, key, content)

    unreadable = Unreadable(data, config.max_unreadable)

    def finish() -> None:
        finish_epoch(
            config,
            data,
            unreadable,
            model,
            network,
            architecture,
            compute,
            world,
            folder,
            state,
            steps,
            log,
        )
        save()

    if config.fit_head and resumed is None:
        fit_head(model, head_examples(config, data, compute, world, unreadable), compute, world)
        lost = unreadable.together(world)
        log.say(f"head fitted to {len(data.train) - lost} images")
        finish()
    stop = StopRequest()
    saved = time.monotonic()
    for epoch in range(state["epoch"], config.epochs):
        unreadable.begin_epoch()
        order = epoch_order(data, config.seed, epoch, config.balanced)[: steps * step_size]
        # Every global batch is the same whatever the number of processes; each takes its slice.
        own = order.reshape(steps, world.size, local)[state["step"] :, world.rank].ravel()
        flips = epoch_flips(len(data.table), config.seed, epoch) & config.flip
        model.train()
        if config.trunk_lr == 0:
            freeze_statistics(network)
        shown, since = state["step"], time.monotonic()
        bar = log.bar(steps, state["step"], f"epoch {epoch + 1}/{config.epochs}")
        previous: tuple[Callable[[], Any], Batch] | None = None
        for batch in batches(data.table, own, local, config.num_workers):
            unreadable.check(batch)
            faces, labels = put(batch, data, flips, compute)
            # Dropout's numbers depend on where we are, not on how we came here: a resumed run
            # draws what an uninterrupted one would have drawn.
            torch.manual_seed(_step_seed(config.seed, epoch, state["step"], world.rank))
            with compute.autocast():
                scores = running(faces)[:, 0]  # (B,)
            loss = point_losses(config, scores, labels).sum() / local
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if config.clip_norm:
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
            scaler.step(optimiser)
            scaler.update()
            state["step"] += 1
            if previous is not None:
                check_finite(*previous, state, data, folder)  # one step late: the GPU goes on
            previous = compute.fetch(loss.detach()), batch
            bar.update()
            if state["step"] % config.display == 0 or state["step"] == steps:
                mean = world.mean(loss.detach())
                rate = (state["step"] - shown) * step_size / (time.monotonic() - since)
                shown, since = state["step"], time.monotonic()
                done = epoch * steps + state["step"]
                bar.set_postfix_str(f"loss {mean:.3f}, {rate:.0f} images/s")
                log.write(
                    epoch=epoch + 1,
                    step=done,
                    loss=mean,
                    lr=float(schedule.get_last_lr()[0]),
                    images_per_s=rate,
                    seconds_left=(total - done) * step_size / rate,
                )
            # Asking costs a message, and a GPU its lead; torchrun waits half a minute for a stop.
            every = min(config.display, 10) if compute.device.type == "cuda" else 1
            if state["step"] % every == 0 or state["step"] == steps:
                late = time.monotonic() - saved > 60 * config.save_minutes
                stopping = world.any(stop.asked)
                if stopping or world.any(late):
                    check_finite(*previous, state, data, folder)
                    check_weights(network, batch, state, data, folder)
                    save()
                    saved = time.monotonic()
                if stopping:
                    bar.close()
                    return _stopped(world)
        bar.close()
        if previous is not None:
            check_finite(*previous, state, data, folder)
            check_weights(network, previous[1], state, data, folder)
        unreadable.together(world)
        schedule.step()
        state["epoch"], state["step"] = epoch + 1, 0
        finish()
        saved = time.monotonic()
    log.close()
    if world.first:
        print(f"{folder}: trained {config.epochs} epoch{'s' * (config.epochs != 1)}")
    return EXIT_DONE


def point_losses(config: TrainConfig, scores: Tensor, labels: Tensor) -> Tensor:
    """The loss of each image: (B,) scores and (B,) labels, both of 0..100 -> (B,)."""
    if config.loss == "huber":
        # SmoothL1: the square divided by 2 beta inside beta, straight outside (as published).
        return functional.smooth_l1_loss(scores, labels, reduction="none", beta=config.huber_beta)
    if config.loss == "l1":
        return (scores - labels).abs()
    return (scores - labels).square()


def describe(
    config: TrainConfig,
    backbone: str,
    data: TrainingList,
    folder: Path,
    started: str,
    compute: Compute,
    step_size: int,
) -> None:
    """Prints what is about to happen, and leaves it in the folder."""
    each = f" ({data.epoch_images} an epoch)" if data.most else ""
    print(
        f"{backbone} on {compute}: {len(data.train)} images to learn from{each}, "
        f"{len(data.held_out)} held out; {step_size} images a step in all"
    )
    print(f"start: {started}")
    write_json(folder / "config.json", {"command": sys.argv, "settings": config.plain()})
    data.write_held_out(folder / "held_out.txt")


def _stopped(world: ProcessGroup) -> int:
    if world.first:
        fail("stopped and saved; the same command goes on from here")
    return EXIT_INTERRUPTED


def _step_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


if __name__ == "__main__":
    run_script(main)
