"""ONNX recognisers of every description, and bf16; the other torch ones are in test_checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from common import device as compute_device
from common.device import Precision
from models import recognisers
from models.recognisers import MIN_COSINE, load_recogniser, without_prelu
from onnx_graphs import Maker
from sdd_fiqa.errors import UserError
from sdd_fiqa.onnx_runner import OnnxRunner

CELLS = 4 * 3  # mean of each colour over each quarter of the picture


def network(
    file: Path,
    shape: tuple[Any, ...] = ("N", 3, 112, 112),
    kind: str = "FLOAT",
    flat: bool = True,
    inputs: int = 1,
) -> Path:
    """A recogniser that can be checked by hand: mean values of the four quarters, by colour."""
    from onnx import TensorProto, helper

    element = getattr(TensorProto, kind)
    inside = TensorProto.FLOAT16 if kind == "FLOAT16" else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=inside),
        helper.make_node("AveragePool", ["f"], ["p"], kernel_shape=[56, 56], strides=[56, 56]),
    ]
    if flat:
        nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["p"], ["y"]))
    names = ["x", "second"][:inputs]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, element, shape) for name in names],
        [helper.make_tensor_value_info("y", inside, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(file))
    return file


def expected(
    faces: npt.NDArray[np.uint8], colour: str, mean: float, scale: float
) -> npt.NDArray[np.float64]:
    x = faces.astype(np.float64)
    if colour == "BGR":
        x = x[..., ::-1]
    x = (x.transpose(0, 3, 1, 2) - mean) / scale  # (B, 3, 112, 112)
    means: npt.NDArray[np.float64] = x.reshape(-1, 3, 2, 56, 2, 56).mean(axis=(3, 5))
    return means.reshape(-1, CELLS)


@pytest.fixture
def batch(make_face: Callable[[int, int], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.stack([make_face(identity, 0) for identity in range(5)])


def describe(file: Path, **fields: Any) -> None:
    file.with_suffix(".json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("colour", "mean", "scale"), [("RGB", 127.5, 128), ("BGR", 0, 1), ("BGR", 104.0, 57.5)]
)
def test_colours_and_scale_are_as_described_beside_it(
    tmp_path: Path, batch: Any, colour: str, mean: float, scale: float
) -> None:
    file = network(tmp_path / "tiny.onnx")
    describe(file, colour=colour, mean=mean, scale=scale, dimension=0)
    recogniser = load_recogniser(str(file), device="cpu")
    assert recogniser.dimension == CELLS
    found = recogniser.embed(batch)
    assert found.dtype == np.float32
    assert np.allclose(found, expected(batch, colour, mean, scale), rtol=1e-5, atol=1e-5)
    assert recogniser.about["preprocessing"] == {
        "colour": colour,
        "mean": mean,
        "scale": scale,
        "dimension": CELLS,
    }


def test_without_a_description_it_is_assumed_aloud(
    tmp_path: Path, batch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = network(tmp_path / "tiny.onnx")
    found = load_recogniser(str(file)).embed(batch)
    assert np.allclose(found, expected(batch, "RGB", 127.5, 127.5), atol=1e-5)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "tiny.onnx: assumed to take RGB, (x - 127.5) / 127.5; if not, write colour" in said


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 112, 112),
        (2, 3, 112, 112),
        (5, 3, 112, 112),
        (8, 3, 112, 112),
        (None, 3, None, None),
        ("batch", "channel", "height", "width"),
    ],
)
def test_fixed_and_open_batches_give_the_same_rows(
    tmp_path: Path, batch: Any, shape: tuple[Any, ...]
) -> None:
    recogniser = load_recogniser(str(network(tmp_path / "tiny.onnx", shape)), device="cpu")
    whole = recogniser.embed(batch)
    assert np.allclose(whole, expected(batch, "RGB", 127.5, 127.5), atol=1e-5)
    for size in (1, 2, 3):
        parts = [recogniser.embed(batch[start : start + size]) for start in range(0, 5, size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_half_precision_inputs(tmp_path: Path, batch: Any) -> None:
    found = load_recogniser(str(network(tmp_path / "tiny.onnx", kind="FLOAT16"))).embed(batch)
    assert found.dtype == np.float32
    assert np.allclose(found, expected(batch, "RGB", 127.5, 127.5), atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shape": ("N", 3, 96, 96)},
            r"takes tensor\(float\) \['N', 3, 96, 96\]; a recogniser takes",
        ),
        ({"shape": ("N", 112, 112, 3)}, r"a recogniser takes tensor\(float\) \[N, 3, 112, 112\]"),
        ({"shape": ("N", 1, 112, 112)}, r"takes tensor\(float\) \['N', 1, 112, 112\]"),
        ({"kind": "DOUBLE"}, r"takes tensor\(double\) .*; a recogniser takes tensor\(float\)"),
        ({"flat": False}, r"gives an output of shape \(1, 3, 2, 2\), not \(N, D\)"),
        ({"inputs": 2}, r"does not run on input \[1, 3, 112, 112\]"),
    ],
)
def test_networks_that_are_no_recogniser(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    file = network(tmp_path / "tiny.onnx", **options)
    with pytest.raises(UserError, match=message):
        load_recogniser(str(file), device="cpu")


def test_files_that_are_no_network(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    whole = network(tmp_path / "tiny.onnx").read_bytes()
    for content in (b"", b"text", bytes(99), whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.onnx: is not an ONNX network that can be run"):
            load_recogniser(str(file), device="cpu")
    with pytest.raises(
        UserError, match=r"--weights none: no such file, and no known name \(sface, w600k_mbf\)"
    ):
        load_recogniser("none")
    with pytest.raises(UserError, match="no such file"):
        load_recogniser(str(tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"colour": "rgb", "mean": 0, "scale": 1, "dimension": 0},
        {"colour": "RGB", "mean": 0, "scale": 0, "dimension": 0},
        {"colour": "RGB", "mean": "0a", "scale": 1, "dimension": 0},
        {"colour": "RGB", "mean": 0, "scale": None, "dimension": 0},
        {"colour": "RGB", "mean": 0, "scale": float("nan"), "dimension": 0},
        {"colour": "RGB", "mean": 0, "scale": 1},
        {"colour": "RGB", "mean": 0, "scale": 1, "dimension": 0, "size": 112},
        [1, 2],
        5,
    ],
)
def test_descriptions_that_do_not_describe(tmp_path: Path, fields: Any) -> None:
    file = network(tmp_path / "tiny.onnx")
    file.with_suffix(".json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"tiny\.json: must hold colour \(RGB or BGR\), mean, scal"):
        load_recogniser(str(file), device="cpu")


def test_a_dimension_that_is_not_the_networks(tmp_path: Path) -> None:
    file = network(tmp_path / "tiny.onnx")
    describe(file, colour="RGB", mean=0, scale=1, dimension=512)
    with pytest.raises(UserError, match=r"output of shape \(1, 12\), not \(N, 512\)"):
        load_recogniser(str(file), device="cpu")
    file.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match=r"tiny\.json: is not JSON"):
        load_recogniser(str(file), device="cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_devices_that_are_none(tmp_path: Path, device: str) -> None:
    with pytest.raises(UserError, match=f"--device {device}: must be auto, cpu, cuda or cuda:<in"):
        load_recogniser(str(network(tmp_path / "tiny.onnx")), device=device)


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--device cuda:99: this machine shows . GPUs to torch"):
        load_recogniser(str(network(tmp_path / "tiny.onnx")), device="cuda:99")


def embedder(path: Path, side: int = 112) -> Path:
    """A recogniser of layers that torch knows, down to a BatchNorm of the embedding."""
    make = Maker(("N", 3, side, side))
    x = make.conv("faces", 3, 8, strides=[4, 4], pads=[1, 1, 1, 1])
    x = make.norm(make.add("PRelu", x, np.abs(make.random(8, 1, 1))), 8)
    x = make.add("Flatten", make.add("Dropout", make.conv(x, 8, 4, strides=[4, 4])))
    x = make.add("Gemm", x, make.random(16, 4 * (side // 16) ** 2), make.random(16), transB=1)
    return make.write(path, make.norm(x, 16))


@pytest.mark.parametrize("slopes", [(8, 1, 1), (1, 1, 1), (28, 28), (1,)])
def test_prelu_runs_as_scales_of_channels(tmp_path: Path, batch: Any, slopes: Any) -> None:
    make = Maker()
    x = make.conv("faces", 3, 8, strides=[4, 4])
    x = make.add("PRelu", make.add("PRelu", x, 3 * make.random(*slopes)), 3 * make.random(8, 1, 1))
    file = make.write(tmp_path / "made.onnx", make.add("Flatten", x))
    content = without_prelu(file)
    assert content is not None
    kinds = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert "PRelu" not in kinds
    assert kinds.count("BatchNormalization") == (4 if slopes == (8, 1, 1) else 2)
    faces = batch.transpose(0, 3, 1, 2).astype(np.float32)
    plain, scaled = OnnxRunner(file, "cpu"), OnnxRunner(file, "cpu", content=content)
    np.testing.assert_allclose(scaled.run(faces), plain.run(faces), rtol=1e-5, atol=1e-4)


def test_a_file_without_prelu_runs_as_it_is(tmp_path: Path) -> None:
    assert without_prelu(network(tmp_path / "tiny.onnx")) is None
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    assert without_prelu(tmp_path / "damaged.onnx") is None


@pytest.mark.parametrize("bias", [(16,), (1, 16), (1,), None])
def test_biases_of_every_shape(tmp_path: Path, batch: Any, bias: Any) -> None:
    make = Maker()
    x = make.add("Flatten", make.conv("faces", 3, 4, strides=[16, 16]))
    size = 4 * 7 * 7
    added = [] if bias is None else [make.random(*bias)]
    file = make.write(tmp_path / "made.onnx", make.add("Gemm", x, make.random(size, 16), *added))
    exact = load_recogniser(str(file), device="cpu", precision="fp32").embed(batch)
    half = load_recogniser(str(file), device="cpu", precision="bf16")
    assert half.about["precision"] == "cpu bf16"
    assert np.abs(half.embed(batch) - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_in_torch_it_gives_what_onnxruntime_gives(tmp_path: Path, batch: Any, colour: str) -> None:
    file = embedder(tmp_path / "made.onnx")
    describe(file, colour=colour, mean=120.0, scale=60.0, dimension=16)
    exact = load_recogniser(str(file), device="cpu", precision="fp32")
    half = load_recogniser(str(file), device="cpu", precision="bf16")
    assert (exact.about["precision"], half.about["precision"]) == ("as the file", "cpu bf16")
    assert half.about["preprocessing"] == exact.about["preprocessing"]
    a, b = exact.embed(batch), half.embed(batch)
    assert a.shape == (5, 16) and b.dtype == np.float32
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    assert np.all(np.sum(a * b, axis=1) > MIN_COSINE * lengths)
    other = "RGB" if colour == "BGR" else "BGR"  # the colours do matter here
    describe(file, colour=other, mean=120.0, scale=60.0, dimension=16)
    turned = load_recogniser(str(file), device="cpu", precision="bf16").embed(batch)
    assert np.any(np.sum(a * turned, axis=1) < MIN_COSINE * lengths)


def test_known_recognisers_in_torch(batch: Any, fetched: Callable[[str], Path]) -> None:
    for name in ("sface", "w600k_mbf"):
        fetched(name)
        exact = load_recogniser(name, device="cpu", precision="fp32").embed(batch)
        half = load_recogniser(name, device="cpu", precision="bf16")
        assert half.about["precision"] == "cpu bf16"
        found = half.embed(batch)
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
        assert np.all(np.sum(exact * found, axis=1) > 0.99 * lengths)  # drawn faces: all alike


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_wrong_with_it_is_said_in_either_way(tmp_path: Path, precision: Any) -> None:
    file = embedder(tmp_path / "made.onnx")
    describe(file, colour="RGB", mean=0, scale=1, dimension=512)
    with pytest.raises(UserError, match=r"output of shape \(1, 16\), not \(N, 512\)"):
        load_recogniser(str(file), device="cpu", precision=precision)
    small = embedder(tmp_path / "small.onnx", 96)
    with pytest.raises(UserError, match=r"takes tensor\(float\) \['N', 3, 96, 96\]; a recogn"):
        load_recogniser(str(small), device="cpu", precision=precision)


@pytest.mark.parametrize("packed", [True, False])
def test_a_gpu_that_onnxruntime_cannot_use(
    packed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """onnxruntime without CUDA, or `packed` with it where CUDA's own libraries are missing."""
    import onnxruntime

    known = ["CPUExecutionProvider"] + ["CUDAExecutionProvider"] * packed
    session = onnxruntime.InferenceSession  # asked for a CUDA it cannot load, it takes the CPU
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *of, providers: session(*of, providers=["CPUExecutionProvider"]),
    )
    monkeypatch.setattr("sdd_fiqa.onnx_runner.nvidia_driver", lambda: True)
    path = network(tmp_path / "tiny.onnx")
    with pytest.raises(UserError, match="--device cuda:0: this onnxruntime has no CUDA, or not"):
        OnnxRunner(path, "cuda:0")
    OnnxRunner(path, "auto")
    assert "runs on the CPU: this onnxruntime has no CUDA" in caplog.text
    caplog.clear()
    monkeypatch.setattr("sdd_fiqa.onnx_runner.nvidia_driver", lambda: False)
    OnnxRunner(path, "auto")
    assert caplog.text == ""


def test_a_network_that_drifts_in_bf16_runs_in_float32(
    weights: dict[str, Path],
    make_face: Callable[[int, int], npt.NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compute_device, "_cpu_flags", lambda: {"avx512_bf16"})
    faces = np.stack([make_face(identity, 7) for identity in range(4)])
    path = str(weights["recognition"])  # random, with a last BatchNorm that blows rounding up

    def embeddings(precision: Precision) -> npt.NDArray[np.float32]:
        found = load_recogniser(path, "MFN", "cpu", precision, faces).embed(faces)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    half, full = embeddings("bf16"), embeddings("fp32")
    cosine = float(np.sum(half * full, axis=1).min())
    assert cosine < MIN_COSINE
    capsys.readouterr()
    assert np.array_equal(embeddings("auto"), full)
    assert "bf16 changes its embeddings too much; uses float32" in capsys.readouterr().err

    monkeypatch.setattr(recognisers, "MIN_COSINE", cosine - 0.01)
    assert np.array_equal(embeddings("auto"), half)
    assert capsys.readouterr().err == ""
