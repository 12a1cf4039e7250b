"""The library: a photo in, scored faces out; without torch."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdd_fiqa
from dataset.lists import table_of
from dataset.photo_faces import PhotoFaces
from evaluation.scoring import score, score_turned
from sdd_fiqa import alignment
from sdd_fiqa.__main__ import command
from sdd_fiqa.assets import fetch
from sdd_fiqa.calibration import ScoreInterpretation
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.quality_onnx import SHIPPED, load_onnx_model
from sdd_fiqa.scorer import Face, Scorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos() -> list[Any]:
    """Three photos with one ORL face each, and one with two: (H, W, 3) uint8."""
    try:
        folder = fetch("orl")
        fetch("yunet")
    except UserError as error:
        pytest.skip(str(error))
    faces = [np.asarray(Image.open(folder / f"s{i}" / "1.pgm")) for i in (1, 2, 5)]
    single = [np.repeat(np.pad(face, 40)[:, :, None], 3, axis=2) for face in faces]
    return [*single, np.concatenate(single[:2], axis=1)]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return sdd_fiqa.load(device="cpu", threads=2)


def values(faces: Any) -> list[Any]:
    assert isinstance(faces, list)
    return [(face.score, face.box, face.detector_score) for face in faces]


def png(photo: Any, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png", **more)
    return file.getvalue()


def test_every_form_of_a_photo_gives_the_same_faces(
    scorer: Scorer, photos: list[Any], tmp_path: Path
) -> None:
    photo = photos[3]
    path = tmp_path / "two.png"
    path.write_bytes(png(photo))
    faces = scorer(photo)
    assert (
        len(faces) == 2 and faces[0].box[2] * faces[0].box[3] >= faces[1].box[2] * faces[1].box[3]
    )
    forms = path, str(path), path.read_bytes(), Image.open(path), Image.fromarray(photo)
    for form in forms:
        assert values(scorer(form)) == values(faces)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored turned by 90 degrees to the left
    sideways = np.rot90(photo).copy()
    for form in (png(sideways, exif=turned), Image.open(io.BytesIO(png(sideways, exif=turned)))):
        assert values(scorer(form)) == values(faces)
    assert len(scorer(Image.fromarray(photo).convert("LA"))) == 2


@pytest.mark.parametrize("most", [None, 1])
def test_photos_that_lie_are_turned_as_eval_does(
    scorer: Scorer, photos: list[Any], most: int | None, tmp_path: Path
) -> None:
    upright = scorer(photos[3], most)
    assert [face.turned for face in upright] == [0] * len(upright) and upright
    for lies in (90, 180, 270):
        lying = np.ascontiguousarray(np.rot90(photos[3], lies // 90))
        (tmp_path / f"{lies}.png").write_bytes(png(lying))
        found = scorer(lying, most)
        assert [face.turned for face in found] == [lies] * len(upright)
        for face, other in zip(found, upright, strict=True):
            assert face.score == pytest.approx(other.score, abs=5)
    table = table_of(iter(sorted(map(str, tmp_path.glob("*.png")))), tmp_path / "list.txt")
    faces = PhotoFaces(table, all_faces=most is None, batch_size=8)
    network = load_onnx_model(SHIPPED["small"], "cpu")
    meaning = ScoreInterpretation.of(network.calibration, "small", False, None)
    rows = score_turned(faces, score(faces, len(table), network)[0], network, meaning)[0].values
    found = [face for path in table.paths() for face in scorer(path, most)]
    assert [face.score for face in found] == pytest.approx(rows.tolist(), abs=0.01)
    boxes = faces.kept["place"][:, :4]
    np.testing.assert_allclose([face.box for face in found], boxes, atol=0.01)


def test_a_face_holds_its_crop_score_and_percentile(scorer: Scorer, photos: list[Any]) -> None:
    (face,) = scorer(photos[0])
    assert face.crop.shape == (112, 112, 3) and face.landmarks.shape == (5, 2)
    assert scorer.score(face.crop[None])[0] == pytest.approx(face.score, abs=1e-3)
    assert face.percentile is not None and 0 <= face.percentile <= 100
    share = 1 - face.percentile / 100
    assert face.accepted(min(1.0, share + 0.01)) and not face.accepted(max(1e-6, share - 0.01))
    with pytest.raises(UserError, match="share 95: must be above 0 and at most 1"):
        face.accepted(95)
    assert scorer(np.zeros((200, 300, 3), np.uint8)) == []


def test_many_photos_come_in_their_order_and_bad_ones_end_nothing(
    scorer: Scorer, photos: list[Any], tmp_path: Path
) -> None:
    many: list[Any] = [*photos, b"no image", tmp_path / "missing.jpg", *photos[::-1]] * 2
    found = list(scorer.map(iter(many)))
    assert len(found) == len(many)
    for photo, faces in zip(many, found, strict=True):
        if isinstance(photo, np.ndarray):
            assert values(faces) == values(scorer(photo))
        else:
            assert isinstance(faces, UnreadableImage)
            with pytest.raises(UnreadableImage, match=str(faces)):
                scorer(photo)
    (largest,) = scorer.map([photos[3]], most=1)
    assert isinstance(largest, list) and len(largest) == 1
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield photos[0]

    assert len(next(scorer.map(endless())) or []) == 1 and taken < 20  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got int"):
        list(scorer.map([3]))  # type: ignore[list-item]


def test_threads_share_a_scorer(scorer: Scorer, photos: list[Any]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scorer, photos * 2))
    assert [values(faces) for faces in found] == [values(scorer(photo)) for photo in photos] * 2


def test_other_arrays_and_types_are_refused(scorer: Scorer, photos: list[Any]) -> None:
    with pytest.raises(TypeError, match=r"\(H, W, 3\) uint8 RGB array, got dtype float64"):
        scorer(photos[0] / 255)
    with pytest.raises(ValueError, match=r"got shape \(192, 172\)"):
        scorer(photos[0][:, :, 0])
    with pytest.raises(UnreadableImage, match="convert it to RGB"):
        scorer(Image.fromarray(np.zeros((9, 9), np.float32)))
    with pytest.raises(UserError, match=r"no such file, and no shipped model \(small\)"):
        sdd_fiqa.load("large")
    with pytest.raises(UserError, match="most 0: must be 1 or more"):
        scorer(photos[0], most=0)
    with pytest.raises(UserError, match="threads 0: must be 1 or more"):
        sdd_fiqa.load(threads=0)
    with pytest.raises(UserError, match="is not a file; name a YuNet"):
        sdd_fiqa.load(detector="none.onnx")


def test_aligned_faces_need_no_detector_and_its_lack_is_explained(
    monkeypatch: pytest.MonkeyPatch, make_face: Callable[[int, int], Any]
) -> None:
    def refuse(name: str) -> Path:
        raise UserError(f"{name}: no network")

    monkeypatch.setattr(alignment, "fetch", refuse)
    scorer = sdd_fiqa.load(device="cpu")
    crops = np.stack([make_face(0, image) for image in range(3)])
    scores = scorer.score(crops)
    assert scores.shape == (3,) and scores.dtype == np.float32
    with pytest.raises(UserError, match="no network; or run `python -m sdd_fiqa --fetch`"):
        scorer(crops[0])


def test_a_model_without_calibration_scores_and_accepts_nothing(
    photos: list[Any], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(SHIPPED["small"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "own.onnx")
    (face,) = sdd_fiqa.load(tmp_path / "own.onnx", device="cpu")(photos[0])
    assert isinstance(face, Face) and face.percentile is None and np.isfinite(face.score)
    with pytest.raises(UserError, match="has no calibration"):
        face.accepted(0.95)


def without_torch(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    (folder / "hook" / "torch").mkdir(parents=True, exist_ok=True)
    (folder / "hook" / "torch" / "__init__.py").write_text("raise ImportError('no torch here')")
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder / 'hook'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_prints_a_row_for_each_face(
    scorer: Scorer,
    photos: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, photo in {"a.png": photos[0], "=b.png": photos[3]}.items():
        (tmp_path / name).write_bytes(png(photo))
    (tmp_path / "empty.png").write_bytes(png(np.zeros((99, 99, 3), np.uint8)))
    names = "a.png", "missing.jpg", "empty.png", "=b.png"
    done = without_torch(tmp_path, "-m", "sdd_fiqa", *names)
    assert done.returncode == 3, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    paths = ["a.png#1", "missing.jpg", "empty.png", "./=b.png#1", "./=b.png#2"]
    assert [row["path"] for row in rows] == paths
    assert [row["status"] == "ok" for row in rows] == [True, False, False, True, True]
    assert rows[2]["status"] == "no face" and rows[1]["score"] == ""
    assert float(rows[0]["score"]) == pytest.approx(scorer(photos[0])[0].score, abs=1e-3)
    monkeypatch.chdir(tmp_path)
    assert command(["a.png"]) == command(["--fetch"]) == 0
    with pytest.raises(SystemExit, match="2"):
        command([])
    capsys.readouterr()
    assert command(["a.png", "--model", "none.onnx"]) == 1
    assert capsys.readouterr().err.startswith("error: none.onnx: no such file")


def test_import_changes_nothing_and_loads_no_array_library(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        import sdd_fiqa
        assert "numpy" not in sys.modules
        import cv2  # sets variables of its own
        before = dict(os.environ), signal.getsignal(signal.SIGINT), cv2.getNumThreads()
        sdd_fiqa.load
        assert "onnxruntime" not in sys.modules
        assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), cv2.getNumThreads())
    """
    done = without_torch(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_library_runs_without_what_windows_lacks(photos: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(photos[0]))
    (tmp_path / "folder").mkdir()
    code = """if True:
        import os, sys
        from pathlib import Path
        import cv2, numpy, onnxruntime  # they look at the system
        sys.modules["fcntl"] = None
        lacking = "uname", "pread", "preadv", "O_CLOEXEC", "O_NONBLOCK", "sched_getaffinity", "fork"
        for name in lacking:
            delattr(os, name)
        plain = os.open
        def without_folders(path, *more, **options):
            if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
                raise PermissionError(13, "Permission denied")
            return plain(path, *more, **options)
        def kill(process, number):
            raise AssertionError("this would stop the process")
        os.open, os.kill = without_folders, kill
        import sdd_fiqa
        from sdd_fiqa.errors import UnreadableImage
        from sdd_fiqa.files import lock_folder, replacing, scratch_folder
        with lock_folder(Path("cache"), wait=True), scratch_folder(Path("cache")) as scratch:
            Path("cache/.a.00000000.1.0.tmp").touch()
            with replacing(scratch / "a") as file:
                file.write("a")
            os.replace(scratch / "a", "cache/a")
        scorer = sdd_fiqa.load(device="cpu")
        print(len(scorer("a.png")), os.listdir("cache").count("a"))
        import signal
        from sdd_fiqa.__main__ import command
        del signal.SIGHUP
        sys.argv = ["sdd-fiqa", "nowhere.png"]
        assert command() == 3  # prints its header and a row
        try:
            scorer("folder")
        except UnreadableImage as error:
            print(error)
    """
    done = without_torch(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2][:12], lines[3]) == ("1 1", "nowhere.png,", "Permission denied")
