"""The head in closed form: least squares by other means, and what a network does with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.device import choose_compute
from common.distributed import ProcessGroup
from models.backbones import RGB
from models.backbones.layer_graph import GraphNetwork
from models.backbones.layers import FLOOR, add_floor
from models.checkpoints import load_network, save_network
from models.networks import FaceModel, build_network, describe_network, quality_head
from sdd_fiqa.errors import UserError
from training.closed_form_head import Ridge, features_of, fit_head, invert_floor
from training.start import start_network


@pytest.mark.parametrize("penalty", [0.0, 0.1, 1.0])
def test_it_is_weighted_least_squares_with_a_penalty(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(1, 2, (200, 7)), rng.normal(40, 9, 200), rng.uniform(0.1, 1, 200)
    ridge = Ridge(7)
    for part in np.split(np.arange(200), [1, 60, 61, 130]):
        ridge.add(*(torch.tensor(a[part], dtype=torch.float32) for a in (x, y, w)))
    slopes, level = ridge.solve(penalty)
    # numpy's least squares of the same, centred, with a row for every slope's square.
    mean, middle = w @ x / w.sum(), w @ y / w.sum()
    roots = np.sqrt(w)
    centred = (x - mean) * roots[:, None]
    extra = np.sqrt(penalty * (centred**2).sum()) * np.eye(7)
    targets = np.concatenate([(y - middle) * roots, np.zeros(7)])
    expected, *_ = np.linalg.lstsq(np.concatenate([centred, extra]), targets, rcond=None)
    assert np.allclose(slopes.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert level == pytest.approx(middle - mean @ expected, rel=1e-5)


def test_a_weight_of_two_is_an_example_seen_twice() -> None:
    x, y = torch.randn(30, 4), torch.randn(30)
    once, twice = Ridge(4), Ridge(4)
    once.add(x, y, torch.tensor([2.0, *[1.0] * 29]))
    twice.add(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), torch.ones(31))
    for one, other in zip(once.solve(), twice.solve(), strict=True):
        assert torch.allclose(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4)


def test_features_that_do_not_vary_give_the_mean() -> None:
    ridge = Ridge(3)
    ridge.add(torch.ones(4, 3), torch.tensor([10.0, 20, 30, 40]), torch.ones(4))
    slopes, level = ridge.solve()
    assert torch.equal(slopes, torch.zeros(3, dtype=torch.float64)) and level == 25


def small_map() -> nn.Module:
    """A network whose last map, 8 x 7 x 7, has few values."""
    settings = {"in_channels": 3, "out_channels": 8, "kernel_size": [16, 16], "stride": [16, 16]}
    layers = [{"op": "Conv", "inputs": [0], "settings": settings}]
    return GraphNetwork({"layers": layers, "map": [8, 7, 7]}, RGB)


@pytest.mark.parametrize("backbone", ["MFN", "iresnet18", "small map"])
def test_a_network_scores_as_the_regression_says(backbone: str) -> None:
    torch.manual_seed(0)
    whole = backbone == "small map"
    network = small_map() if whole else build_network(backbone)
    trunk = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("quality.")}
    model = FaceModel(network)
    faces = torch.randint(0, 256, (12, 112, 112, 3), dtype=torch.uint8)
    labels, weights = torch.linspace(10, 90, 12), torch.rand(12) + 0.5
    compute = choose_compute("cpu", "fp32")
    # Three batches, and one in the middle of which no image could be read.
    slices = [slice(0, 5), slice(5, 5), slice(5, 10), slice(10, 12), slice(12, 12)]
    parts = [(faces[part], labels[part], weights[part]) for part in slices]
    quality = quality_head(network)
    add_floor(quality)
    fit_head(model, parts, compute, ProcessGroup(0, 1))
    maps: list[torch.Tensor] = []
    quality.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.inference_mode():
        scores = model(faces)[:, 0]
    seen = maps[0].flatten(1) if whole else maps[0].abs().mean((2, 3))
    assert torch.equal(features_of(maps[0]), seen)
    ridge = Ridge(seen.shape[1])
    ridge.add(seen, invert_floor(labels), weights)
    slopes, level = ridge.solve()
    straight = seen.double() @ slopes + level
    assert torch.allclose(scores.double(), FLOOR * (straight / FLOOR).exp().log1p(), atol=0.02)
    assert scores.std() > 1  # it has learned something of the labels
    for key, value in trunk.items():
        assert torch.equal(network.state_dict()[key], value), key


def test_the_floor_is_undone_down_to_one_point() -> None:
    quality = nn.Sequential(nn.Linear(1, 1))
    for _ in range(2):
        add_floor(quality)
    assert len(quality) == 2  # once
    labels = torch.tensor([0.0, 0.5, 1.0, 5.0, 40.0, 100.0])
    again = quality[1](invert_floor(labels))
    assert torch.allclose(again, labels.clamp(min=1), atol=1e-3)
    low = quality[1](torch.linspace(-200, 0, 50))
    assert torch.all(low > 0) and torch.all(low.diff() >= 0) and low[-1] < FLOOR


def test_a_floor_is_kept_by_the_file_beside_a_checkpoint(tmp_path: Path) -> None:
    network = build_network("MFN")
    add_floor(quality_head(network), 7.0)
    about = describe_network("MFN", network)
    save_network(tmp_path / "a.pth", network, about)
    again = load_network(tmp_path / "a.pth", recognition=False)[1]
    start = start_network(str(tmp_path / "a.pth")).network
    x = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        wanted = network.eval()(x)
        assert torch.equal(again(x), wanted) and torch.equal(start.eval()(x), wanted)
    assert describe_network("MFN", start) == about
    for wrong in (0, -1, "7", None):
        save_network(tmp_path / "b.pth", network, {**about, "floor": wrong})
        for load in (lambda p: load_network(p, recognition=False), start_network):
            with pytest.raises(UserError, match=r"b\.pth: the .json next to it gives a floor of"):
                load(str(tmp_path / "b.pth"))
    (tmp_path / "a.json").unlink()  # the keys alone: a published network
    with torch.inference_mode():
        straight = load_network(tmp_path / "a.pth", recognition=False)[1](x)
    assert torch.allclose(7 * (straight / 7).exp().log1p(), wanted, atol=1e-5)
