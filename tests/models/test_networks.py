"""R_50 and MFN, key for key and shape for shape, as the published code defines them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.backbones.ir import Unit
from models.networks import FaceModel, build_network
from sdd_fiqa.errors import UserError

KINDS = [(backbone, head) for backbone in ("R_50", "MFN") for head in (False, True)]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def published(backbone: str, recognition: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Keys, shapes and types from tests/data: `<key> TAB <shape>`; `<name>.*` is a BatchNorm."""
    head = "recognition" if recognition else "quality"
    file = Path(__file__).resolve().parents[1] / "data" / f"official_keys_{backbone}_{head}.tsv"
    keys: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for line in file.read_text().splitlines():
        key, shape = line.split("\t")
        sides = tuple(map(int, shape.split()))
        if key.endswith(".*"):
            keys |= {key[:-1] + part: (sides, torch.float32) for part in BATCH_NORM}
            keys[key[:-1] + "num_batches_tracked"] = ((), torch.int64)
        else:
            keys[key] = sides, torch.float32
    return keys


@pytest.mark.parametrize(("backbone", "recognition"), KINDS)
def test_every_key_and_shape_in_order(backbone: str, recognition: bool) -> None:
    state = build_network(backbone, recognition=recognition).state_dict()
    expected = published(backbone, recognition)
    counts = {("R_50", False): 340, ("R_50", True): 340, ("MFN", False): 324, ("MFN", True): 333}
    assert len(expected) == counts[backbone, recognition]
    found = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    assert list(found.items()) == list(expected.items())
    wrapped = FaceModel(build_network(backbone, recognition=recognition)).state_dict()
    assert list(wrapped) == [f"network.{key}" for key in state]  # the constants are not saved


@pytest.mark.parametrize(("backbone", "recognition"), KINDS)
def test_maps_and_outputs(
    backbone: str, recognition: bool, random_state: Callable[..., dict[str, Any]]
) -> None:
    network = build_network(backbone, recognition=recognition).eval()
    network.load_state_dict(random_state(backbone, recognition))
    sizes: list[tuple[int, ...]] = []

    def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output.dim() == 4 and (not sizes or sizes[-1] != tuple(output.shape[1:])):
            sizes.append(tuple(output.shape[1:]))

    units = [module for module in network.modules() if isinstance(module, Unit)]
    blocks = [child for name, child in network.named_children() if "conv" in name]
    for module in [*units] or blocks:
        module.register_forward_hook(look)
    with torch.inference_mode():
        out = network(torch.rand(2, 3, 112, 112) * 2 - 1)
    assert out.shape == ((2, 512) if recognition else (2, 1))
    assert out.isfinite().all()
    assert out.std() > 1e-4
    if backbone == "R_50":  # the first unit of every stage halves the map, the first stage's too
        assert sizes == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    else:
        assert [size[1] for size in sizes] == [56, 28, 14, 7, 7]
        assert sizes[-1] == (512, 7, 7)


def test_faces_are_normalised_inside_the_model() -> None:
    class Echo(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = FaceModel(Echo())
    faces = torch.arange(256, dtype=torch.uint8).repeat(147)[: 112 * 112 * 3].reshape(112, 112, 3)
    out = model(faces[None])  # (1, 3, 112, 112)
    expected = ((faces.double() / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    assert torch.allclose(out.double(), expected, atol=1e-6)
    assert torch.equal(model(faces.permute(2, 0, 1)[None].contiguous()), out)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backbone", ["MFN"])
def test_heads_stay_in_float32_under_bf16(
    backbone: str, random_state: Callable[..., dict[str, Any]], make_face: Callable[..., Any]
) -> None:
    network = build_network(backbone).eval()
    network.load_state_dict(random_state(backbone))
    model = FaceModel(network)
    faces = torch.from_numpy(np.stack([make_face(i, j) for i in range(3) for j in range(4)]))
    with torch.inference_mode():
        plain = model(faces)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(faces)
    assert mixed.dtype == torch.float32
    # bf16 has 8 bits: near 50, steps of 0.25. Scores between the steps show a float32 head.
    steps = mixed * 4
    assert (steps - steps.round()).abs().max() > 0.05
    assert (mixed - plain).abs().max() < 0.1 * (plain.max() - plain.min())


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="backbone 'R_100' is not known; choose from R_50, MFN"):
        build_network("R_100")
