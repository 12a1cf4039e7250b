"""train.py as a user runs it, and its parts against torch and against laws."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import tyro
from torch import nn

from dataset.command_line import UserError
from dataset.training_list import epoch_flips, epoch_order, read_training_list
from evaluation.areas import areas
from evaluation.calibration import held_out_curve
from models.checkpoints import read_resume, save_resume
from models.prelu import PReLU
from models.sync_norm import with_shared_statistics
from train import main, point_losses
from train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    *("--backbone", "MFN", "--precision", "fp32", "--device", "cpu", "--dropout", "0"),
    *("--epochs", "2", "--batch-size", "4", "--display", "1", "--num-workers", "1"),
]


def start(folder: Path, *arguments: str, processes: int = 1) -> subprocess.Popen[str]:
    """Starts train.py in a folder; stdout and stderr are kept apart."""
    launcher = [sys.executable]
    if processes > 1:
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += run
    return subprocess.Popen(
        [*launcher, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, processes: int = 1) -> tuple[int, str, str]:
    """Runs train.py to its end: exit code, stdout, stderr."""
    process = start(folder, *arguments, processes=processes)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def stats(folder: Path, name: str = "sdd_fiqa") -> list[dict[str, Any]]:
    path = folder / "checkpoints" / name / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def network(folder: Path, name: str, file: str) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / name / file
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return loaded


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 identities x 4 faces whose brightness is their label, listed and labelled."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    labels, listed = [], []
    for identity in range(6):
        (folder / f"faces/p{identity}").mkdir(parents=True)
        for number in range(4):
            label = float(rng.uniform(5, 95))
            face = rng.normal(label * 2, 20, (112, 112, 3)).clip(0, 255).astype(np.uint8)
            path = f"faces/p{identity}/{number}.png"
            cv2.imwrite(str(folder / path), face)
            labels.append(f"{path}\t{label:.4f}\n")
            listed.append(f"{path}\t{identity}\n")
    (folder / "annotations/quality_pseudo_labels.txt").write_text("".join(labels))
    (folder / "annotations/DATA.labelpath").write_text("".join(listed))
    np.save(folder / "features.npy", rng.normal(size=(24, 8)))
    return folder


@pytest.fixture(scope="module")
def plain(faces: Path) -> Path:
    """An uninterrupted run of one process."""
    code, out, err = run(faces, *TINY, "--val-identities", "0.3", "--checkpoints-name", "plain")
    assert code == 0, err
    assert "MFN on cpu fp32: 16 images to learn from, 8 held out; 4 images a step in all" in out
    assert "start: random weights" in out
    return faces


def test_a_run_leaves_what_the_design_says(plain: Path) -> None:
    folder = plain / "checkpoints/plain"
    names = {"last.ckpt", "previous.ckpt", "best.pth", "best.json", "stats.jsonl", "config.json"}
    names |= {"net_1epoch.pth", "net_1epoch.json", "net_2epoch.pth", "net_2epoch.json"}
    found = {path.name for path in folder.iterdir()}
    assert names | {"held_out.txt"} <= found
    assert any(name.startswith("events.out") for name in found)
    about = json.loads((folder / "best.json").read_text())
    assert about["architecture"] == "MFN"
    assert len(about["calibration"]["percentiles"]) == 101
    lines = stats(plain, "plain")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert {"epoch", "lr", "images_per_s", "seconds_left"} <= steps[0].keys()
    assert [line["epoch"] for line in lines if "mae" in line] == [1, 2]
    held_out = (folder / "held_out.txt").read_text().splitlines()
    assert len({line.split("/")[1] for line in held_out}) == 2 and len(held_out) == 8


def test_run_again_it_does_nothing(plain: Path) -> None:
    before = (plain / "checkpoints/plain/net_2epoch.pth").stat().st_mtime_ns
    code, out, _ = run(plain, *TINY, "--val-identities", "0.3", "--checkpoints-name", "plain")
    assert code == 0 and "epoch 3, step 0" in out
    assert (plain / "checkpoints/plain/net_2epoch.pth").stat().st_mtime_ns == before


def test_killed_at_three_moments_it_ends_the_same(plain: Path) -> None:
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "killed"]
    for lines in (2, 5, 8):
        process = start(plain, *arguments, "--save-minutes", "1e-9")
        deadline = time.monotonic() + 120
        while len(stats(plain, "killed")) < lines and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, out, err = run(plain, *arguments)
    assert code == 0, err
    assert "start: checkpoints/killed: epoch" in out
    for file in ("net_1epoch.pth", "net_2epoch.pth"):
        expected, found = network(plain, "plain", file), network(plain, "killed", file)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    timeless = [
        [
            {k: v for k, v in line.items() if k in ("step", "loss", "mae")}
            for line in stats(plain, n)
        ]
        for n in ("plain", "killed")
    ]
    assert timeless[0] == timeless[1]


def test_two_processes_draw_the_curve_of_one(plain: Path) -> None:
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "two"]
    code, out, err = run(plain, *arguments, "--batch-size", "2", "--sync-bn", processes=2)
    assert code == 0, err
    assert "4 images a step in all" in out
    for expected, found in zip(stats(plain, "plain"), stats(plain, "two"), strict=True):
        assert expected["step"] == found["step"]
        for measure in ("loss", "mae"):
            if measure in expected:
                assert found[measure] == pytest.approx(expected[measure], rel=2e-3, abs=2e-3)


def test_two_nodes_train_together(plain: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [*TINY, "--epochs", "1", "--val-identities", "0.3", "--checkpoints-name", "nodes"]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"),
                *("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"),
                *("--rdzv-endpoint", f"127.0.0.1:{port}", str(ROOT / "train.py"), *arguments),
                *("--batch-size", "2"),
            ],
            cwd=plain,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ended
    assert sum("4 images a step in all" in out for out, _ in ended) == 1
    assert [line["epoch"] for line in stats(plain, "nodes") if "mae" in line] == [1]


def test_ctrl_c_saves_and_the_same_command_goes_on(faces: Path) -> None:
    arguments = [*TINY, "--epochs", "40", "--val-identities", "0", "--checkpoints-name", "stopped"]
    process = start(faces, *arguments)
    deadline = time.monotonic() + 120
    while len(stats(faces, "stopped")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped and saved; the same command goes on" in err and "Traceback" not in err
    saved = torch.load(faces / "checkpoints/stopped/last.ckpt", weights_only=True)["state"]
    assert 6 * saved["epoch"] + saved["step"] >= 3


def test_it_learns_brightness_with_every_option(faces: Path) -> None:
    arguments = ["--backbone", "MFN", "--epochs", "12", "--batch-size", "8", "--lr", "2e-3"]
    arguments += ["--device", "cpu", "--val-identities", "0.3", "--checkpoints-name", "options"]
    arguments += ["--balanced", "--clip-norm", "50", "--loss", "l1", "--milestones", "9", "11"]
    code, out, err = run(faces, *arguments)
    assert code == 0, err
    losses = [line["loss"] for line in stats(faces, "options") if "loss" in line]
    assert np.mean(losses[-2:]) < 0.5 * losses[0]

    frozen = ["--trunk-lr", "0", "--checkpoints-name", "frozen", "--epochs", "1"]
    frozen += ["--finetuning-model", "checkpoints/options/best.pth"]
    code, out, err = run(faces, *arguments, *frozen)
    assert code == 0, err
    assert "tensors loaded; nothing new" in out
    before = network(faces, "options", "best.pth")
    after = network(faces, "frozen", "net_1epoch.pth")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"quality.1.weight", "quality.3.weight", "quality.3.bias"}


def test_held_out_faces_are_judged_by_what_quality_is_for(tmp_path: Path) -> None:
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
    code, _, err = run(tmp_path, *arguments, "--val-fmr", "0.4")
    assert code == 0, err
    about = json.loads((tmp_path / "checkpoints/sdd_fiqa/best.json").read_text())
    assert about["calibration"]["fmr"] == 0.4
    assert all(0 <= entry["fnmr"] < 1 for entry in about["calibration"]["thresholds"])
    assert [line["aoc"] for line in stats(tmp_path) if "aoc" in line] == [about["training"]["aoc"]]
    code, _, err = run(tmp_path, *arguments, "--val-fmr", "1e-4", "--checkpoints-name", "few")
    assert code == 1 and "FMR 0.0001 cannot be shown" in err and "hold out more" in err

    # The labels themselves are a better score than noise is.
    unit = np.eye(16)[identities] * 2 + noise
    aoc = [
        areas(held_out_curve(score, unit, identities, 0.1))["aoc"]
        for score in (labels, rng.normal(size=160))
    ]
    assert aoc[0] > aoc[1] + 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", "0"], "lr must be above 0; got 0.0"),
        (["--epochs", "0"], "epochs must be 1 or more"),
        (["--milestones", "5", "3"], "milestones must be epochs, in rising order"),
        (["--best-by", "aoc"], "best_by aoc needs feats"),
        (["--img-list", "nowhere.txt"], "nowhere.txt: does not exist"),
        (["--val-identities", "0.95"], "has 6 identities, too few to hold out 6"),
        (["--feats", "annotations/DATA.labelpath"], "is not a whole .npy array"),
        (["--finetuning-model", "annotations/DATA.labelpath"], "is no checkpoint of plain tensors"),
        (["--checkpoints-name", "plain", "--seed", "3"], "is of another training (seed 0, now 3)"),
    ],
)
def test_a_mistake_is_refused_with_its_rule(
    plain: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], message: str
) -> None:
    monkeypatch.chdir(plain)
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "mistake", *change]
    with pytest.raises(UserError, match=re.escape(message)):
        tyro.cli(main, args=arguments)


def test_a_loss_that_is_no_number_stops_with_its_batch(plain: Path) -> None:
    code, _, err = run(plain, *TINY, "--lr", "1e30", "--checkpoints-name", "boom")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(lines) == 1 and "Traceback" not in err
    assert "faces/p" in lines[0] and "last good save stands in checkpoints/boom" in lines[0]


def test_unreadable_images_are_named_and_stop_the_run_beyond_a_share(faces: Path) -> None:
    text = (faces / "annotations/quality_pseudo_labels.txt").read_text()
    (faces / "with_missing.txt").write_text("faces/gone.png\t50\n" + text)
    arguments = [*TINY, "--img-list", "with_missing.txt", "--val-identities", "0"]
    arguments += ["--epochs", "1", "--checkpoints-name", "missing", "--batch-size", "5"]
    code, _, err = run(faces, *arguments)
    assert code == 1
    assert "with_missing.txt:1: faces/gone.png: No such file or directory; skipped" in err
    assert "1 of 25 images cannot be read, more than --max-unreadable 0.01 allows" in err
    code, _, err = run(faces, *arguments, "--max-unreadable", "0.1")
    assert code == 0 and err.count("faces/gone.png") == 1


def test_labels_outside_their_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a/1.png\t5\na/2.png\t101\n")
    with pytest.raises(UserError, match=r"labels.txt:2: label 101 is outside 0..100"):
        read_training_list(path, 0, -2, 0)


def test_the_split_is_by_identity_and_seeded(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"r/{i % 10}/{i}.png\t{i}\n" for i in range(100)))
    data = read_training_list(path, 0.2, -2, seed=4)
    assert len(data.held_out) == 20 and len(data.train) == 80
    assert not set(data.identities[data.held_out]) & set(data.identities[data.train])
    again = read_training_list(path, 0.2, -2, seed=4)
    assert np.array_equal(again.held_out, data.held_out)
    others = [read_training_list(path, 0.2, -2, seed=s).held_out.tolist() for s in range(8)]
    assert any(rows != data.held_out.tolist() for rows in others)
    # A DATA.labelpath beside the labels decides, where it lists every path.
    (tmp_path / "DATA.labelpath").write_text(
        "".join(f"r/{i % 10}/{i}.png\t{i // 50}\n" for i in range(100))
    )
    data = read_training_list(path, 0.2, -2, seed=4)
    assert set(data.identities) == {0, 1} and data.listed is not None


def test_epochs_are_keyed_and_balance_is_even(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    labels = [1.0] * 900 + [99.0] * 100
    path.write_text("".join(f"r/0/{i}.png\t{label}\n" for i, label in enumerate(labels)))
    data = read_training_list(path, 0, -2, 0)
    first = epoch_order(data, 0, 0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, epoch_order(data, 0, 0))
    assert not np.array_equal(first, epoch_order(data, 0, 1))
    high = (epoch_order(data, 0, 0, balanced=True) >= 900).mean()
    assert high == pytest.approx(0.5, abs=0.06)  # four standard deviations of 1,000 draws
    assert 0.4 < epoch_flips(1000, 0, 0).mean() < 0.6


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
        assert "last.ckpt: is damaged; passed over" in capsys.readouterr().err
    last.unlink()
    found = read_resume(tmp_path, {"seed": 0})
    assert found is not None and found["state"]["step"] == 1
    with pytest.raises(UserError, match="another training"):
        read_resume(tmp_path, {"seed": 1})
    assert read_resume(tmp_path / "none", {"seed": 1}) is None


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (7, 5)])
def test_prelu_is_torchs(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = PReLU(5).double(), nn.PReLU(5).double()
    with torch.no_grad():
        ours.weight.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict())
    grad = torch.randn(shape, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    x[0] = 0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for module, at in zip((ours, theirs), inputs, strict=True):
        module(at).backward(grad)
    assert torch.equal(ours(inputs[0]), theirs(inputs[1]))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_shared_statistics_are_batch_norms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double()
    shared.load_state_dict(plain.state_dict())
    with_shared_statistics(shared)
    shared.double()
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for module in (plain, shared):
            module(x).square().sum().backward()
    finally:
        dist.destroy_process_group()
    for (name, ours), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name].to(value), value, rtol=1e-5, atol=1e-6)


def test_losses_are_their_formulas() -> None:
    scores, labels = torch.tensor([0.0, 10.0, 50.5]), torch.tensor([0.5, 14.0, 50.5])
    assert point_losses(TrainConfig(), scores, labels).tolist() == [0.125, 3.5, 0.0]
    assert point_losses(TrainConfig(huber_beta=8), scores, labels)[1].item() == 1.0
    assert point_losses(TrainConfig(loss="l1"), scores, labels).tolist() == [0.5, 4.0, 0.0]
    assert point_losses(TrainConfig(loss="l2"), scores, labels).tolist() == [0.25, 16.0, 0.0]
