"""Checkpoint files: found by key name, nothing run, nothing random left unsaid."""

import collections
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import checkpoints
from models.checkpoints import load_network, read_about, read_resume, save_network, save_resume
from models.networks import build_network
from models.quality import load_quality_model
from models.recognisers import load_recogniser
from models.state_dicts import LoadReport, copy_fitting, find_trunk, identify, read_state
from sdd_fiqa.errors import UserError

State = dict[str, Any]
MakeState = Callable[..., State]


@pytest.fixture(scope="module")
def quality(random_state: MakeState) -> State:
    return random_state("MFN")


@pytest.fixture(scope="module")
def recognition(random_state: MakeState) -> State:
    return random_state("MFN", recognition=True)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    def write(content: Any, **options: Any) -> Path:
        file = tmp_path / "net.pth"
        torch.save(content, file, **options)
        return file

    return write


def same(one: State, other: State) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def old(state: State) -> State:
    """As torch before 0.4.1 wrote it."""
    return {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}


def test_every_form_of_file_that_people_publish(quality: State, save: Callable[..., Path]) -> None:
    prefixed = {f"module.{key}": value for key, value in quality.items()}
    forms: list[tuple[Any, dict[str, Any]]] = [
        (quality, {}),
        (collections.OrderedDict(quality), {"_use_new_zipfile_serialization": False}),
        (prefixed, {}),
        ({"state_dict": quality, "epoch": 3, "best": 0.5}, {}),
        ({"model": prefixed}, {}),
        ({"model": prefixed, "optimizer": {"lr": 1}}, {}),
        ({key: value.cpu().clone().requires_grad_() for key, value in quality.items()
          if value.is_floating_point()}, {}),
    ]  # fmt: skip
    for content, options in forms[:-1]:
        assert same(read_state(save(content, **options)), quality)
        name, network, _ = load_network(save(content, **options), recognition=False)
        assert name == "MFN"
        assert not network.training
        assert same(network.state_dict(), quality)
    # Without num_batches_tracked, as old releases wrote and as a list of parameters is.
    _, network, _ = load_network(save(forms[-1][0]), recognition=False, backbone="MFN")
    assert same(old(network.state_dict()), old(quality))


def test_half_precision_weights_become_float32(quality: State, save: Callable[..., Path]) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in quality.items()}
    _, network, _ = load_network(save(halves), recognition=False)
    assert all(value.dtype != torch.float16 for value in network.state_dict().values())


def test_networks_are_told_by_their_keys() -> None:
    for backbone in ("MFN", "R_50"):
        for recognition, head in ((False, "quality"), (True, "recognition")):
            with torch.device("meta"):  # no weights are needed
                state = build_network(backbone, recognition=recognition).state_dict()
            assert identify(state) == (backbone, head)
            assert identify(old(state)) == (backbone, head)
    state["body.0.res_layer.0.weight"] = torch.zeros(65)
    assert identify(state) is None
    assert identify({}) is None


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


def test_what_does_not_fit_is_said_by_name(
    quality: State, recognition: State, save: Callable[..., Path]
) -> None:
    first = "conv1.conv.weight"
    few = without(quality, *list(quality)[:100])
    cases: list[tuple[State, str]] = [
        (without(quality, first), f"the nearest is MFN with a quality head: missing: {first}$"),
        (few, rf"missing: {first}, conv1\.bn\.weight, conv1\.bn\.bias and \d\d more$"),
        ({**quality, "extra": torch.zeros(1)}, "unexpected: extra$"),
        (
            {**quality, first: torch.zeros(64, 1, 3, 3)},
            r"wrong shape: conv1\.conv\.weight \(64, 1, 3, 3\) in place of \(64, 3, 3, 3\)$",
        ),
        ({"a": torch.zeros(1)}, "missing: .* and .* more; unexpected: a$"),
        (recognition, "is a MFN network with a recognition head; a quality head is needed"),
        (
            # Other IR-50s have a BatchNorm more: nothing of them may be taken for ours.
            {f"layer1.{n}.bn1.weight": torch.zeros(64) for n in range(4)},
            r"nearest is iresnet34 .*missing: .*; unexpected: layer1\.3\.bn1\.weight$",
        ),
    ]
    for state, message in cases:
        with pytest.raises(UserError, match=message):
            load_network(save(state), recognition=False)
    with pytest.raises(UserError, match="a quality head; a recognition head is needed"):
        load_network(save(quality), recognition=True)
    with pytest.raises(UserError, match="is a MFN network, not the R_50 that was asked for"):
        load_network(save(quality), recognition=False, backbone="R_50")
    with pytest.raises(UserError, match="does not fit R_50 with a quality head: missing: input_"):
        load_network(save(few), recognition=False, backbone="R_50")


def start_from(network: torch.nn.Module, file: Path, backbone: str) -> LoadReport:
    state = read_state(file)
    find_trunk(state, str(file), backbone)
    return copy_fitting(network, state)


def test_training_starts_from_the_trunk_by_name(
    quality: State, recognition: State, save: Callable[..., Path]
) -> None:
    network = build_network("MFN")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prefixed = {f"module.{key}": value for key, value in recognition.items()}
    loaded = start_from(network, save(prefixed), "MFN")
    after = network.state_dict()
    trunk = [key for key in quality if not key.startswith("quality.")]
    assert loaded.loaded == trunk
    assert loaded.new == ["quality.1.weight", "quality.3.weight", "quality.3.bias"]
    assert all(key.startswith("output_layer.") for key in loaded.unused)
    assert len(loaded.unused) == len(recognition) - len(trunk)
    assert all(torch.equal(after[key], recognition[key]) for key in trunk)
    assert all(torch.equal(after[key], before[key]) for key in loaded.new)
    assert str(loaded).startswith(f"{len(trunk)} tensors loaded; new: quality.1.weight, quality.3.")
    # A quality network gives its head too.
    loaded = start_from(network, save(quality), "MFN")
    assert (loaded.new, loaded.unused) == ([], [])
    assert same(network.state_dict(), quality)
    # Nothing is taken over from what fits in part only.
    whole = {key: value.clone() for key, value in network.state_dict().items()}
    for wrong, message in [
        (without(recognition, trunk[0]), f"does not fit the trunk of MFN: missing: {trunk[0]}$"),
        ({**recognition, "conv9.weight": torch.zeros(1)}, "unexpected: conv9.weight$"),
        ({**recognition, trunk[0]: torch.zeros(1)}, r"wrong shape: .* \(1,\) in place of"),
    ]:
        with pytest.raises(UserError, match=message):
            start_from(network, save(wrong), "MFN")
        assert same(network.state_dict(), whole)


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_a_hostile_pickle_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / f"{number}.pth" for number in range(4)]
    torch.save({"conv1.conv.weight": Hostile()}, files[0])
    torch.save({"x": Hostile()}, files[1], _use_new_zipfile_serialization=False)
    files[2].write_bytes(pickle.dumps(Hostile()))
    files[3].write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for file in files:
        with pytest.raises(UserError, match="is no checkpoint of plain tensors, and nothing else"):
            read_state(file)
        for load in (load_quality_model, load_recogniser):
            with pytest.raises(UserError):
                load(str(file))
    assert not (tmp_path / "ran").exists()
    # A training's last.ckpt is read with the same care.
    (tmp_path / "t").mkdir()
    files[0].rename(tmp_path / "t/last.ckpt")
    assert read_resume(tmp_path / "t", {}) is None
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint(
    tmp_path: Path, quality: State, save: Callable[..., Path], faces: Path
) -> None:
    content = save(quality).read_bytes()
    file = tmp_path / "x.pth"
    for wrong in (
        b"",
        b"hello\n",
        b"faces/a.jpg\t5\n",
        content[:100],
        content[: len(content) // 2],
        content[:-1000],
        (faces / "id0/0.jpg").read_bytes(),
    ):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=r"x\.pth: is "):
            read_state(file)
    others: list[Any] = [None, 5, [1], {}, torch.zeros(3), {"state_dict": {}}]
    for other in others:
        with pytest.raises(UserError, match="holds no state_dict"):
            read_state(save(other))
    with pytest.raises(UserError, match="holds no state_dict, or more than tensors"):
        read_state(save({"a": torch.zeros(1), "b": 1}))
    odd = (torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64))
    for tensor in (*odd, torch.zeros(2, device="meta")):
        with pytest.raises(UserError, match="or more than tensors of plain numbers"):
            read_state(save({"a": tensor}))
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "none.pth")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path)


def test_a_number_that_changed_on_disk_is_noticed(save: Callable[..., Path]) -> None:
    weights = torch.randn(50, 50)
    file = save({"a": weights})
    content = file.read_bytes()
    inside = content.index(weights.numpy().tobytes()[:64])
    file.write_bytes(content[:inside] + bytes([content[inside] ^ 64]) + content[inside + 1 :])
    with pytest.raises(UserError, match="is damaged or not a torch checkpoint"):
        read_state(file)


@pytest.mark.parametrize("new_format", [True, False])
def test_any_damage_is_one_message(
    tmp_path: Path, save: Callable[..., Path], new_format: bool
) -> None:
    """Bytes changed at random end in UserError or in tensors, never in another exception."""
    good = save(
        {"a": torch.randn(3, 3), "b": torch.arange(4)}, _use_new_zipfile_serialization=new_format
    ).read_bytes()
    rng = random.Random(3)
    refused = 0
    for _ in range(300):
        data = bytearray(good if rng.random() < 0.9 else rng.randbytes(rng.randrange(90)))
        for _ in range(rng.choice([1, 3])):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "x.pth").write_bytes(data)
        try:
            read_state(tmp_path / "x.pth")
        except UserError:
            refused += 1
    assert 20 < refused < 300


def test_what_stands_beside_a_checkpoint(tmp_path: Path, random_state: MakeState) -> None:
    network = build_network("MFN")
    file = tmp_path / "folder/best.pth"
    save_network(file, network, {"architecture": "MFN", "calibration": {"faces": 3}})
    assert same(read_state(file), dict(network.state_dict()))
    assert read_about(file)["architecture"] == "MFN"
    assert load_quality_model(file).calibration == {"faces": 3}
    assert sorted(os.listdir(file.parent)) == ["best.json", "best.pth"]
    torch.save(random_state("MFN"), file)  # another network under the same name
    with pytest.raises(UserError, match=r"best\.json: describes another file than .*best\.pth"):
        load_quality_model(file)
    for text in ("[]", "{}", '"x"'):
        file.with_suffix(".json").write_text(text)
        with pytest.raises(UserError, match="describes another file"):
            read_about(file)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match=r"best\.json: is not JSON"):
        read_about(file)
    file.with_suffix(".json").unlink()
    assert read_about(file) == {}
    assert load_quality_model(file).calibration is None


def test_a_resume_passes_over_damage_and_refuses_another_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = {"lr": 0.1, "labels": "abc"}
    assert read_resume(tmp_path, key) is None
    save_resume(tmp_path, key, {"step": 1})
    save_resume(tmp_path, key, {"step": 2})
    assert read_resume(tmp_path, key) == {"key": key, "step": 2}
    with pytest.raises(
        UserError,
        match=r"last\.ckpt: this folder holds a run with other settings: lr was 0\.1, is now 0\.2;",
    ):
        read_resume(tmp_path, {**key, "lr": 0.2})
    with pytest.raises(UserError, match="with other settings: it has other labels; choose"):
        read_resume(tmp_path, {**key, "labels": 64 * "a"})
    last = tmp_path / checkpoints.RESUME
    content = last.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"labels") + 1] ^= 1
    for damaged in (content[:-30], b"", bytes(flipped)):
        last.write_bytes(damaged)
        assert read_resume(tmp_path, key) == {"key": key, "step": 1}
        assert "last.ckpt: is damaged; skipped" in capsys.readouterr().err
    for other in ({"conv1": torch.zeros(1)}, [1], {"key": 5}):
        torch.save(other, last)
        assert read_resume(tmp_path, key) == {"key": key, "step": 1}


@pytest.mark.parametrize("backbone", ["R_50", "MFN"])
def test_a_published_file_scores_and_embeds_as_its_network(
    backbone: str, save: Callable[..., Path], random_state: MakeState, make_face: Callable[..., Any]
) -> None:
    """The whole way from file to number, against the network called by hand."""
    faces = np.stack([make_face(0, 0), make_face(1, 1), make_face(2, 3)])
    x = (torch.from_numpy(faces).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    for recognition in (False, True):
        state = random_state(backbone, recognition)
        network = build_network(backbone, recognition=recognition).eval()
        network.load_state_dict(state)
        with torch.inference_mode():
            expected = network(x.float()).numpy()
        file = save({f"module.{key}": value for key, value in state.items()})
        if recognition:
            recogniser = load_recogniser(str(file), backbone, "cpu", "fp32")
            found = recogniser.embed(faces)
            assert recogniser.dimension == 512
            assert recogniser.about["backbone"] == backbone
            mixed = load_recogniser(str(file), backbone, "cpu", "bf16").embed(faces)
            unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (found, mixed)]
            # MFN ends in a BatchNorm, which enlarges what random weights make of rounding.
            least = 0.999 if backbone == "R_50" else 0.98
            assert (unit[0] * unit[1]).sum(axis=1).min() > least
        else:
            model = load_quality_model(file, device="cpu", precision="fp32")
            assert model.name == f"net.pth ({backbone})"
            found = model(faces)[:, None]
            assert np.array_equal(model(faces.transpose(0, 3, 1, 2))[:, None], found)
            assert np.array_equal(model(torch.from_numpy(faces))[:, None], found)
            assert model(faces[:0]).shape == (0,)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-3


def test_a_quality_model_says_what_it_takes(save: Callable[..., Path], quality: State) -> None:
    model = load_quality_model(save(quality), device="cpu")
    with pytest.raises(TypeError, match=r"expected uint8 RGB faces .*, got dtype float32"):
        model(np.zeros((1, 112, 112, 3), np.float32))
    for shape in [(112, 112, 3), (1, 96, 112, 3), (1, 1, 112, 112)]:
        with pytest.raises(ValueError, match=r"expected .*, got (shape )?\("):
            model(np.zeros(shape, np.uint8))
    with pytest.raises(
        UserError,
        match=r"--model none: no such file, and no shipped model .*; train one with train\.py",
    ):
        load_quality_model("none")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99", "", "meta"])
def test_devices_that_are_none(device: str, save: Callable[..., Path], quality: State) -> None:
    with pytest.raises(UserError, match=f"--device {device}: (must be|this machine shows)"):
        load_quality_model(save(quality), device=device)


def test_json_beside_is_whole_json(tmp_path: Path) -> None:
    save_network(tmp_path / "n.pth", build_network("MFN"), {"calibration": None})
    assert set(json.loads((tmp_path / "n.json").read_text())) == {"calibration", "sha256"}


SAVED: dict[str, Any] = {
    "network": {"w": torch.ones(3)},
    "optimiser": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
    "state": {"epoch": 1, "step": 2, "best": -1.5},
}


def test_a_save_comes_back(tmp_path: Path) -> None:
    save_resume(tmp_path, {"seed": 0}, SAVED)
    found = read_resume(tmp_path, {"seed": 0})
    assert found is not None
    assert found["state"] == SAVED["state"] and found.keys() == {"key", *SAVED}


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("optimiser"),
        lambda saved: saved.pop("key"),
        lambda saved: saved["network"].pop("w"),
        lambda saved: saved["optimiser"]["state"].pop(0),
        lambda saved: saved["optimiser"]["state"][0].pop("step"),
        lambda saved: saved["optimiser"]["param_groups"].clear(),
        lambda saved: saved["network"].update(w=torch.ones(4)),
        lambda saved: saved["state"].pop("epoch"),
        lambda saved: saved["state"].update(epoch="1"),
        lambda saved: saved.update(state=[1, 2]),
        lambda saved: saved.update(key=5),
    ],
)
def test_a_save_that_lacks_a_part_is_skipped(
    tmp_path: Path, damage: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    save_resume(tmp_path, {"seed": 0}, SAVED)
    last = tmp_path / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    damage(saved)
    torch.save(saved, last)
    assert read_resume(tmp_path, {"seed": 0}) is None
    assert "last.ckpt: is damaged; skipped" in capsys.readouterr().err
    save_resume(tmp_path, {"seed": 0}, SAVED)
    torch.save(saved, last)
    save_resume(tmp_path, {"seed": 0}, SAVED)  # the damaged one is the previous one now
    assert read_resume(tmp_path, {"seed": 0}) is not None
