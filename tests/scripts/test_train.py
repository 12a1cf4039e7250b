"""train.py as a user runs it: what it leaves, interrupted, on two processes, and its mistakes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import tyro

from common.device import Compute
from dataset.images import read_face
from models.quality import load_quality_model
from sdd_fiqa.errors import UserError
from train import main

TINY = [
    *("--backbone", "MFN", "--precision", "fp32", "--device", "cpu", "--dropout", "0"),
    *("--epochs", "2", "--batch-size", "4", "--display", "1", "--num-workers", "1"),
]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def train(run_script: Run) -> Run:
    """Runs train.py to its end."""
    return partial(run_script, "train.py")


def stats(folder: Path, name: str = "sdd_fiqa") -> list[dict[str, Any]]:
    path = folder / "checkpoints" / name / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def network(folder: Path, name: str, file: str) -> dict[str, Any]:
    path = folder / "checkpoints" / name / file
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
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
def plain(faces: Path, train: Run) -> Path:
    """An uninterrupted run of one process."""
    done = train(*TINY, "--val-identities", "0.3", "--checkpoints-name", "plain", cwd=faces)
    assert done.returncode == 0, done.stderr
    assert (
        "MFN on cpu fp32: 16 images to learn from, 8 held out; 4 images a step in all"
        in done.stdout
    )
    assert "start: random weights" in done.stdout
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


SIGNALLED = """
import os, signal
import train
from common.cli import run_script
from training.log import Log

write, left = Log.write, [int(os.environ["LINES"])]

def signalled(log, **values):
    write(log, **values)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))

Log.write = signalled
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run_script(train.main)
"""


@pytest.fixture(scope="module")
def signalled(faces: Path, run_script: Run) -> Run:
    """Runs train.py, which sends itself a signal when it has logged so many lines."""
    script = faces / "signalled.py"
    script.write_text(SIGNALLED)

    def run(lines: int, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {"LINES": str(lines), "SIGNAL": name}
        return run_script(script, *arguments, cwd=faces, env=env)

    return run


def test_killed_at_three_moments_it_ends_the_same(plain: Path, train: Run, signalled: Run) -> None:
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "killed"]
    for lines in (2, 3, 4):  # the lines of each run
        done = signalled(lines, "SIGKILL", *arguments, "--save-minutes", "1e-9")
        assert done.returncode == -signal.SIGKILL
    done = train(*arguments, cwd=plain)
    assert done.returncode == 0, done.stderr
    assert "start: checkpoints/killed: epoch" in done.stdout
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


def test_in_half_precision_the_loss_scale_is_kept_too(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without bf16; a run that began in another precision has no scale to keep."""
    monkeypatch.chdir(faces)
    monkeypatch.setattr("train.StopRequest", lambda: SimpleNamespace(asked=False))
    # A CPU's float16 takes minutes; the scale does not ask where the gradients come from.
    monkeypatch.setattr(Compute, "autocast", lambda _: torch.autocast("cpu", enabled=False))

    def run(name: str, epochs: int, dtype: torch.dtype) -> dict[str, Any]:
        compute = Compute(torch.device("cpu"), dtype)
        monkeypatch.setattr("training.run.choose_compute", lambda *_: compute)
        arguments = [*TINY, "--dropout", "0.5", "--clip-norm", "9", "--val-identities", "0.3"]
        arguments += ["--epochs", str(epochs), "--checkpoints-name", name]
        assert tyro.cli(main, args=arguments) == 0
        return network(faces, name, "last.ckpt")

    whole = run("half", 2, torch.float16)
    run("halves", 1, torch.float16)
    parts = run("halves", 2, torch.float16)
    assert whole["scaler"] == parts["scaler"] and whole["scaler"]["_growth_tracker"] <= 12
    for key, value in whole["network"].items():
        assert torch.equal(value, parts["network"][key]), key
    assert run("mixed", 1, torch.float32)["scaler"] == {}
    assert run("mixed", 2, torch.float16)["scaler"]["scale"] > 0


def test_two_processes_draw_the_curve_of_one(plain: Path, train: Run) -> None:
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "two"]
    done = train(*arguments, "--batch-size", "2", "--sync-bn", cwd=plain, processes=2)
    assert done.returncode == 0, done.stderr
    assert "4 images a step in all" in done.stdout
    for expected, found in zip(stats(plain, "plain"), stats(plain, "two"), strict=True):
        assert expected["step"] == found["step"]
        for measure in ("loss", "mae"):
            if measure in expected:
                assert found[measure] == pytest.approx(expected[measure], rel=2e-3, abs=2e-3)


def test_two_processes_draw_it_around_a_missing_image_too(faces: Path, train: Run) -> None:
    lines = (faces / "annotations/quality_pseudo_labels.txt").read_text().splitlines()
    lines[5] = "faces/p1/gone.png\t50"
    (faces / "missing.txt").write_text("\n".join(lines) + "\n")
    arguments = [*TINY, "--epochs", "1", "--val-identities", "0", "--img-list", "missing.txt"]
    arguments += ["--max-unreadable", "0.05", "--sync-bn", "--lr", "1e-5"]
    for name, processes, batch in (("miss1", 1, "12"), ("miss2", 2, "6")):
        more = ["--checkpoints-name", name, "--batch-size", batch]
        done = train(*arguments, *more, cwd=faces, processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("missing.txt:6: faces/p1/gone.png: ") == 1
    losses = [[line["loss"] for line in stats(faces, name)] for name in ("miss1", "miss2")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_fitted_head_is_a_model_and_a_start(faces: Path, train: Run) -> None:
    arguments = [*TINY, "--val-identities", "0.3", "--fit-head", "--epochs", "0"]
    for name, processes, batch in (("head", 1, "4"), ("head2", 2, "2")):
        done = train(
            *(*arguments, "--checkpoints-name", name, "--batch-size", batch),
            cwd=faces,
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
        assert "head fitted to 16 images" in done.stdout
    one, two = (network(faces, name, "best.pth") for name in ("head", "head2"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), rtol=1e-4, atol=1e-6), key
    (measured,) = stats(faces, "head")
    assert measured["epoch"] == measured["step"] == 0
    about = json.loads((faces / "checkpoints/head/best.json").read_text())
    assert about["training"]["mae"] == measured["mae"] and about["calibration"]
    # Run again, it has nothing left to do; with one more epoch it trains from the head.
    before = (faces / "checkpoints/head/net_0epoch.pth").stat().st_mtime_ns
    again = train(*arguments, "--checkpoints-name", "head", cwd=faces)
    assert again.returncode == 0 and "head fitted" not in again.stdout
    assert "finished before; nothing to do" in again.stdout
    assert (faces / "checkpoints/head/net_0epoch.pth").stat().st_mtime_ns == before
    on = train(*arguments[:-1], "1", "--checkpoints-name", "head", cwd=faces)
    assert on.returncode == 0, on.stderr
    assert "head fitted" not in on.stdout
    assert len([line for line in stats(faces, "head") if "loss" in line]) == 4


def test_two_nodes_train_together(plain: Path, train: Run) -> None:
    arguments = [*TINY, "--epochs", "1", "--val-identities", "0.3", "--checkpoints-name", "nodes"]
    alone = {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # of each node
    done = train(*arguments, "--batch-size", "2", cwd=plain, processes=2, env=alone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 images a step in all") == 1
    (measured,) = [line for line in stats(plain, "nodes") if "mae" in line]
    assert measured["epoch"] == 1
    # What is measured is the network that is saved, though each process has its own BatchNorms.
    folder = plain / "checkpoints/nodes"
    held_out = [line.split("\t") for line in (folder / "held_out.txt").read_text().splitlines()]
    faces = np.stack([read_face(plain / path) for path, _ in held_out])
    scores = load_quality_model(folder / "net_1epoch.pth", device="cpu", precision="fp32")(faces)
    errors = np.abs(scores - [float(label) for _, label in held_out])
    assert measured["mae"] == pytest.approx(errors.mean(), rel=1e-5)


def test_ctrl_c_saves_and_the_same_command_resumes(faces: Path, signalled: Run) -> None:
    arguments = [*TINY, "--epochs", "40", "--val-identities", "0", "--checkpoints-name", "stopped"]
    done = signalled(3, "SIGINT", *arguments)
    assert done.returncode == 130
    assert "stopped and saved; the same command resumes" in done.stderr
    assert "Traceback" not in done.stderr
    saved = torch.load(faces / "checkpoints/stopped/last.ckpt", weights_only=True)["state"]
    assert 6 * saved["epoch"] + saved["step"] >= 3


def test_it_learns_brightness_with_every_option(faces: Path, train: Run) -> None:
    arguments = ["--backbone", "MFN", "--epochs", "12", "--batch-size", "8", "--lr", "2e-3"]
    arguments += ["--device", "cpu", "--val-identities", "0.3", "--checkpoints-name", "options"]
    arguments += ["--balanced", "--clip-norm", "50", "--loss", "l1", "--milestones", "9", "11"]
    done = train(*arguments, cwd=faces)
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in stats(faces, "options") if "loss" in line]
    assert np.mean(losses[-2:]) < 0.5 * losses[0]

    frozen = ["--trunk-lr", "0", "--checkpoints-name", "frozen", "--epochs", "1"]
    frozen += ["--finetuning-model", "checkpoints/options/best.pth"]
    done = train(*arguments, *frozen, cwd=faces)
    assert done.returncode == 0, done.stderr
    assert "tensors loaded; nothing new" in done.stdout
    before = network(faces, "options", "best.pth")
    after = network(faces, "frozen", "net_1epoch.pth")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"quality.1.weight", "quality.3.weight", "quality.3.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", "0"], "lr must be above 0; got 0.0"),
        (["--lr", "inf"], "lr must be finite; got inf"),
        (["--seed", "-1"], "seed must lie in [0, 2^63); got -1"),
        (["--epochs", "0"], "epochs must be 1 or more"),
        (["--milestones", "5", "3"], "milestones must be epochs, in rising order"),
        (["--best-by", "aoc"], "best_by aoc needs feats"),
        (["--img-list", "nowhere.txt"], "nowhere.txt: does not exist"),
        (["--val-identities", "0.95"], "has 6 identities, too few to hold out 6"),
        (["--feats", "annotations/DATA.labelpath"], "is not a .npy file"),
        (["--checkpoints", "features.npy"], "cannot be written"),
        (["--finetuning-model", "annotations/DATA.labelpath"], "is no checkpoint of plain tensors"),
        (["--checkpoints-name", "plain", "--seed", "3"], "other settings: seed was 0, is now 3"),
    ],
)
def test_a_mistake_is_refused_with_its_rule(
    plain: Path, monkeypatch: pytest.MonkeyPatch, change: list[str], message: str
) -> None:
    monkeypatch.chdir(plain)
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "mistake", *change]
    with pytest.raises(UserError, match=re.escape(message)):
        tyro.cli(main, args=arguments)


def test_a_loss_that_is_no_number_stops_with_its_batch(plain: Path, train: Run) -> None:
    arguments = [*TINY, "--lr", "1e30", "--save-minutes", "1e-9"]
    done = train(*arguments, "--checkpoints-name", "boom", cwd=plain)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr
    assert "faces/p" in lines[0] and "last good save is in checkpoints/boom" in lines[0]


_NO_GRADIENT = """
import os, sys
import train
from common.cli import run_script
losses, steps = train.point_losses, [0]

def lost(config, scores, labels):
    steps[0] += 1
    mine = os.environ.get("RANK", "0") == os.environ["LOST"] and steps[0] == 3
    return losses(config, scores, labels) + ((scores - scores).sqrt() if mine else 0)

train.point_losses = lost
run_script(train.main)
"""


@pytest.mark.parametrize(("processes", "lost"), [(1, "0"), (2, "1")])
def test_weights_that_are_no_numbers_are_never_saved(
    plain: Path, run_script: Run, processes: int, lost: str
) -> None:
    """The root of 0 has no gradient, and a loss that is finite: here, or in another process."""
    script, name = plain / "lost.py", f"lost{processes}"
    script.write_text(_NO_GRADIENT)
    arguments = [*TINY, "--batch-size", str(4 // processes), "--save-minutes", "1e-9"]
    arguments += ["--checkpoints-name", name]
    done = run_script(script, *arguments, cwd=plain, processes=processes, env={"LOST": lost})
    assert done.returncode == 1 and "is no longer finite after epoch 1, step 3" in done.stderr
    assert f"the last good save is in checkpoints/{name}; restart" in done.stderr
    saved = network(plain, name, "last.ckpt")
    assert saved["state"]["step"] == 2
    assert all(torch.isfinite(value).all() for value in saved["network"].values())


def test_machines_that_do_not_share_the_folder_are_told(plain: Path, run_script: Run) -> None:
    """Each process in a folder of its own stands for a machine of its own."""
    (plain / "apart.py").write_text(
        "import os, train, training.run\n"
        "from common.cli import run_script\n"
        "read = training.run.read_resume\n"
        "def mine(folder, key):\n"
        "    return read(folder, key) if os.environ['RANK'] == '0' else None\n"
        "training.run.read_resume = mine\n"
        "run_script(train.main)\n"
    )
    arguments = [*TINY, "--val-identities", "0.3", "--checkpoints-name", "plain"]
    arguments += ["--batch-size", "2"]
    done = run_script(plain / "apart.py", *arguments, cwd=plain, processes=2)
    assert done.returncode == 1
    assert "is not the same folder in every process; put it on shared storage" in done.stderr


def test_unreadable_images_are_named_and_stop_the_run_beyond_a_share(
    faces: Path, train: Run
) -> None:
    text = (faces / "annotations/quality_pseudo_labels.txt").read_text()
    (faces / "with_missing.txt").write_text("faces/gone.png\t50\n" + text)
    arguments = [*TINY, "--img-list", "with_missing.txt", "--val-identities", "0"]
    arguments += ["--epochs", "1", "--checkpoints-name", "missing", "--batch-size", "5"]
    done = train(*arguments, cwd=faces)
    assert done.returncode == 1
    assert "with_missing.txt:1: faces/gone.png: No such file or directory; skipped" in done.stderr
    assert "unreadable: 1 of 25 images, more than --max-unreadable 0.01 allows" in done.stderr
    done = train(*arguments, "--max-unreadable", "0.1", cwd=faces)
    assert done.returncode == 0 and done.stderr.count("faces/gone.png") == 1
