"""Starts from other makers' checkpoints: key maps, layouts, colour order, errors, round trips."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from models.backbones import Backbone
from models.checkpoints import load_network, save_network
from models.networks import (
    BACKBONES,
    FaceModel,
    build_network,
    describe_network,
    parameter_groups,
    pixels_of,
)
from models.quality import load_quality_model
from models.recognisers import load_recogniser
from models.state_dicts import find_trunk, identify, read_state
from published_networks import TABLES, State, filled, head_of, hollow, ir, iresnet
from sdd_fiqa.errors import UserError
from training.start import start_network


def shrunk(state: State, name: str) -> State:
    """The same with a recognition head that takes no room."""
    return {
        key: torch.zeros(()).expand(value.shape) if key.startswith(head_of(name)) else value
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def face() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), dtype=np.uint8)


def normalised(face: npt.NDArray[np.uint8]) -> Tensor:
    return (torch.from_numpy(face.copy()).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5


@pytest.fixture(scope="module")
def small() -> dict[str, State]:
    """One random state of each make."""
    return {name: filled(TABLES[name]()) for name in ("iresnet18", "adaface_ir_18", "evolve_ir_50")}


def test_flags_know_every_network() -> None:
    assert get_args(Backbone) == tuple(BACKBONES)


@pytest.mark.parametrize("name", TABLES)
def test_keys_and_shapes_are_the_distributed_files(name: str) -> None:
    state = hollow(TABLES[name]())
    assert identify(state) == (name, "recognition")
    assert find_trunk(state, "file") == name
    with torch.device("meta"):
        trunk = set(build_network(name).state_dict()) - {
            *("quality.1.weight", "quality.3.weight", "quality.3.bias")
        }
    assert trunk == {key for key in state if not key.startswith(head_of(name))}


@pytest.mark.parametrize("name", ["iresnet18", "adaface_ir_18", "evolve_ir_50"])
def test_networks_compute_what_the_published_code_does(
    name: str, small: dict[str, State], face: npt.NDArray[np.uint8]
) -> None:
    state = small[name]
    network = build_network(name, recognition=True)
    network.load_state_dict(state)
    x = normalised(face)
    with torch.no_grad():
        expected = (iresnet if name.startswith("iresnet") else ir)(state, x)
        torch.testing.assert_close(network.eval()(x), expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.1


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[State], dict[str, Any]]]:
    """Wraps a state as Lightning saves it, a class of its own among the callbacks' keys."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def wrap(state: State) -> dict[str, Any]:
        return {
            "epoch": 25,
            "pytorch-lightning_version": "1.4.4",
            "state_dict": {f"model.{key}": value for key, value in state.items()}
            | {"head.kernel": torch.zeros(512, 10), "head.t": torch.zeros(1)},
            "callbacks": {callback: {"best": callback()}},
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
            "hyper_parameters": {"arch": "ir_18", "lr": 0.1},
        }

    yield wrap


def test_adafaces_lightning_file_embeds_bgr(
    small: dict[str, State],
    face: npt.NDArray[np.uint8],
    tmp_path: Path,
    lightning: Callable[[State], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = small["adaface_ir_18"]
    torch.save(lightning(state), tmp_path / "adaface.ckpt")
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)  # the reader has no Lightning
    recogniser = load_recogniser(str(tmp_path / "adaface.ckpt"), device="cpu", precision="fp32")
    with torch.no_grad():
        bgr, rgb = ir(state, normalised(face[..., ::-1])), ir(state, normalised(face))
    got = torch.from_numpy(recogniser.embed(face))
    torch.testing.assert_close(got, bgr, rtol=1e-3, atol=1e-3)
    assert (bgr - rgb).abs().max() > 0.1
    assert recogniser.about["backbone"] == "adaface_ir_18"
    assert recogniser.about["preprocessing"] == {
        **{"colour": "BGR", "mean": 127.5, "scale": 127.5, "dimension": 512}
    }


def test_only_bgr_networks_swap(face: npt.NDArray[np.uint8]) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    plain = FaceModel(Mean())(torch.from_numpy(face))
    swapping = Mean()
    swapping.pixels = pixels_of(build_network("adaface_ir_18"))  # type: ignore[assignment]
    torch.testing.assert_close(FaceModel(swapping)(torch.from_numpy(face)), plain.flip(1))
    assert pixels_of(build_network("evolve_ir_50")).colour == "RGB"


@pytest.mark.parametrize("name", ["iresnet18", "adaface_ir_18", "evolve_ir_50"])
def test_a_start_takes_the_trunk_and_the_result_stands_alone(
    name: str, small: dict[str, State], face: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    state = small[name]
    torch.save({f"module.{k}": v for k, v in shrunk(state, name).items()}, tmp_path / "r.pth")
    start = start_network(str(tmp_path / "r.pth"))
    assert start.backbone == name
    own = start.network.state_dict()
    head = ["quality.1.weight", "quality.3.weight", "quality.3.bias"]
    for key in own.keys() - set(head):
        assert torch.equal(own[key], state[key]), key
    unused = len([key for key in state if key.startswith(head_of(name))])
    assert f"{len(own) - 3} tensors loaded; new: {', '.join(head)}; not used: " in start.text
    assert f"and {unused - 3} more" in start.text or unused <= 3
    groups = [len(group["params"]) for group in parameter_groups(start.network, 0.1, 0.5)]
    assert groups == [3, len(list(start.network.parameters())) - 3]

    save_network(tmp_path / "q.pth", start.network, describe_network(name, start.network))
    model = load_quality_model(tmp_path / "q.pth", device="cpu", precision="fp32")
    with torch.no_grad():
        expected = FaceModel(start.network).eval()(torch.from_numpy(face))[:, 0].numpy()
    np.testing.assert_allclose(model(face), expected, rtol=1e-4, atol=1e-4)
    assert model.name == f"q.pth ({name})"
    about = json.loads((tmp_path / "q.json").read_text())
    assert about["input"]["colour"] == ("BGR" if name.startswith("adaface") else "RGB")


def test_a_trunk_starts_under_another_head(small: dict[str, State], tmp_path: Path) -> None:
    state = {k: v for k, v in small["iresnet18"].items() if not k.startswith("features.")}
    state["fc.weight"], state["fc.bias"] = torch.zeros(128, 25088), torch.zeros(128)
    torch.save({"state_dict_backbone": state, "epoch": 3}, tmp_path / "checkpoint_gpu_0.pt")
    start = start_network(str(tmp_path / "checkpoint_gpu_0.pt"), "iresnet18")
    assert start.backbone == "iresnet18"
    assert "not used: fc.weight, fc.bias" in start.text


def test_without_weights_the_published_network_starts_at_random() -> None:
    start = start_network(None, "MFN")
    assert (start.backbone, start.text) == ("MFN", "random weights")
    assert start_network(None).backbone == "R_50"


def drop(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "backbone", "message"),
    [
        (
            lambda s: drop(s, "layer3.5.conv2.weight"),
            None,
            r"fits no network known here \(R_50, .*nearest is the trunk of iresnet34: "
            r"missing: layer3.5.conv2.weight$",
        ),
        (
            lambda s: s | {"bn2.weight": torch.zeros(7)},
            None,
            r"iresnet34: wrong shape: bn2.weight \(7,\) in place of \(512,\)$",
        ),
        (lambda s: s | {"gate.weight": torch.zeros(7)}, None, r"unexpected: gate.weight$"),
        (lambda s: s, "R_50", r"does not fit the trunk of R_50: missing: input_layer.0.weight, "),
    ],
)
def test_what_fits_nothing_names_the_nearest(
    change: Callable[[State], State], backbone: str | None, message: str, tmp_path: Path
) -> None:
    torch.save(change(hollow(TABLES["iresnet34"]())), tmp_path / "file.pth")
    with pytest.raises(UserError, match=message):
        start_network(str(tmp_path / "file.pth"), backbone)


def test_a_recogniser_with_another_head_names_what_differs(tmp_path: Path) -> None:
    state = hollow(TABLES["iresnet18"]()) | {"fc.bias": torch.zeros(256)}
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(
        UserError, match=r"nearest is iresnet18 with a recognition head: wrong shape: fc.b"
    ):
        load_network(tmp_path / "file.pth", recognition=True)


def test_a_quality_network_is_asked_for(tmp_path: Path) -> None:
    torch.save(hollow(TABLES["iresnet18"]()), tmp_path / "file.pth")
    with pytest.raises(
        UserError, match="is a iresnet18 network with a recognition head; a quality"
    ):
        load_network(tmp_path / "file.pth", recognition=False)


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arcface: no such file; known names: .*w600k_mbf, small$"):
        start_network("arcface")


def test_what_needs_other_code_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "seen": Path("a")}, tmp_path / "file.pth")
    with pytest.raises(
        UserError, match=r"nothing else is loaded from a file \(it asks for pathlib"
    ):
        read_state(tmp_path / "file.pth")
