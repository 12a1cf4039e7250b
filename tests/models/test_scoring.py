"""eval.py over photos, bad input and calibrations, with a model whose scores are known: brightness.

The model is an ONNX file that gives the mean of a face's pixels, 0..255 turned into 0..100.
"""

import csv
import io
import json
import os
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import onnx
import pytest
import tyro
from onnx import TensorProto, helper

import eval as scoring
from dataset import photo_faces as photos
from dataset.faces import Faces
from dataset.find import find_images
from dataset.left_out import Skipped
from dataset.lists import read_table, table_of
from dataset.photo_faces import COLUMNS, PhotoFaces
from evaluation.scoring import score
from models import QualityModel, load_quality_model
from sdd_fiqa.alignment import TEMPLATE, DetectedFace, FaceAligner
from sdd_fiqa.assets import ASSETS, cache_folder
from sdd_fiqa.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED_PHOTOS = ROOT.parent / "shared" / "data" / "lfw_photos.tar"
CALIBRATION = {
    "faces": 1000,
    "percentiles": [float(mark) for mark in np.linspace(10, 90, 101)],
    "thresholds": [{"discard": 0.05, "score": 14.0}],
}


def brightness_model(path: Any, calibration: Any = None) -> Any:
    nodes = [
        helper.make_node("Cast", ["faces"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scores"]),
    ]
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [100 / 255])
    faces = helper.make_tensor_value_info("faces", TensorProto.UINT8, ["N", 112, 112, 3])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "brightness", [faces], [scores], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=6)
    if calibration is not None:
        model.metadata_props.add(key="calibration", value=json.dumps(calibration))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: Any) -> Any:
    return brightness_model(tmp_path_factory.mktemp("model") / "plain.onnx")


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: Any) -> Any:
    return brightness_model(tmp_path_factory.mktemp("model") / "calibrated.onnx", CALIBRATION)


def grey(path: Any, level: Any, size: Any = (112, 112)) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(".png", np.full((*size, 3), level, np.uint8))[1].tofile(path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs eval.py's command line in this process."""

    def run(*arguments: object, cwd: Path) -> Any:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        code, error = 1, ""
        try:
            code = tyro.cli(scoring.main, args=[*map(str, arguments)])
        except UserError as refused:
            error = f"error: {refused}\n"
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err + error)

    return run


def rows_of(path: Any) -> Any:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- the calibration ---------------------------------------------------------------------------


def test_percentile_and_accept_columns(tmp_path: Any, calibrated: Any, run: Any) -> None:
    for level in (0, 51, 102, 128, 255):  # scores 0, 20, 40, 50.2, 100
        grey(tmp_path / "faces" / f"{level:03}.png", level)
    (tmp_path / "faces" / "zero.png").touch()
    asked = ["--percentile", "--accept", "0.75", "--report", "page.html"]
    done = run("faces", "--model", calibrated, *asked, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "accept 0.75: threshold 30; reached by 3 of 5 scored faces" in done.stdout
    rows = rows_of(tmp_path / "scores.csv")
    assert list(rows[0]) == ["path", "score", "status", "percentile", "accept"]
    assert [row["percentile"] for row in rows] == ["0.0", "12.5", "37.5", "50.2", "100.0", ""]
    assert [row["accept"] for row in rows] == ["0", "0", "1", "1", "1", ""]
    page = (tmp_path / "page.html").read_text()
    assert "score 30 or higher, as 75 % of the calibration faces" in page
    assert "<dd>3</dd>" in page and "1,000 faces" in page
    done = run("faces/102.png", "--model", calibrated, *asked[:3], cwd=tmp_path)
    assert done.stdout == "40.00\tpercentile 37.5\taccept 1\n"
    assert done.stderr == "accept 0.75: threshold 30; reached by 1 of 1 scored face\n"


def test_scores_that_hardly_a_face_has_are_said(tmp_path: Any, calibrated: Any, run: Any) -> None:
    for number in range(9):
        grey(tmp_path / "faces" / f"{number}.png", 0 if number < 5 else 128)
    done = run("faces", "--model", calibrated, cwd=tmp_path)
    assert "most score below 99 % of the calibration faces" in done.stderr
    (tmp_path / "faces/0.png").unlink()
    done = run("faces", "--model", calibrated, cwd=tmp_path)
    assert "calibration faces" not in done.stderr


def test_without_asking_there_are_no_extra_columns(
    tmp_path: Any, calibrated: Any, run: Any
) -> None:
    grey(tmp_path / "a.png", 51)
    done = run("a.png", "--model", calibrated, "--out", "-", cwd=tmp_path)
    assert done.stdout == "path,score,status\na.png,20.0000,ok\n"


@pytest.mark.parametrize("asked", [["--percentile"], ["--accept", "0.95"]])
def test_model_without_calibration_says_how_to_make_one(
    tmp_path: Any, model: Any, asked: Any, run: Any
) -> None:
    grey(tmp_path / "a.png", 51)
    done = run("a.png", "--model", model, *asked, cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "scores.csv").exists()
    assert "plain.onnx" in done.stderr and "has no calibration" in done.stderr
    assert "--val-identities" in done.stderr and "python -m evaluation.calibration" in done.stderr


@pytest.mark.parametrize("share", ["0", "1.01", "95", "nan"])
def test_accept_takes_a_share(tmp_path: Any, calibrated: Any, share: Any, run: Any) -> None:
    grey(tmp_path / "a.png", 51)
    done = run("a.png", "--model", calibrated, "--accept", share, cwd=tmp_path)
    assert done.returncode == 1
    assert "must be above 0 and at most 1; 0.95 keeps 95 %" in done.stderr


@pytest.mark.parametrize(
    "damage", [{"percentiles": [1.0, 2.0]}, {"percentiles": None}, {"thresholds": 3}, []]
)
def test_damaged_calibration_stops_only_what_needs_it(tmp_path: Any, damage: Any, run: Any) -> None:
    whole = {**CALIBRATION, **damage} if isinstance(damage, dict) else [1]
    broken = brightness_model(tmp_path / "broken.onnx", whole)
    grey(tmp_path / "a.png", 51)
    done = run("a.png", "--model", broken, "--report", "page.html", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "20.00\n"
    assert "broken.onnx" in done.stderr and "its calibration is damaged" in done.stderr
    done = run("a.png", "--model", broken, "--accept", "0.9", cwd=tmp_path)
    assert done.returncode == 1 and "its calibration is damaged" in done.stderr


# --- photos ------------------------------------------------------------------------------------


def made_up_detector(monkeypatch: Any, faces_by_width: Any) -> Any:
    """A detector that knows a photo by its width; landmarks where an aligned face has them."""

    class Detector(FaceAligner):
        def __init__(self) -> None:
            pass

        def search(self, image: Any, every: bool = False, turn: int = 0) -> Any:
            return [
                DetectedFace((x, y, 90.0, 100.0), TEMPLATE + np.array((x, y)), 0.9)
                for x, y in faces_by_width.get(image.shape[1], [])
            ]

        def search_turned(self, image: Any) -> Any:
            return [[], [], []]

        def look_closer(self, image: Any, face: Any) -> Any:
            return face

    monkeypatch.setattr(photos, "FaceAligner", Detector)


@pytest.fixture
def album(tmp_path: Any, monkeypatch: Any) -> Any:
    """Photos with two faces (scores 20 and 100), one (40), none; and one that is no photo."""
    two = np.zeros((120, 300, 3), np.uint8)
    two[:, :112], two[:, 150:] = 51, 255
    (tmp_path / "p").mkdir()
    cv2.imwrite(str(tmp_path / "p" / "a.png"), two)
    grey(tmp_path / "p" / "b.png", 102, (112, 112))
    grey(tmp_path / "p" / "c.png", 200, (80, 80))
    (tmp_path / "p" / "d.jpg").write_text("no photo")
    made_up_detector(monkeypatch, {300: [(0, 0), (151.0, 4.0)], 112: [(0, 0)]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_all_faces_of_photos(album: Any, model: Any, capsys: Any, batch_size: Any) -> None:
    more = {"batch_size": batch_size, "report": album / "page.html"}
    assert scoring.main(("p",), model=str(model), all_faces=True, top=1, **more) == 3
    rows = rows_of("scores.csv")
    assert list(rows[0]) == ["path", "score", "status", *COLUMNS]
    assert [(row["path"], row["score"], row["status"]) for row in rows] == [
        ("p/a.png#1", "20.0000", "ok"),
        ("p/a.png#2", "100.0000", "ok"),
        ("p/b.png#1", "40.0000", "ok"),
        ("p/c.png", "", "no face"),
        ("p/d.jpg", "", "is not an image that can be decoded"),
    ]
    assert [rows[1][name] for name in COLUMNS[:8]] == [
        "2",
        "0",
        "151.0",
        "4.0",
        "90.0",
        "100.0",
        "189.3",
        "55.7",
    ]
    assert [row["detector_score"] for row in rows] == ["0.900"] * 3 + [""] * 2
    assert [row["faces"] for row in rows] == ["2", "2", "1", "0", ""]
    assert all(rows[3][name] == "" for name in COLUMNS[1:])
    printed = capsys.readouterr()
    assert printed.out.startswith("scored 3 faces in 4 images: ")
    assert "top\t100.00\tp/a.png#2" in printed.out and "p/c.png: no face" in printed.err
    page = (album / "page.html").read_text()
    assert page.count('href="p/a.png"') == 3 and "%231" not in page  # two faces and the photo


def test_align_takes_the_largest_face(album: Any, model: Any) -> None:
    assert scoring.main(("p",), model=str(model), align=True) == 3
    rows = rows_of("scores.csv")
    columns = ["faces", "turned", "box_x", "box_y", "box_width", "box_height", "detector_score"]
    assert list(rows[0]) == ["path", "score", "status", *columns]
    assert list(rows[0].values())[3:] == ["2", "0", "0.0", "0.0", "90.0", "100.0", "0.900"]
    assert [(row["path"], row["score"]) for row in rows][:3] == [
        ("p/a.png", "20.0000"),
        ("p/b.png", "40.0000"),
        ("p/c.png", ""),
    ]


def test_frames_of_a_video_are_rows(album: Any, model: Any, capsys: Any) -> None:
    writer = cv2.VideoWriter("p/clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 8, (112, 112))
    for level in range(0, 160, 10):
        writer.write(np.full((112, 112, 3), level, np.uint8))
    writer.release()
    best = {"per": "track", "copy_to": Path("best")}
    more = {"frames_per_second": 2, "report": album / "page.html", "top": 1, **best}
    for _ in range(2):
        assert scoring.main(("p/b.png", "p/clip.mp4"), model=str(model), **more) == 0
    copies = [file for file in (album / "best").rglob("*") if file.is_file()]
    assert copies == [album / "best/p/clip.mp4 track 1/clip.mp4-t=1.500.png"]
    rows = rows_of("scores.csv")
    assert [row["rank"] for row in rows] == ["", "4", "3", "2", "1"]
    assert list(rows[0])[4:9] == ["faces", "turned", "time", "track", "box_x"]
    assert [(row["path"], row["time"], row["track"]) for row in rows] == [
        ("p/b.png", "", ""),
        ("p/clip.mp4#t=0.000", "0.000", "1"),
        ("p/clip.mp4#t=0.500", "0.500", "1"),
        ("p/clip.mp4#t=1.000", "1.000", "1"),
        ("p/clip.mp4#t=1.500", "1.500", "1"),
    ]
    scores = [float(row["score"]) for row in rows[1:]]
    np.testing.assert_allclose(scores, np.array([0, 40, 80, 120]) / 2.55, atol=2)
    line = f"p/clip.mp4 track 1\t{scores[3]:.2f}\tp/clip.mp4#t=1.500\tof 4\tnext {scores[2]:.2f}\n"
    assert capsys.readouterr().out.endswith(line)
    assert (album / "page.html").read_text().count("data:image/jpeg;base64,") == 5
    assert scoring.main(("p",), model=str(model), align=True) == 3
    assert "not scored: p/clip.mp4: is a video: add --frames-per-second" in capsys.readouterr().err
    assert ("p/clip.mp4", "") in [(row["path"], row["score"]) for row in rows_of("scores.csv")]


@pytest.mark.parametrize("rate", [0, -1, 100.5, float("nan")])
def test_frames_a_second_have_bounds(album: Any, model: Any, rate: float) -> None:
    with pytest.raises(UserError, match=r"--frames-per-second .*: must be above 0, at most 100"):
        scoring.main(("p",), model=str(model), frames_per_second=rate)


def test_all_faces_interrupted_keeps_what_was_scored(
    album: Any, model: Any, monkeypatch: Any
) -> None:
    network = load_quality_model(model)
    faces = PhotoFaces(read_list(album, ["p/a.png", "p/b.png"]), True, batch_size=1, num_workers=1)
    calls: list[int] = []

    def stopped(crops: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return network.begin(crops)

    stopping = cast(QualityModel, SimpleNamespace(begin=stopped))
    scores, interrupted = score(faces, 2, stopping)
    assert interrupted and scores.values[0] == pytest.approx(20)
    assert len(scores.values) == len(faces) == 2  # the second photo was not reached
    assert scores.status(1) == "not scored: interrupted"


def test_interrupted_after_an_output_that_is_no_number(album: Any) -> None:
    faces = PhotoFaces(read_list(album, ["p/a.png", "p/b.png"]), True, batch_size=2, num_workers=1)
    outputs = [lambda: np.array([np.nan, 5], np.float32)]

    def begin(crops: Any) -> Any:
        if not outputs:
            raise KeyboardInterrupt
        return outputs.pop()

    scores, interrupted = score(faces, 2, cast(QualityModel, SimpleNamespace(begin=begin)))
    assert interrupted and scores.status(0) == "the network's output is not finite"


def test_interrupted_while_it_waits_a_batch_is_asked_for_again(album: Any, model: Any) -> None:
    network = load_quality_model(model)
    faces = PhotoFaces(read_list(album, ["p/a.png"]), True, batch_size=1, num_workers=1)
    asked: list[int] = []

    def begin(crops: Any) -> Any:
        scores = network.begin(crops)

        def wait() -> Any:
            asked.append(1)
            if len(asked) == 1:
                raise KeyboardInterrupt
            return scores()

        return wait

    stopping = cast(QualityModel, SimpleNamespace(begin=begin))
    scores, interrupted = score(faces, 1, stopping)
    assert interrupted and len(asked) == 2
    assert scores.values[0] == pytest.approx(20)


def test_a_storage_that_is_gone_is_no_photo_s_trouble(album: Any, monkeypatch: Any) -> None:
    def gone(path: str) -> Any:
        raise UserError(f"{path}: the storage is gone")

    monkeypatch.setattr(photos, "read_image", gone)
    with pytest.raises(UserError, match=r"p/a\.png: the storage is gone"):
        list(PhotoFaces(read_list(album, ["p/a.png"]), True, batch_size=1))


def read_list(folder: Any, paths: Any) -> Any:
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    return read_table(folder / "list.txt")


@pytest.mark.skipif(
    not (SHARED_PHOTOS.exists() and (cache_folder() / ASSETS["yunet"].file_name).exists()),
    reason="needs the photos of ../shared and the detector in the cache",
)
def test_real_photos_are_aligned_as_a_person_would(tmp_path: Any, model: Any, run: Any) -> None:
    import tarfile

    with tarfile.open(SHARED_PHOTOS) as archive:
        members = [member for member in archive.getmembers() if member.isfile()][:12]
        for member in members:  # extractall's filters came with Python 3.11.4
            target = tmp_path / "photos" / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            if content is not None:
                target.write_bytes(content.read())
    done = run("photos", "--all-faces", "--model", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "scores.csv")
    first = [row for row in rows if row["path"].endswith("#1")]
    assert len(first) == 12
    for row in first:  # photos of this set have the face in the middle
        assert 40 < float(row["nose_x"]) < 110 and 40 < float(row["nose_y"]) < 110
        assert float(row["left_eye_x"]) < float(row["right_eye_x"])
        assert float(row["left_eye_y"]) < float(row["mouth_left_y"])


# --- bad input ---------------------------------------------------------------------------------


def huge_png(width: Any, height: Any) -> Any:
    """The PNG header of an image that would take gigabytes."""

    def chunk(kind: Any, data: Any) -> Any:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_every_bad_input_is_a_row_or_a_line(tmp_path: Any, model: Any, run: Any) -> None:
    good = grey(tmp_path / "in" / "good.png", 51)
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (112, 112, 3)))[1]
    (tmp_path / "in" / "damaged.jpg").write_bytes(bytes(20) + whole.tobytes()[20:200])
    (tmp_path / "in" / "text.jpg").write_text("these are words")
    (tmp_path / "in" / "zero.jpg").touch()
    (tmp_path / "in" / "huge.png").write_bytes(huge_png(60000, 60000))
    (tmp_path / "in" / "sub").mkdir()
    (tmp_path / "in" / "sub" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "list.txt").write_text("in/good.png\nin/has_gone.png\n")
    done = run("in", "list.txt", "--model", model, cwd=tmp_path)
    assert done.returncode == 3 and "Traceback" not in done.stderr
    status = {row["path"]: row["status"] for row in rows_of(tmp_path / "scores.csv")}
    assert status == {
        "in/damaged.jpg": "is not an image that can be decoded",
        "in/good.png": "ok",
        "in/has_gone.png": "No such file or directory",
        "in/huge.png": "has more than 134217728 pixels",
        "in/text.jpg": "is not an image that can be decoded",
        "in/zero.jpg": "is empty (0 bytes)",
    }
    assert done.stdout.startswith("scored 2 of 7 images")
    assert "left out: links that lead back to a folder above them: 1" in done.stderr
    assert good.exists()


def test_unreadable_folder_is_a_line(
    tmp_path: Any, model: Any, monkeypatch: Any, capsys: Any
) -> None:
    grey(tmp_path / "in" / "good.png", 51)
    (tmp_path / "in" / "locked").mkdir()
    scan = os.scandir

    def refuse(folder: Any) -> Any:  # the tests may run as root, to whom no folder is locked
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.chdir(tmp_path)
    assert scoring.main(("in",), model=str(model)) == 3
    printed = capsys.readouterr()
    assert printed.out == "20.00\n"
    assert "left out: folders that cannot be read: 1 ('in/locked')" in printed.err


def test_file_that_vanishes_while_we_run(tmp_path: Any, model: Any) -> None:
    for number in range(3):
        grey(tmp_path / "in" / f"{number}.png", 51)
    table = table_of(find_images([str(tmp_path / "in")], Skipped()), tmp_path / "images.txt")
    (tmp_path / "in" / "1.png").unlink()
    scores, _ = score(Faces(table, 2, 1), 3, load_quality_model(model))
    assert scores.reasons == {1: "No such file or directory"}
    np.testing.assert_allclose(scores.values, [20, np.nan, 20], atol=1e-4)


def test_hostile_names_come_back_from_the_csv(tmp_path: Any, model: Any, run: Any) -> None:
    names = ['a,b "c".png', "=1+2.png", "Zoë 李雷.png", "new;semi'colon.png", "#1.png", " lead.png"]
    for name in names:
        grey(tmp_path / "in" / name, 51)
    done = run("in", "--model", model, "--out", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert sorted(row["path"] for row in rows) == sorted(f"in/{name}" for name in names)
    assert {row["score"] for row in rows} == {"20.0000"}
