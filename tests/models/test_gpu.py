"""What runs on a GPU gives what the CPU gives: on a real one where there is one, else on one that
is pretended (support/pretended_gpu.py), where numbers left on the wrong device are found too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import train
from models import load_quality_model
from models.recognisers import load_recogniser
from pretended_gpu import pretended_gpu
from train_config import TrainConfig

GPU = "cuda:0"


@pytest.fixture
def gpu() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
    else:
        with pretended_gpu():
            yield


@pytest.fixture(scope="module")
def crops(make_face: Callable[[int, int], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.stack([make_face(identity, image) for identity in range(5) for image in range(4)])


def test_scores(gpu: None, weights: dict[str, Path], crops: npt.NDArray[np.uint8]) -> None:
    here = load_quality_model(weights["quality"], device="cpu", precision="fp32")(crops)
    there = load_quality_model(weights["quality"], device=GPU, precision="fp32")(crops)
    assert there.dtype == np.float32 and np.abs(there - here).max() < 1e-2
    half = load_quality_model(weights["quality"], device=GPU, precision="bf16")(crops)
    assert 0 < np.abs(half - here).max() < 0.2 * np.ptp(here)


def test_embeddings(gpu: None, weights: dict[str, Path], crops: npt.NDArray[np.uint8]) -> None:
    ours, theirs = (
        load_recogniser(str(weights["recognition"]), device=device, precision="fp32").embed(crops)
        for device in ("cpu", GPU)
    )
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.99999


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp32", "clip_norm": 1.0, "balanced": True},
        {"precision": "bf16", "fit_head": True, "trunk_lr": 0.0},
    ],
)
def test_training(
    gpu: None, faces: Path, weights: dict[str, Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    paths = sorted(faces.rglob("*.*g"))
    labels = "".join(f"{path}\t{rng.uniform(0, 100):.3f}\n" for path in paths)
    (tmp_path / "labels.txt").write_text(labels)
    losses = {}
    for device in ("cpu", GPU):
        settings = TrainConfig(
            img_list=tmp_path / "labels.txt",
            checkpoints=tmp_path,
            checkpoints_name=device.replace(":", ""),
            finetuning_model=str(weights["recognition"]),
            val_identities=0.3,
            dropout=0.0,
            lr=1e-4,
            batch_size=8,
            epochs=1,
            display=1,
            device=device,
            **more,
        )
        assert train.main(settings) == 0
        lines = (tmp_path / settings.checkpoints_name / "stats.jsonl").read_text().splitlines()
        losses[device] = [json.loads(line).get("loss", np.nan) for line in lines]
    assert np.allclose(losses["cpu"], losses[GPU], rtol=0.02, equal_nan=True)
    # What it saved is the host's, for machines without a GPU.
    best = tmp_path / "cuda0/best.pth"
    score = load_quality_model(best, device="cpu", precision="fp32")
    assert np.isfinite(score(np.zeros((2, 112, 112, 3), np.uint8))).all()
    assert torch.load(best, weights_only=True)["quality.3.bias"].device.type == "cpu"
