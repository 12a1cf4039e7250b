"""Starts from ONNX recognisers: parity with onnxruntime, checkpoints that stand alone, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from models.backbones.layer_graph import GraphNetwork
from models.checkpoints import load_network, save_network
from models.networks import FaceModel, describe_network, parameter_groups
from models.onnx_import import read_trunk
from models.quality import load_quality_model
from onnx_graphs import Array, Maker, every_layer, faces
from sdd_fiqa.errors import UserError
from training.start import start_network

ROOT = Path(__file__).resolve().parents[2]


def map_by_onnxruntime(path: Path, value: str, x: Array) -> Array:
    """What a value inside the graph is; a face a run, as some graphs are fixed to that."""
    model = onnx.load(str(path))
    model.graph.output.append(helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    out: Array = np.concatenate([session.run([value], {name: one[None]})[0] for one in x])
    return out


def check_parity(network: GraphNetwork, path: Path, value: str) -> None:
    shown = faces(2)
    pixels = shown.transpose(0, 3, 1, 2).astype(np.float32)
    x = (pixels - network.pixels.mean) / np.float32(network.pixels.scale)
    expected = map_by_onnxruntime(path, value, x)
    with torch.no_grad():
        got = network.eval().trunk(torch.from_numpy(x)).numpy()
    assert list(got.shape[1:]) == network.graph["map"]
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    network.train()
    FaceModel(network)(torch.from_numpy(shown)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_every_layer_is_onnxruntimes(tmp_path: Path) -> None:
    path, last = every_layer(tmp_path / "made.onnx")
    start = start_network(str(path))
    assert isinstance(start.network, GraphNetwork)
    assert start.network.graph["map"] == [4, 7, 7]
    assert "(onnx:made, 12 layers up to a map of 4 x 7 x 7)" in start.text
    head = "quality.1.weight, quality.3.weight, quality.3.bias"
    assert f"10 tensors loaded; new: {head}; not used: w12, w13, w14 and 1 more" in start.text
    check_parity(start.network, path, last)
    norm = next(m for m in start.network.trunk if isinstance(m, torch.nn.BatchNorm2d))
    assert [norm.eps, norm.momentum] == pytest.approx([0.01, 0.2])


@pytest.mark.parametrize(
    ("name", "value", "shape", "said"),
    [
        ("sface", "bn1", [1024, 7, 7], "84 layers up to a map of 1024 x 7 x 7)"),
        (
            "w600k_mbf",
            "513",
            [64, 7, 7],
            "64 x 7 x 7, BatchNorm is folded in, so it trains without)",
        ),
    ],
)
def test_known_recognisers_are_onnxruntimes(
    name: str, value: str, shape: list[int], said: str, fetched: Callable[[str], Path]
) -> None:
    path = fetched(name)
    start = start_network(name)
    assert start.backbone == f"onnx:{name}"
    assert said in start.text
    assert isinstance(start.network, GraphNetwork)
    assert start.network.graph["map"] == shape
    check_parity(start.network, path, value)


def test_pooled_maps_and_shared_weights(tmp_path: Path) -> None:
    make = Maker(("N", 3, "H", "W"))
    x = make.conv("faces", 3, 4, strides=[8, 8], bias=False)
    make.constants["slopes"] = np.abs(make.random(4, 1, 1))
    shared = make.add("Identity", "slopes")
    x = make.add("PRelu", x, shared)
    x = make.add("PRelu", make.conv(x, 4, 4, size=1), "slopes")
    path = make.write(tmp_path / "pooled.onnx", make.add("GlobalAveragePool", x))
    graph, _, _ = read_trunk(path)
    assert graph["map"] == [4, 14, 14]
    assert [layer["op"] for layer in graph["layers"]] == ["Conv", "PRelu", "Conv", "PRelu"]


ALONE = """
import sys
for name in ("onnx", "onnxruntime", "models.onnx_import"):
    sys.modules[name] = None
import numpy as np
from models.quality import load_quality_model
model = load_quality_model(sys.argv[1], device="cpu", precision="fp32")
np.save(sys.argv[2], model(np.load(sys.argv[3])))
"""


def test_the_checkpoint_stands_alone(tmp_path: Path) -> None:
    path, _ = every_layer(tmp_path / "made.onnx")
    start = start_network(str(path))
    save_network(tmp_path / "q.pth", start.network, describe_network(start.backbone, start.network))
    path.unlink()
    np.save(tmp_path / "faces.npy", faces(3))
    files = [str(tmp_path / name) for name in ("q.pth", "scores.npy", "faces.npy")]
    subprocess.run(
        [sys.executable, "-c", ALONE, *files],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    with torch.no_grad():
        expected = FaceModel(start.network).eval()(torch.from_numpy(faces(3)))[:, 0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=1e-4, atol=1e-4)
    again = start_network(files[0])
    assert again.backbone == "onnx:made"
    assert "nothing new" in again.text
    for key, value in start.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value)


def test_train_and_eval_go_through(
    tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """train.py from an ONNX file, frozen and not; export_onnx.py and eval.py on what it leaves."""
    every_layer(tmp_path / "made.onnx")[0].with_suffix(".json").write_text(
        json.dumps({"colour": "BGR", "mean": 1.0, "scale": 2.0, "dimension": 0})
    )
    (tmp_path / "f").mkdir()
    lines = []
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"f/{number}.png"), faces(12)[number])
        lines.append(f"f/{number}.png\t{8 * number}\n")
    (tmp_path / "labels.txt").write_text("".join(lines))

    def run(script: str, *arguments: str) -> str:
        done = run_script(script, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    common = ["train.py", "--img-list", "labels.txt", "--finetuning-model", "made.onnx"]
    common += ["--val-identities", "0", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]
    out = run(*common, "--trunk-lr", "0", "--checkpoints-name", "frozen")
    assert "onnx:made on cpu" in out
    assert "start: made.onnx (onnx:made, 12 layers" in out
    began = start_network(str(tmp_path / "made.onnx")).network.state_dict()
    frozen = torch.load(tmp_path / "checkpoints/frozen/best.pth", weights_only=True)
    trunk = [key for key in began if key.startswith("trunk.")]
    assert trunk and all(torch.equal(frozen[key], began[key]) for key in trunk)
    run(*common, "--checkpoints-name", "whole")
    whole = torch.load(tmp_path / "checkpoints/whole/best.pth", weights_only=True)
    assert not all(torch.equal(whole[key], began[key]) for key in trunk)
    about = json.loads((tmp_path / "checkpoints/whole/best.json").read_text())
    assert about["input"] == {"size": 112, "colour": "BGR", "mean": 1.0, "scale": 2.0}
    (tmp_path / "made.onnx").unlink()
    best = "checkpoints/whole/best.pth"
    run("export_onnx.py", "--model", best, "--out", "q.onnx")
    both = []
    for model in (best, "q.onnx"):
        run("eval.py", "f", "--model", model, "--device", "cpu", "--precision", "fp32")
        rows = (tmp_path / "scores.csv").read_text().splitlines()[1:]
        both.append([float(row.split(",")[1]) for row in rows])
    assert len(both[0]) == 12
    np.testing.assert_allclose(both[0], both[1], atol=0.01)


def test_two_processes_train_an_onnx_trunk_as_one(
    tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    every_layer(tmp_path / "made.onnx")
    (tmp_path / "f").mkdir()
    lines = []
    for number in range(8):
        cv2.imwrite(str(tmp_path / f"f/{number}.png"), faces(8)[number])
        lines.append(f"f/{number}.png\t{12 * number}\n")
    (tmp_path / "labels.txt").write_text("".join(lines))
    common = ["train.py", "--img-list", "labels.txt", "--finetuning-model", "made.onnx"]
    common += ["--val-identities", "0", "--epochs", "2", "--dropout", "0", "--precision", "fp32"]
    common += ["--device", "cpu", "--display", "1"]
    for name, batch, processes in (("one", "4", 1), ("two", "2", 2)):
        done = run_script(
            *common,
            "--checkpoints-name",
            name,
            "--batch-size",
            batch,
            "--sync-bn",
            cwd=tmp_path,
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    one, two = (
        torch.load(tmp_path / f"checkpoints/{name}/best.pth", weights_only=True)
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert any("running_mean" in key for key in one)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-3, atol=2e-4, msg=key)


def test_trunk_and_head_are_separate_groups(tmp_path: Path) -> None:
    network = start_network(str(every_layer(tmp_path / "made.onnx")[0])).network
    head, trunk = (group["params"] for group in parameter_groups(network, 0.1, 0.5))
    assert [value.numel() for value in head] == [196, 196, 1]
    assert len(head) + len(trunk) == len(list(network.parameters()))


def sigmoid(make: Maker) -> str:
    return make.add("Flatten", make.add("Sigmoid", make.conv("faces", 3, 2)))


def oblique(make: Maker) -> str:
    return make.add("Flatten", make.conv("faces", 3, 2, pads=[0, 0, 1, 1]))


def same(make: Maker) -> str:
    return make.add("Flatten", make.conv("faces", 3, 2, auto_pad="SAME_UPPER"))


def spatial(make: Maker) -> str:
    return make.conv("faces", 3, 2)


def reverse(make: Maker) -> str:
    return make.add("Flatten", make.add("Sub", np.array(1.0), "faces"))


def large(make: Maker) -> str:
    return make.add("Flatten", make.conv("faces", 3, 2, size=130))


def two(make: Maker) -> str:
    make.nodes.append(helper.make_node("Add", ["faces", "other"], ["sum"]))
    return make.add("Flatten", "sum")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (sigmoid, r"its layer v1 \(Sigmoid\) is of an unknown kind"),
        (reverse, r"its layer v0 \(Sub\) is of an unknown kind"),
        (oblique, r"its layer v0 \(Conv\) pads its sides differently"),
        (same, r"its layer v0 \(Conv\) pads its sides differently"),
        (spatial, "no layer flattens or pools a feature map"),
        (large, r"does not run on input \[1, 3, 112, 112\]"),
        (two, r"its layer sum \(Add\) takes other, which no earlier layer gives"),
    ],
)
def test_other_graphs_are_refused_by_layer(
    build: Callable[[Maker], str], message: str, tmp_path: Path
) -> None:
    make = Maker()
    path = make.write(tmp_path / "other.onnx", build(make))
    with pytest.raises(UserError, match=message):
        read_trunk(path)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is damaged or not an ONNX file"):
        start_network(str(tmp_path / "junk.onnx"))
    path, _ = every_layer(tmp_path / "made.onnx")
    with pytest.raises(UserError, match="is a onnx:made network, not MFN; remove --backbone"):
        start_network(str(path), "MFN")


def test_without_the_package_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = every_layer(tmp_path / "made.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="needs the package onnx: pip install onnx"):
        read_trunk(path)


def test_a_checkpoint_without_its_description_is_refused(tmp_path: Path) -> None:
    start = start_network(str(every_layer(tmp_path / "made.onnx")[0]))
    path = tmp_path / "q.pth"
    about = describe_network(start.backbone, start.network)

    def refused(message: str, **change: Any) -> None:
        save_network(path, start.network, {**about, **change})
        with pytest.raises(UserError, match=message):
            load_quality_model(path, device="cpu")
        with pytest.raises(UserError, match=message):
            start_network(str(path))

    layers = [dict(layer) for layer in about["graph"]["layers"]]
    refused("does not describe a working network", graph={"layers": layers})
    other = [{**layers[0], "op": "Loop"}, *layers[1:]]
    refused("does not describe a working network", graph={**about["graph"], "layers": other})
    ahead = [{**layers[0], "inputs": [5]}, *layers[1:]]
    refused("does not describe a working network", graph={**about["graph"], "layers": ahead})
    wide = {**layers[0], "settings": {**layers[0]["settings"], "stride": -1}}
    refused(
        "does not describe a working network",
        graph={**about["graph"], "layers": [wide, *layers[1:]]},
    )
    settings = {"num_features": about["graph"]["map"][0], "eps": 1e-5, "momentum": 0.1}
    more = {"op": "BatchNormalization", "inputs": [len(layers)], "settings": settings}
    refused(
        "does not fit the .json next to it: missing: ",
        graph={**about["graph"], "layers": [*layers, more]},
    )
    save_network(path, start.network, about)
    with pytest.raises(UserError, match="is a onnx:made network, not the MFN that was asked for"):
        load_network(path, recognition=False, backbone="MFN")
    with pytest.raises(UserError, match="with a quality head; a recognition head is needed"):
        load_network(path, recognition=True)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"came from an ONNX file.*put that file next to it"):
        load_quality_model(path, device="cpu")
