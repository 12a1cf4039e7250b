"""The ONNX file, and the Python call over both kinds of model."""

import copy
import io
import json
import os
import pickle
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import export_onnx
from dataset.faces import Faces
from dataset.images import read_image
from dataset.lists import table_of
from evaluation.scoring import score
from models import load_quality_model
from models.networks import FaceModel, build_network
from models.onnx_export import OPSET, onnx_bytes, quantised, with_half_weights
from models.pretrained import PRETRAINED
from models.state_dicts import read_state
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = {
    "faces": 500,
    "percentiles": [float(mark) for mark in np.linspace(20, 80, 101)],
    "thresholds": [{"discard": 0.05, "score": 23.0}],
}


def patterns(count: Any, seed: Any = 0) -> Any:
    """(N, 112, 112, 3) uint8: smooth colours, of every contrast."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 7, 7, 3)).astype(np.float32)
    contrast = np.linspace(0.1, 1, count)[:, None, None, None]
    even = 128 + (coarse - 128) * contrast
    fine = [cv2.resize(one, (112, 112), interpolation=cv2.INTER_CUBIC) for one in even]
    return np.clip(fine, 0, 255).astype(np.uint8)


def lively(backbone: str) -> Any:
    """A network of random weights whose scores spread around 50 by 15, as a trained one's do."""
    return copy.deepcopy(_lively(backbone, 12))


@lru_cache(1)
def _lively(backbone: str, faces: int) -> Any:
    torch.manual_seed(3)
    network: Any = build_network(backbone)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics: the mean over the passes below
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.2, 0.9)
    with torch.inference_mode():
        for seed in range(3):
            FaceModel(network.train())(torch.from_numpy(patterns(faces, seed)))
        raw = FaceModel(network.eval())(torch.from_numpy(patterns(faces)))
        head = network.quality[3]
        growth = 15 / raw.std()
        head.bias.copy_(50 - (raw.mean() - head.bias) * growth)
        head.weight.mul_(growth)
    return network


@pytest.fixture(scope="session")
def made(tmp_path_factory: Any, run_script: Any) -> Any:
    """A folder with an MFN checkpoint, its .json with a calibration, and its export."""
    folder = tmp_path_factory.mktemp("export")
    torch.save(lively("MFN").state_dict(), folder / "mfn.pth")
    about = {"sha256": sha256_of(folder / "mfn.pth"), "calibration": CALIBRATION}
    (folder / "mfn.json").write_text(json.dumps(about))
    done = run_script("export_onnx.py", "--model", "mfn.pth", "--out", "mfn.onnx", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mfn.onnx: MFN,")
    return folder


def test_export_scores_as_torch_does(made: Any) -> None:
    faces = patterns(9, seed=1)
    by_torch = load_quality_model(made / "mfn.pth", device="cpu", precision="fp32")(faces)
    session = onnxruntime.InferenceSession(str(made / "mfn.onnx"))
    assert by_torch.std() > 5
    for count in (1, 2, 9):
        scores = session.run(["scores"], {"faces": faces[:count]})[0]
        assert scores.shape == (count,) and scores.dtype == np.float32
        np.testing.assert_allclose(scores, by_torch[:count], atol=0.01)
    assert session.run(None, {"faces": faces[:0]})[0].shape == (0,)


def test_export_of_r_50_scores_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few of its units, which are all alike: the whole takes 20 s."""
    monkeypatch.setattr("models.backbones.ir.UNITS", (1, 2, 1, 1))
    # Not kept: the other tests take the small network, which is.
    network, faces = _lively.__wrapped__("R_50", 3), patterns(3, seed=1)
    with torch.inference_mode():
        by_torch = FaceModel(network)(torch.from_numpy(faces))[:, 0].numpy()
    session = onnxruntime.InferenceSession(onnx_bytes(network, {}))
    assert by_torch.std() > 5
    np.testing.assert_allclose(session.run(None, {"faces": faces})[0], by_torch, atol=0.01)


@pytest.mark.parametrize("slopes", [torch.linspace(-2, 2, 64), torch.full((64,), -1.0)])
def test_export_scales_instead_of_prelu(slopes: torch.Tensor) -> None:
    network = lively("MFN")
    network.conv1.prelu.weight.data.copy_(slopes)
    faces = patterns(4, seed=2)
    with torch.inference_mode():
        by_torch = FaceModel(network)(torch.from_numpy(faces))[:, 0].numpy()
    content = onnx_bytes(network, {})
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert "PRelu" not in kinds
    scores = onnxruntime.InferenceSession(content).run(None, {"faces": faces})[0]
    np.testing.assert_allclose(scores, by_torch, atol=0.01)
    assert isinstance(network.conv1.prelu, nn.PReLU)  # the network itself stays as it was


def test_export_says_what_it_is(made: Any) -> None:
    model = onnx.load(made / "mfn.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["model"] == "MFN" and about["source"] == "mfn.pth"
    assert about["sha256"] == json.loads((made / "mfn.json").read_text())["sha256"]
    assert json.loads(about["calibration"]) == CALIBRATION
    assert "uint8 RGB" in about["input"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    (wants,) = model.graph.input
    assert wants.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_value for axis in wants.type.tensor_type.shape.dim][1:] == [112, 112, 3]
    assert load_quality_model(made / "mfn.onnx").calibration == CALIBRATION


def test_opencv_runs_the_export(made: Any) -> None:
    faces = patterns(3, seed=4)
    network = cv2.dnn.readNetFromONNX(str(made / "mfn.onnx"))
    network.setInput(faces)
    expected = load_quality_model(made / "mfn.onnx")(faces)
    np.testing.assert_allclose(np.ravel(network.forward()), expected, atol=0.01)


def test_exporting_twice_gives_the_same_file(made: Any, tmp_path: Any, run_script: Any) -> None:
    out = tmp_path / "b.onnx"
    done = run_script("export_onnx.py", "--model", "mfn.pth", "--out", out, cwd=made)
    assert done.returncode == 0
    assert out.read_bytes() == (made / "mfn.onnx").read_bytes()


def test_export_refuses_another_suffix_and_another_head(
    made: Any, tmp_path: Any, run_script: Any
) -> None:
    done = run_script("export_onnx.py", "--model", "mfn.pth", "--out", tmp_path / "a.pt", cwd=made)
    assert done.returncode == 1 and "must end in .onnx" in done.stderr
    torch.save(build_network("MFN", recognition=True).state_dict(), tmp_path / "rec.pth")
    done = run_script("export_onnx.py", "--model", "rec.pth", "--out", "a.onnx", cwd=tmp_path)
    assert done.returncode == 1 and "a quality head is needed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rec.pth"]


def test_export_that_scores_differently_is_refused(made: Any) -> None:
    content = (made / "mfn.onnx").read_bytes()
    assert export_onnx.compare(made / "mfn.pth", content, None, 0.01) < 0.01
    other = lively("MFN")
    other.quality[3].bias.data += 1
    with pytest.raises(UserError, match="the scores of its export differ by 1 points"):
        export_onnx.compare(made / "mfn.pth", onnx_bytes(other, {"model": "MFN"}), None, 0.01)


def test_export_names_the_package_it_needs(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install onnx"):
        onnx_bytes(build_network("MFN"), {})


def test_half_weights_halve_the_file_and_keep_scores_and_metadata(made: Any) -> None:
    content = (made / "mfn.onnx").read_bytes()
    half = with_half_weights(content)
    assert len(half) < 0.6 * len(content)
    model = onnx.load_from_string(half)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["precision"] == "float16 weights, computed in float32"
    assert json.loads(about["calibration"]) == CALIBRATION
    faces = patterns(12, seed=6)
    exact, rounded = (export_onnx.scores_of(file, faces) for file in (content, half))
    assert 0 < np.abs(exact - rounded).max() < 0.2  # random weights amplify more than trained ones


def test_half_weights_that_do_not_fit_are_refused() -> None:
    network = lively("MFN")
    network.quality[3].weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match="do not fit float16; leave out --half"):
        with_half_weights(onnx_bytes(network, {}))


def test_half_and_int8_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--half and --int8-faces exclude each other"):
        export_onnx.main(model="small", out=tmp_path / "a.onnx", half=True, int8_faces="faces")


def test_shipped_onnx_file_scores_as_the_checkpoint_does() -> None:
    shipped = ROOT / "sdd_fiqa" / "small.onnx"
    assert shipped.stat().st_size < 8e6
    faces = patterns(8, seed=7)
    by_torch = load_quality_model(PRETRAINED["small"], device="cpu", precision="fp32")
    by_onnx = load_quality_model(shipped, device="cpu")
    np.testing.assert_allclose(by_onnx(faces), by_torch(faces), atol=0.05)
    assert by_onnx.calibration == by_torch.calibration


def test_int8_follows_and_keeps_the_metadata(made: Any) -> None:
    content = (made / "mfn.onnx").read_bytes()
    greys = np.linspace(0, 255, 40).astype(np.uint8)
    faces = np.broadcast_to(greys[:, None, None, None], (40, 112, 112, 3)).copy()
    small = quantised(content, faces[::2])
    assert len(small) < 0.5 * len(content)
    model = onnx.load_from_string(small)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["model"] == "MFN" and about["precision"] == "int8 convolutions"
    assert json.loads(about["calibration"]) == CALIBRATION
    exact, rough = (export_onnx.scores_of(file, faces[1::2]) for file in (content, small))
    # Random weights are no trained network: int8 follows them roughly only.
    assert 0.8 < np.corrcoef(exact, rough)[0, 1] < 1


def test_int8_is_refused_where_it_does_not_hold(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (made / "mfn.onnx").read_bytes()
    for row, pixels in enumerate(patterns(24, seed=9)):
        cv2.imwrite(str(tmp_path / f"{row:02}.png"), pixels)
    (tmp_path / "bad.jpg").touch()
    with pytest.raises(UserError, match="has 24 readable faces; 100 are needed"):
        export_onnx.in_int8(content, str(tmp_path))
    monkeypatch.setattr(export_onnx, "FEWEST_FACES", 24)
    with pytest.raises(UserError, match=r"int8 needs a Spearman of 0\.999"):
        export_onnx.in_int8(content, str(tmp_path))  # random weights lose their order in int8
    monkeypatch.setattr(export_onnx, "MIN_SPEARMAN", -1)
    _, held = export_onnx.in_int8(content, str(tmp_path))
    assert held.startswith("int8 against float32 on 12 faces: Spearman ")


def test_onnx_scoring_does_not_import_torch(made: Any, tmp_path: Any, run_script: Any) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch is not for today')")
    cv2.imwrite(str(tmp_path / "a.png"), patterns(1)[0])
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = run_script("eval.py", "a.png", "--model", made / "mfn.onnx", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    float(done.stdout)
    done = run_script("eval.py", "a.png", "--model", made / "mfn.pth", cwd=tmp_path, env=env)
    assert "torch is not for today" in done.stderr  # so torch was indeed out of reach


@pytest.fixture(scope="session", params=["mfn.pth", "mfn.onnx"])
def model(made: Any, request: Any) -> Any:
    return load_quality_model(made / request.param, device="cpu", precision="fp32")


def test_what_is_begun_may_be_asked_for_twice(model: Any) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    scores = model.begin(faces)
    assert np.array_equal(scores(), scores())


def test_call_takes_both_layouts_arrays_and_tensors(model: Any) -> None:
    faces = patterns(19, seed=5)
    scores = model(faces)
    assert scores.shape == (19,) and scores.dtype == np.float32
    same = [
        faces.transpose(0, 3, 1, 2),
        torch.from_numpy(faces),
        torch.from_numpy(faces).permute(0, 3, 1, 2),
        list(faces),
    ]
    for form in same:
        np.testing.assert_array_equal(model(form), scores)
    np.testing.assert_allclose(model(faces[::-1])[::-1], scores, atol=1e-3)
    np.testing.assert_allclose(model(faces[:1]), scores[:1], atol=1e-3)
    assert model(faces[:0]).shape == (0,)
    assert np.abs(model(faces[..., ::-1]) - scores).max() > 1  # BGR is another picture


@pytest.mark.filterwarnings("error")
def test_call_takes_pixels_that_cannot_be_written(model: Any) -> None:
    faces = patterns(2)  # as numpy sees an image of PIL
    faces.flags.writeable = False
    assert model(faces).shape == (2,)


@pytest.mark.parametrize(
    ("form", "error", "words"),
    [
        (lambda x: x.astype(np.float32), TypeError, "got dtype float32"),
        (lambda x: torch.from_numpy(x).float() / 255, TypeError, "normalises them itself"),
        (lambda x: torch.from_numpy(x).bfloat16(), TypeError, "got dtype bfloat16"),
        (lambda x: x.astype(np.int64), TypeError, "got dtype int64"),
        (lambda x: x[0], ValueError, r"one face is faces\[None\]"),
        (lambda x: x[..., 0], ValueError, r"got shape \(2, 112, 112\)"),
        (lambda x: x[..., :1], ValueError, r"got shape \(2, 112, 112, 1\)"),
        (lambda x: np.concatenate([x, x[..., :1]], 3), ValueError, r"112, 112, 4\)"),
        (lambda x: x[:, ::2, ::2], ValueError, r"got shape \(2, 56, 56, 3\)"),
        (lambda x: x.transpose(0, 1, 3, 2), ValueError, r"got shape \(2, 112, 3, 112\)"),
    ],
)
def test_call_refuses_other_forms_and_names_the_right_ones(
    model: Any, form: Any, error: Any, words: Any
) -> None:
    with pytest.raises(error, match=words) as raised:
        model(form(patterns(2)))
    assert "(N, 112, 112, 3) or (N, 3, 112, 112)" in str(raised.value)


def test_loading_refuses_what_is_no_quality_model(made: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="no such file, and no shipped model"):
        load_quality_model(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a MFN network, not the R_50"):
        load_quality_model(made / "mfn.onnx", backbone="R_50")
    with pytest.raises(UserError, match="precision it was made in"):
        load_quality_model(made / "mfn.onnx", precision="bf16")
    with pytest.raises(UserError, match="must be auto, cpu, cuda"):
        load_quality_model(made / "mfn.onnx", device="gpu")
    (tmp_path / "text.onnx").write_text("this is no network")
    with pytest.raises(UserError, match="is not an ONNX network"):
        load_quality_model(tmp_path / "text.onnx")
    floats = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 112, 112])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 112, 112])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [floats], [out]
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=6), tmp_path / "r.onnx")
    with pytest.raises(UserError, match=r"make it with export_onnx\.py"):
        load_quality_model(tmp_path / "r.onnx")


def test_an_onnx_file_that_gives_no_score_for_each_face_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number for a batch, or a batch that it does not take."""
    monkeypatch.setattr("sdd_fiqa.quality_onnx._SMALL", 0)  # several faces a run, as large files
    faces = onnx.helper.make_tensor_value_info("faces", onnx.TensorProto.UINT8, ["N", 112, 112, 3])
    out = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [None])
    opset = [onnx.helper.make_opsetid("", 13)]
    floats = onnx.helper.make_node("Cast", ["faces"], ["x"], to=onnx.TensorProto.FLOAT)
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [1])
    for name, nodes in (
        ("mean", [onnx.helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]),
        ("one", []),
    ):
        last = onnx.helper.make_node(
            "Reshape", [nodes[-1].output[0] if nodes else "x", "shape"], ["scores"]
        )
        graph = onnx.helper.make_graph([floats, *nodes, last], "g", [faces], [out], [shape])
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(model, tmp_path / f"{name}.onnx")
    several = np.zeros((2, 112, 112, 3), np.uint8)
    with pytest.raises(UserError, match=r"mean\.onnx: gives \(1,\) for 2 faces"):
        load_quality_model(tmp_path / "mean.onnx", device="cpu")(several)
    with pytest.raises(UserError, match=r"one\.onnx: does not run on input \[2, 112, 112, 3\]"):
        load_quality_model(tmp_path / "one.onnx", device="cpu")(several)


def test_an_onnx_file_without_an_output_is_named(tmp_path: Path) -> None:
    faces = onnx.helper.make_tensor_value_info("faces", onnx.TensorProto.UINT8, ["N", 112, 112, 3])
    cast = onnx.helper.make_node("Cast", ["faces"], ["x"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([cast], "g", [faces], [])
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a\.onnx: .*it has no input or no output"):
        load_quality_model(tmp_path / "a.onnx", device="cpu")


class Hostile:
    def __reduce__(self) -> Any:
        return (os.system, ("touch ran_code",))


@pytest.mark.parametrize("wrapped", [False, True])
def test_hostile_checkpoint_runs_no_code_and_is_named(
    tmp_path: Path, wrapped: bool, run_script: Any
) -> None:
    if wrapped:
        torch.save({"state_dict": Hostile()}, tmp_path / "bad.pth")
        name, more = "eval.py", ["a.png"]
    else:
        (tmp_path / "bad.pth").write_bytes(pickle.dumps(Hostile()))
        name, more = "export_onnx.py", ["--out", "a.onnx"]
    cv2.imwrite(str(tmp_path / "a.png"), patterns(1)[0])
    done = run_script(name, *more, "--model", "bad.pth", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: bad.pth: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "bad.pth"]


def test_broken_checkpoints_are_named(made: Any, tmp_path: Any) -> None:
    content = (made / "mfn.pth").read_bytes()
    for name, part in (("cut", content[: len(content) // 2]), ("none", b""), ("text", b"hello\n")):
        path = tmp_path / f"{name}.pth"
        path.write_bytes(part)
        with pytest.raises(UserError, match=f"{name}.pth: "):
            load_quality_model(path)


def test_damaged_checkpoints_are_never_a_traceback(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    torch.save(tensors, buffer, _use_new_zipfile_serialization=False)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 5)] = rng.integers(0, 256, 5)
        (tmp_path / "a.pth").write_bytes(damaged[: rng.integers(1, len(whole))].tobytes())
        try:
            read_state(tmp_path / "a.pth")
        except UserError:
            refused += 1
    assert refused > 100


def test_scores_do_not_depend_on_batch_order_or_workers(model: Any, tmp_path: Any) -> None:
    for row, face in enumerate(patterns(23, seed=6)):
        cv2.imwrite(str(tmp_path / f"{row:02}.png"), face)
    names = sorted(str(path) for path in tmp_path.glob("*.png"))

    def scores_of(paths: Any, batch_size: Any, workers: Any) -> Any:
        table = table_of(iter(paths), tmp_path / "list.txt")
        faces = Faces(table, batch_size, workers)
        scores, _ = score(faces, len(paths), model)
        return dict(zip(paths, scores.values.tolist(), strict=True))

    expected = scores_of(names, 23, 1)
    assert np.std(list(expected.values())) > 5
    for paths, batch_size, workers in [(names, 1, 1), (names[::-1], 7, 3), (names, 16, 2)]:
        assert scores_of(paths, batch_size, workers) == pytest.approx(expected, abs=1e-3)


def test_decoders_agree(made: Any, tmp_path: Any) -> None:
    """Pillow and OpenCV within 2 of 255 in every pixel, and 0.1 points in every score."""
    faces = []
    for row, face in enumerate(patterns(8, seed=7)):
        path = tmp_path / f"{row}.jpg"
        cv2.imwrite(str(path), face, [cv2.IMWRITE_JPEG_QUALITY, 90])
        faces.append((read_image(path), np.asarray(Image.open(path).convert("RGB"))))
    by_opencv, by_pillow = (np.stack(side) for side in zip(*faces, strict=True))
    assert np.abs(by_opencv.astype(int) - by_pillow).max() <= 2
    model = load_quality_model(made / "mfn.onnx")
    np.testing.assert_allclose(model(by_opencv), model(by_pillow), atol=0.1)
