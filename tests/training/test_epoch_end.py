"""What ends an epoch: measures of held-out faces whose pairs do and do not suffice for an AOC."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from common.device import Compute
from common.distributed import ProcessGroup
from evaluation.edc.areas import areas
from evaluation.held_out import held_out_curve
from models.networks import FaceModel
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of, write_json
from train_config import TrainConfig
from training.data import TrainingList, Unreadable, read_training_list
from training.epoch_end import EpochEnd, check_held_out
from training.log import Log
from training.plan import Plan, Position

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Scores = npt.NDArray[np.float32]
COMPUTE = Compute(torch.device("cpu"), torch.float32)
ONE = ProcessGroup(0, 1)


@pytest.fixture
def settings(tmp_path: Path) -> TrainConfig:
    """16 people of 10 pictures, half of them held out; better labels lie nearer to their own."""
    rng = np.random.default_rng(1)
    labels, people = rng.uniform(0, 100, 160), np.repeat(np.arange(16), 10)
    paths = [f"faces/{row}.png" for row in range(160)]
    for name, values in (("labels.txt", labels.tolist()), ("DATA.labelpath", people.tolist())):
        lines = [f"{path}\t{value}\n" for path, value in zip(paths, values, strict=True)]
        (tmp_path / name).write_text("".join(lines))
    noise = rng.normal(size=(160, 16)) * (1.5 - labels[:, None] / 80)
    np.save(tmp_path / "features.npy", 2 * np.eye(16)[people] + noise)
    return TrainConfig(
        img_list=tmp_path / "labels.txt",
        checkpoints=tmp_path,
        val_identities=0.5,
        feats=tmp_path / "features.npy",
        val_fmr=0.4,
        best_by="aoc",
    )


@pytest.fixture
def data(settings: TrainConfig) -> TrainingList:
    return read_training_list(settings)


@pytest.fixture
def end_epoch(
    settings: TrainConfig, data: TrainingList, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Scores], str]:
    """Ends an epoch in which the held-out faces score so; returns the sha256 of best.pth then."""
    network = nn.Linear(3, 1)
    folder, position = settings.checkpoints, Position()
    log = Log(folder, ONE, Plan(2, 1, 5, 9), position)
    epoch_end = EpochEnd(settings, COMPUTE, Unreadable(data, 1.0), log)

    def end(scores: Scores) -> str:
        monkeypatch.setattr(EpochEnd, "scores", lambda *arguments: scores)
        position.epoch += 1
        nn.init.constant_(network.weight, position.epoch)  # another network each epoch
        epoch_end.finish(FaceModel(network), {}, position)
        assert (folder / f"net_{position.epoch}epoch.pth").exists()
        return sha256_of(folder / "best.pth")

    return end


def test_scores_that_leave_too_few_pairs_cost_nothing_but_the_aoc(
    settings: TrainConfig,
    data: TrainingList,
    end_epoch: Callable[[Scores], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = data.table.values[data.held_out].astype(np.float32)
    people = data.identities[data.held_out]
    one_person = labels + 100 * (people == people[0])  # the best tenth: no pair of two people
    first = end_epoch(one_person)
    assert "epoch 1: no AOC (held-out faces: too few impostor pairs for FMR 0.4" in (
        capsys.readouterr().out
    )
    about = json.loads((settings.checkpoints / "net_1epoch.json").read_text())
    assert "aoc" not in about["training"] and about["calibration"]["faces"] == len(labels)

    second = end_epoch(labels)  # any AOC is better than none
    assert second != first
    assert end_epoch(one_person) == second
    worse = labels + np.random.default_rng(0).normal(0, 60, len(labels)).astype(np.float32)
    assert end_epoch(worse) == second


def test_an_aoc_from_few_errors_says_how_many(
    settings: TrainConfig,
    data: TrainingList,
    end_epoch: Callable[[Scores], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert settings.feats is not None
    labels = data.table.values[data.held_out].astype(np.float32)
    features = np.load(settings.feats) + 1.2 * np.eye(16)[np.repeat(np.arange(16), 10)]
    np.save(settings.feats, features)  # closer to their people than those above
    curve = held_out_curve(
        labels, features[data.held_out], data.identities[data.held_out], settings.val_fmr
    )
    assert 0 < curve.errors[0] < 30
    end_epoch(labels)
    assert f" (AOC from only {curve.errors[0]} errors)\n" in capsys.readouterr().out
    about = json.loads((settings.checkpoints / "net_1epoch.json").read_text())
    assert about["training"]["aoc_errors"] == curve.errors[0]


def test_held_out_faces_that_cannot_serve_are_refused_at_once(
    settings: TrainConfig, data: TrainingList, capsys: pytest.CaptureFixture[str]
) -> None:
    check_held_out(settings, data)
    assert "that its rows belong to" in capsys.readouterr().err
    few = TrainConfig(**{**vars(settings), "val_fmr": 1e-4})
    with pytest.raises(UserError, match=r"too few .* for FMR 0.0001; .* hold out more"):
        check_held_out(few, data)
    people = np.repeat(np.arange(16), 10)
    np.save(settings.img_list.parent / "features.npy", np.eye(16)[people])
    with pytest.raises(UserError, match=r"no genuine error at FMR 0.4"):
        check_held_out(settings, data)
    beside = settings.img_list.parent / "features.json"
    write_json(beside, {"list": {"sha256": "another"}, "rows_done": 160})
    with pytest.raises(UserError, match="belongs to another list"):
        check_held_out(settings, data)


def test_held_out_images_that_cannot_be_read_are_reported_once(
    settings: TrainConfig, data: TrainingList, capsys: pytest.CaptureFixture[str]
) -> None:
    unreadable = Unreadable(data, 0.0)  # none of those to learn from may be
    log = Log(settings.checkpoints, ONE, Plan(2, 1, 5, 9), Position())
    epoch_end = EpochEnd(settings, COMPUTE, unreadable, log)
    for _ in range(2):
        scores = epoch_end.scores(nn.Flatten(), data.held_out)
        assert np.isnan(scores).all()
    said = capsys.readouterr().err
    assert said.count("No such file or directory; skipped") == len(data.held_out)
    assert unreadable.total_over_processes(ONE) == 0


def test_without_a_measure_the_last_network_is_the_best(
    settings: TrainConfig, end_epoch: Callable[[Scores], str]
) -> None:
    nothing = np.full(80, np.nan, np.float32)
    assert len({end_epoch(nothing) for _ in range(2)}) == 2


def test_held_out_faces_are_judged_by_what_quality_is_for(tmp_path: Path, run_script: Run) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "faces").mkdir()
    labels, identities = rng.uniform(0, 100, 160), np.repeat(np.arange(16), 10)
    for row, label in enumerate(labels):
        face = np.full((112, 112, 3), label * 2, np.uint8)
        cv2.imwrite(str(tmp_path / f"faces/{row}.png"), face)
    paths = [f"faces/{row}.png" for row in range(160)]
    text = "".join(f"{path}\t{label}\n" for path, label in zip(paths, labels, strict=True))
    (tmp_path / "labels.txt").write_text(text)
    listed = [f"{path}\t{i}\n" for path, i in zip(paths, identities, strict=True)]
    (tmp_path / "DATA.labelpath").write_text("".join(reversed(listed)))  # another order
    noise = rng.normal(size=(160, 16)) * (1.5 - labels[:, None] / 80)
    np.save(tmp_path / "features.npy", (2 * np.eye(16)[identities] + noise)[::-1])
    arguments = ["--backbone", "MFN", "--device", "cpu", "--img-list", "labels.txt"]
    arguments += ["--epochs", "1", "--batch-size", "20", "--trunk-lr", "0"]
    arguments += ["--val-identities", "0.5", "--feats", "features.npy", "--best-by", "aoc"]
    done = run_script("train.py", *arguments, "--val-fmr", "0.4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "checkpoints/sdd_fiqa/best.json").read_text())
    assert about["calibration"]["fmr"] == 0.4
    assert all(0 <= entry["fnmr"] < 1 for entry in about["calibration"]["thresholds"])
    lines = (tmp_path / "checkpoints/sdd_fiqa/stats.jsonl").read_text().splitlines()
    found = [json.loads(line).get("aoc") for line in lines]
    assert [aoc for aoc in found if aoc is not None] == [about["training"]["aoc"]]
    done = run_script(
        "train.py", *arguments, "--val-fmr", "1e-4", "--checkpoints-name", "few", cwd=tmp_path
    )
    assert done.returncode == 1 and "too few impostor pairs (2,800) for FMR 0.0001" in done.stderr
    assert "hold out more" in done.stderr
    assert not (tmp_path / "checkpoints/few").exists()  # said before an epoch is spent

    # The labels themselves are a better score than noise is.
    unit = np.eye(16)[identities] * 2 + noise
    aoc = [
        areas(held_out_curve(score, unit, identities, 0.1))["aoc"]
        for score in (labels, rng.normal(size=160))
    ]
    assert aoc[0] > aoc[1] + 0.1
