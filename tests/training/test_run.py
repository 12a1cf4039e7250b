"""The parts of a run: plan, position, log, finite check, saves and losses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import training.run
from common.device import Compute
from common.distributed import ProcessGroup
from models.checkpoints import read_resume, save_resume
from sdd_fiqa.errors import UserError
from train import point_losses
from train_config import TrainConfig
from training.data import read_training_list
from training.epoch_end import FiniteCheck
from training.log import EpochProgress, Log
from training.plan import Plan, Position
from training.run import Learner, TrainingRun

ONE = ProcessGroup(0, 1)
COMPUTE = Compute(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("images", "batch_size", "processes", "local", "steps"),
    [(100, 8, 1, 8, 12), (100, 4, 2, 4, 12), (10, 128, 2, 5, 1), (101, 25, 4, 25, 1)],
)
def test_a_plan_uses_whole_batches_only(
    images: int, batch_size: int, processes: int, local: int, steps: int
) -> None:
    plan = Plan.of(images, batch_size, processes, epochs=3)
    assert (plan.local_batch, plan.steps) == (local, steps)
    assert plan.global_batch * plan.steps <= images < plan.global_batch * (plan.steps + 1)
    assert plan.steps_done(Position(2, 1)) == 2 * steps + 1


def test_a_plan_needs_two_images_a_process() -> None:
    assert Plan.of(4, 9, 2, 1).local_batch == 2
    with pytest.raises(UserError, match=r"too few training images .3.; each process needs 2"):
        Plan.of(3, 9, 2, 1)


def test_processes_share_each_global_batch() -> None:
    """Together the slices of a step are its global batch, the same for any number of processes."""
    order = np.random.default_rng(0).permutation(50)
    one = Plan.of(50, 12, 1, 1)
    whole = one.own_rows(order, 0).reshape(4, 12)
    assert np.array_equal(whole.ravel(), order[:48])
    for processes in (2, 3, 4):
        plan = Plan.of(50, 12 // processes, processes, 1)
        parts = [plan.own_rows(order, rank).reshape(4, -1) for rank in range(processes)]
        assert np.array_equal(np.concatenate(parts, 1), whole)
        resumed = plan.own_rows(order, 1, first_step=3)
        assert np.array_equal(resumed, parts[1][3:].ravel())
        assert len(plan.own_rows(order, 0, first_step=4)) == 0


def test_a_loss_that_is_not_finite_is_named_one_step_later(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i}.png\t1\n" for i in range(9)))
    data = read_training_list(TrainConfig(img_list=path, val_identities=0))
    check = FiniteCheck(data, tmp_path, COMPUTE)
    network = nn.Linear(2, 1)
    check.check(network)  # nothing to check yet
    check.after_step(torch.tensor(1.0), np.arange(3), Position(1, 1))
    check.after_step(torch.tensor(math.inf), np.arange(3, 6), Position(1, 2))
    with pytest.raises(UserError, match=r"the loss is inf after epoch 2, step 2 .*r/3.png, r/4"):
        check.after_step(torch.tensor(1.0), np.arange(3), Position(1, 3))
    check = FiniteCheck(check.data, tmp_path, COMPUTE)
    check.after_step(torch.tensor(1.0), np.arange(3), Position(0, 4))
    check.check(network)
    nn.init.constant_(network.bias, math.nan)
    with pytest.raises(UserError, match=r"bias is no longer finite after epoch 1, step 4") as error:
        check.check(network)
    assert "last good save" not in str(error.value)
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(UserError, match=f"the last good save is in {tmp_path}; restart with"):
        check.check(network)


def test_a_line_every_few_steps_and_at_the_end(tmp_path: Path) -> None:
    log = Log(tmp_path, ONE, Plan(2, 1, 7, 2), Position(0, 1))
    position = Position(0, 1)
    progress = EpochProgress(log, position, display=3)
    for step in range(2, 8):
        position.step = step
        progress.after_step(position, torch.tensor(float(step)), 0.5)
    progress.bar.close()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").open()]
    assert [(line["epoch"], line["step"], line["loss"]) for line in lines] == [
        *((1, 3, 3.0), (1, 6, 6.0), (1, 7, 7.0))
    ]
    assert all(line["lr"] == 0.5 and line["images_per_s"] > 0 for line in lines)
    for line in lines:  # 14 steps of 2 images
        left = 2 * (14 - line["step"]) / line["images_per_s"]
        assert line["seconds_left"] == pytest.approx(left)


def test_a_resumed_log_drops_later_lines(tmp_path: Path) -> None:
    plan = Plan(2, 1, 4, 3)
    lines = [{"epoch": 1, "step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    lines += [{"epoch": 1, "step": 4, "mae": 2.0}, {"epoch": 2, "step": 5, "loss": 1.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for position, kept in ((Position(0, 4), 4), (Position(1, 0), 5), (Position(1, 1), 6)):
        (tmp_path / "stats.jsonl").write_text(text)
        Log(tmp_path, ONE, plan, position).close()
        assert (tmp_path / "stats.jsonl").read_text().count("\n") == kept


def test_invalid_log_lines_are_dropped(tmp_path: Path) -> None:
    good = {"epoch": 1, "step": 2, "loss": 3.0}
    (tmp_path / "stats.jsonl").write_bytes(json.dumps(good).encode() + b"\n[1]\n\xff\n")
    Log(tmp_path, ONE, Plan(2, 1, 2, 9), Position(1)).close()
    assert [json.loads(line) for line in (tmp_path / "stats.jsonl").open()] == [good]


def test_a_damaged_save_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save_resume(tmp_path, {"seed": 0}, {"state": {"step": step}, "w": torch.ones(999)})
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for damage in (bytes(content), bytes(content[: len(content) // 2]), b""):
        last.write_bytes(damage)
        found = read_resume(tmp_path, {"seed": 0})
        assert found is not None and found["state"]["step"] == 1
        assert "last.ckpt: is damaged; skipped" in capsys.readouterr().err
    last.unlink()
    found = read_resume(tmp_path, {"seed": 0})
    assert found is not None and found["state"]["step"] == 1
    with pytest.raises(UserError, match="other settings: seed was 0, is now 1"):
        read_resume(tmp_path, {"seed": 1})
    assert read_resume(tmp_path / "none", {"seed": 1}) is None


@pytest.fixture
def settings(tmp_path: Path) -> TrainConfig:
    (tmp_path / "a.png").touch()  # one is enough, as no test reads them
    others = "".join(f"r/b.png\t{8 + row}\n" for row in range(11))
    (tmp_path / "labels.txt").write_text(f"{tmp_path}/a.png\t9\n" + others)
    return TrainConfig(
        img_list=tmp_path / "labels.txt",
        checkpoints=tmp_path,
        backbone="MFN",
        device="cpu",
        precision="fp32",
        val_identities=0.0,
        batch_size=4,
        milestones=(1, 2),
    )


def test_a_run_says_that_images_are_not_aligned(
    settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        training.run, "doubt_alignment", lambda table: f"{len(table)} look like photos"
    )
    TrainingRun(settings, ONE)
    assert "note: 12 look like photos\n" in capsys.readouterr().err


def test_a_run_is_saved_and_resumed_where_it_was(settings: TrainConfig) -> None:
    with TrainingRun(settings, ONE).opened() as run:
        assert not run.resumed and run.position == Position()
        run.position.epoch, run.position.step, run.position.best = 1, 2, 0.7
        run.learner.optimiser.step()
        run.learner.schedule.step()
        run._save()
        saved = run.learner.state_dict()
    with TrainingRun(settings, ONE).opened() as run:
        assert run.resumed and run.position == Position(1, 2, 0.7)
        for key, value in run.learner.network.state_dict().items():
            assert torch.equal(value, saved["network"][key]), key
        assert run.learner.schedule.get_last_lr() == [1e-5, 1e-5]
    by_error = TrainConfig(**{**vars(settings), "best_by": "mae"})
    with TrainingRun(by_error, ONE).opened() as run:
        # -inf: a rank correlation of .7 is no lower bound for minus an error of 40 points.
        assert run.position == Position(1, 2)
    other = TrainConfig(**{**vars(settings), "seed": 1})
    with (
        pytest.raises(UserError, match="other settings: seed was 0, is now 1"),
        TrainingRun(other, ONE).opened(),
    ):
        pass


def test_a_save_has_the_keys_of_every_release(settings: TrainConfig) -> None:
    """A last.ckpt of an older release must resume; so its keys never change."""
    with TrainingRun(settings, ONE).opened() as run:
        run._save()
        saved = read_resume(run.folder, run._resume_key())
    assert saved is not None
    assert set(saved) == {"key", "network", "optimiser", "schedule", "scaler", "state"}
    assert set(saved["state"]) == {"epoch", "step", "best", "judged"}
    assert {"labels", "images a step", "people held out", "seed", "lr"} <= set(saved["key"])


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("state", {"epoch": -1}),
        ("state", {"epoch": 10**30}),
        ("state", {"step": 4}),
        ("state", {"step": None}),
        ("state", {"best": math.nan}),
        ("state", {"epoch": 1.5}),
        ("optimiser", {"param_groups": []}),
        ("optimiser", {"state": {0: {"step": torch.ones(1), "exp_avg": torch.ones(1)}}}),
        ("optimiser", {"state": {0: dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.ones(1))}}),
        ("network", {"more": torch.ones(1)}),
    ],
)
def test_a_save_that_was_changed_by_hand_is_one_line(
    settings: TrainConfig, part: str, change: dict[str, Any]
) -> None:
    with TrainingRun(settings, ONE).opened() as run:
        state = {"epoch": 1, "step": 2, "best": 0.7, "judged": settings.best_metric_key()}
        saved = {**run.learner.state_dict(), "state": state}
        saved[part].update(change)
        save_resume(run.folder, run._resume_key(), saved)
    with (
        pytest.raises(UserError, match="its save does not fit this training"),
        TrainingRun(settings, ONE).opened(),
    ):
        pass


def test_the_rate_falls_at_the_milestones(settings: TrainConfig) -> None:
    slow_trunk = TrainConfig(**{**vars(settings), "trunk_lr": 0.5, "lr": 1.0})
    learner = Learner(slow_trunk, COMPUTE, ONE)
    rates = []
    for _ in range(4):
        rates.append([float(rate) for rate in learner.schedule.get_last_lr()])
        learner.optimiser.step()
        learner.schedule.step()
    assert np.allclose(rates, [[1, 0.5], [0.1, 0.05], [0.01, 0.005], [0.01, 0.005]])


def test_a_folder_has_one_run_at_a_time(settings: TrainConfig) -> None:
    with (
        TrainingRun(settings, ONE).opened(),
        pytest.raises(UserError, match="another run"),
        TrainingRun(settings, ONE).opened(),
    ):
        pass
    with TrainingRun(settings, ONE).opened():  # the first one has ended
        pass


def test_losses_are_their_formulas() -> None:
    scores, labels = torch.tensor([0.0, 10.0, 50.5]), torch.tensor([0.5, 14.0, 50.5])
    assert point_losses(TrainConfig(), scores, labels).tolist() == [0.125, 3.5, 0.0]
    assert point_losses(TrainConfig(huber_beta=8), scores, labels)[1].item() == 1.0
    assert point_losses(TrainConfig(loss="l1"), scores, labels).tolist() == [0.5, 4.0, 0.0]
    assert point_losses(TrainConfig(loss="l2"), scores, labels).tolist() == [0.25, 16.0, 0.0]
