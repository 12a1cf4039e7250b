"""What runs on a GPU gives what the CPU gives: on a real one where there is one, else on one that
is pretended (support/pretended_gpu.py), where numbers left on the wrong device are found too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch

import train
from generate_pseudo_labels.distance.array_backend import TorchArrays
from generate_pseudo_labels.distance.blocks import group_by_identity
from generate_pseudo_labels.distance.embedded_set import Embeddings
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.similarity_distance import similarity_distances
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


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
@pytest.mark.parametrize("layout", ["even", "uneven", "shuffled", "one of half"])
def test_labels(gpu: None, estimator: Literal["sampled", "exact"], layout: str) -> None:
    rng, n = np.random.default_rng(5), 2000
    people = np.repeat(np.arange(n), 10 if layout == "even" else rng.integers(1, 60, n))[:n]
    if layout == "shuffled":
        people = rng.permutation(people)
    if layout == "one of half":
        people = np.sort(np.where(np.arange(n) % 2, 0, people + 1))
    noise = rng.standard_normal((n, 32)) * rng.uniform(0.5, 2, (n, 1))
    rows = (rng.standard_normal((n + 1, 32))[people] + noise).astype(np.float16)
    groups = group_by_identity(np.unique(people, return_inverse=True)[1].astype(np.int32))
    here = similarity_distances(rows, groups, LabelSettings(estimator)).distances
    sources: list[Embeddings] = [rows, torch.from_numpy(rows).to(GPU)]
    for source in sources:
        there = similarity_distances(
            source,
            groups,
            LabelSettings(estimator),
            arrays=TorchArrays(GPU),
            threads=2,
            batch_rows=700,
        ).distances
        for name in ("w1", "pos", "neg", "excess"):
            a, b = getattr(here, name), getattr(there, name)
            # In points of labels: 1e-4 sampled; exact adds up millions of products.
            points = 1e-4 if estimator == "sampled" else 1e-3
            assert np.allclose(a, b, rtol=0, atol=points / 100 * np.nanmax(a), equal_nan=True), name


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
    step = 2 if more["precision"] == "bf16" else 1  # which a CPU may only imitate
    paths = sorted(faces.rglob("*.*g"))[::step]
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
