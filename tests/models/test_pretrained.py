"""The model that comes with the project: small, whole, offline, and sane on pictures made here."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from models import QualityModel, load_quality_model
from models.networks import FaceModel
from models.pretrained import DEFAULT_MODEL, PRETRAINED, find_model
from models.shrink import main as shrink
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json, sha256_of
from training.start import start_network

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Faces = npt.NDArray[np.uint8]

SHARED_FACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "lfw112-1.tar"


def drawn_face(blur: float = 0.0, noise: float = 0.0, seed: int = 0) -> Faces:
    """A crude face where the alignment template has one: enough for it to count as one."""
    import cv2

    rng = np.random.default_rng(seed)
    face: Any = np.full((112, 112, 3), (70, 90, 120), np.uint8)
    skin = tuple(int(v) for v in np.array([205, 160, 135]) + rng.integers(-25, 25, 3))
    cv2.ellipse(face, (56, 62), (40, 56), 0, 0, 360, skin, -1)
    for x in (38, 74):
        cv2.ellipse(face, (x, 52), (8, 4), 0, 0, 360, (245, 245, 245), -1)
        cv2.circle(face, (x, 52), 3, (40, 30, 25), -1)
        cv2.line(face, (x - 9, 43), (x + 9, 42), (60, 40, 30), 2)
    cv2.line(face, (56, 54), (54, 70), tuple(v - 40 for v in skin), 2)
    cv2.ellipse(face, (56, 73), (7, 3), 0, 0, 180, tuple(v - 60 for v in skin), 2)
    cv2.ellipse(face, (56, 92), (15, 5), 0, 0, 360, (170, 80, 80), -1)
    face = cv2.GaussianBlur(face, (0, 0), 1 + blur)
    return np.asarray(np.clip(face + rng.normal(0, 3 + noise, face.shape), 0, 255), np.uint8)


def test_its_files_are_whole_small_and_described() -> None:
    for path in PRETRAINED.values():
        about = read_json(path.with_suffix(".json"))
        assert about["sha256"] == sha256_of(path)
        assert path.stat().st_size + path.with_suffix(".json").stat().st_size <= 8e6
        assert about["calibration"] is not None
        assert sha256_of(path) in (Path(__file__).parents[2] / "docs/model.md").read_text()


def test_a_precision_by_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="--precision float32: must be one of auto, fp32, bf16"):
        # As somebody without a type checker might.
        load_quality_model("small", precision="float32")  # type: ignore[arg-type]


def test_unknown_names_are_told_the_known_ones() -> None:
    assert find_model(DEFAULT_MODEL) == PRETRAINED[DEFAULT_MODEL]
    with pytest.raises(
        UserError, match=r"--model smal: no such file, and no shipped model \(small\)"
    ):
        find_model("smal")


def test_it_ranks_drawn_faces_and_no_faces() -> None:
    model = load_quality_model(DEFAULT_MODEL, precision="fp32")
    good = model(np.stack([drawn_face(seed=seed) for seed in range(8)]))
    for worse in ({"blur": 6.0}, {"noise": 90.0}):
        bad = model(np.stack([drawn_face(**worse, seed=seed) for seed in range(8)]))
        assert np.all(bad < good)
    rng = np.random.default_rng(0)
    assert model(rng.integers(0, 256, (8, 112, 112, 3), np.uint8)).max() < good.min()


@pytest.mark.skipif(SHARED_FACES.exists(), reason="the real faces are there: the next test")
def test_half_precision_keeps_the_order() -> None:
    rng = np.random.default_rng(1)
    faces = np.stack(
        [drawn_face(rng.uniform(0, 5), rng.uniform(0, 60), seed) for seed in range(60)]
    )
    full = load_quality_model(DEFAULT_MODEL, precision="fp32")(faces)
    half = load_quality_model(DEFAULT_MODEL, precision="bf16")(faces)
    # Drawn faces lie close together at the bottom of the scale, where bf16's steps are ranks.
    assert spearmanr(full, half).statistic >= 0.997
    assert np.abs(full - half).mean() < 0.5


@pytest.mark.skipif(not SHARED_FACES.exists(), reason="needs ../shared")
def test_half_precision_keeps_the_order_of_real_faces() -> None:
    with tarfile.open(SHARED_FACES) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".jpg")][::70]
        files = [tar.extractfile(member) for member in members]
        faces = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files if file])
    assert len(faces) > 80
    full = load_quality_model(DEFAULT_MODEL, precision="fp32")(faces)
    half = load_quality_model(DEFAULT_MODEL, precision="bf16")(faces)
    assert spearmanr(full, half).statistic >= 0.999


def test_eval_takes_it_without_being_told(run_script: Run, tmp_path: Path) -> None:
    import cv2

    (tmp_path / "faces").mkdir()
    for seed, blur in enumerate((0, 6)):
        cv2.imwrite(str(tmp_path / f"faces/{seed}.png"), drawn_face(blur, seed=1)[:, :, ::-1])
    done = run_script("eval.py", "faces", "--accept", "0.95", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "scores.csv").read_text().splitlines()
    good, bad = (float(row.split(",")[1]) for row in rows[1:])
    assert good > bad
    assert "accept 0.95: threshold" in done.stdout
    exported = run_script("export_onnx.py", "--model", "small", "--out", "small.onnx", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    faces = np.stack([drawn_face(seed=1), drawn_face(6, seed=1)])
    scores = load_quality_model(tmp_path / "small.onnx")(faces)
    assert scores == pytest.approx([good, bad], abs=0.5)  # eval.py may have used bf16


def test_on_a_cpu_its_onnx_file_is_used_but_not_for_bf16() -> None:
    for device in ("cpu", "auto"):
        if device == "cpu" or not torch.cuda.is_available():
            assert load_quality_model("small", device=device).name == "small.onnx (onnx:sface)"
    half = load_quality_model("small", device="cpu", precision="bf16")
    assert half.name == "small.pth (onnx:sface)"


def test_shrinking_halves_and_keeps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        shrink(model=tmp_path / "none.pth", out=tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"the list of its layers is in the \.json"):
        lonely = tmp_path / "lonely.pth"
        lonely.write_bytes(PRETRAINED[DEFAULT_MODEL].read_bytes())
        shrink(model=lonely, out=tmp_path / "x.pth")
    for out in (tmp_path / "again", tmp_path / "again.json"):
        with pytest.raises(UserError, match=r"must end in \.pth"):
            shrink(model=PRETRAINED[DEFAULT_MODEL], out=out)
    with pytest.raises(UserError, match="is the file of --model"):
        shrink(model=PRETRAINED[DEFAULT_MODEL], out=PRETRAINED[DEFAULT_MODEL])
    assert shrink(model=PRETRAINED[DEFAULT_MODEL], out=tmp_path / "again.pth") == 0
    faces = np.stack([drawn_face(seed=seed) for seed in range(3)])
    one = load_quality_model(PRETRAINED[DEFAULT_MODEL], precision="fp32")(faces)
    other = load_quality_model(tmp_path / "again.pth", precision="fp32")(faces)
    assert np.array_equal(one, other)
    big = read_json(PRETRAINED[DEFAULT_MODEL].with_suffix(".json"))
    assert read_json(tmp_path / "again.json")["calibration"] == big["calibration"]


def test_a_training_starts_from_it_as_it_is() -> None:
    faces = np.stack([drawn_face(seed=seed) for seed in range(3)])
    started = FaceModel(start_network("small").network).eval()
    with torch.no_grad():
        scores = started(torch.from_numpy(faces))[:, 0].numpy()
    whole = load_quality_model(PRETRAINED["small"], device="cpu", precision="fp32")(faces)
    assert scores == pytest.approx(whole, abs=1e-3)


def test_a_call_brings_more_faces_than_suit_the_device() -> None:
    seen = []

    def run(faces: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.float32]]:
        seen.append(len(faces))
        return lambda: faces[:, 0, 0, 0].astype(np.float32)

    faces = np.zeros((10, 112, 112, 3), np.uint8)
    faces[:, 0, 0, 0] = np.arange(10)
    assert QualityModel("made up", None, 4, run)(faces).tolist() == list(range(10))
    assert seen == [4, 4, 2]
