"""Aligned copies: which face, what is told, what is done again, and what is never replaced."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import EXIT_DONE, EXIT_SKIPPED
from dataset import aligned_copies
from dataset.aligned_copies import JOURNAL, main, read_landmarks
from dataset.images import read_image
from dataset.photo_faces import LANDMARK_COLUMNS
from sdd_fiqa.alignment import TEMPLATE, DetectedFace, FaceAligner, align
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import Image, cv2

ROOT = Path(__file__).resolve().parents[2]
HEADER = ",".join(["path", *LANDMARK_COLUMNS])


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def skipped(out: Path) -> list[list[str]]:
    with open(out / "skipped.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def line(path: object, points: Any) -> str:
    return f"{path}," + ",".join(str(value) for value in np.ravel(points))


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of ann (two faces, 300 wide; one, 112 wide) and of bob (none, 80 wide; no image)."""
    rng = np.random.default_rng(1)
    for name, width in (("ann/1.png", 300), ("ann/2.jpg", 112), ("bob/1.png", 80)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (112, width, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name), cv2.blur(pixels, (9, 9)))
    (tmp_path / "photos/bob/2.jpg").write_text("no image")
    found = {300: [(0.0, 100.0), (100.0, 90.0)], 112: [(0.0, 90.0)]}  # x, height of the box

    class Detector:
        def search(self, image: Any) -> list[DetectedFace]:
            return [
                DetectedFace((x, 0.0, 90.0, height), TEMPLATE + np.array((x, 0)), 0.9)
                for x, height in found.get(image.shape[1], [])
            ]

        def look_closer(self, image: Any, face: DetectedFace) -> DetectedFace:
            return face

    monkeypatch.setattr(aligned_copies, "FaceAligner", Detector)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_copies_keep_folder_and_name(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(data_root="photos/", out_dir=Path("faces"), format="png") == EXIT_SKIPPED
    names = {"ann/1.png", "ann/2.png", "skipped.csv", JOURNAL}
    assert set(contents(album / "faces")) == names
    for name, source in (("ann/1.png", "ann/1.png"), ("ann/2.png", "ann/2.jpg")):
        photo = read_image(album / "photos" / source)
        assert np.array_equal(read_image(album / "faces" / name), align(photo, TEMPLATE))
    assert skipped(album / "faces") == [
        ["photos/bob/1.png", "no face"],
        ["photos/bob/2.jpg", "is not an image that can be decoded"],
    ]
    printed = capsys.readouterr()
    assert printed.out == "faces: 2 aligned faces of 4 photos\n"
    assert "several faces in 1 photo; the largest was taken (--pick)" in printed.err
    assert "skipped: 2 images in all, named in faces/skipped.csv" in printed.err


def test_the_face_nearest_to_the_middle(album: Path) -> None:
    shutil.rmtree(album / "photos/bob")
    assert main(data_root="photos", out_dir=Path("faces"), pick="central") == EXIT_DONE
    photo = read_image(album / "photos/ann/1.png")
    wanted = align(photo, TEMPLATE + np.array((100, 0)))
    _, saved = cv2.imencode(".jpg", wanted[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert (album / "faces/ann/1.jpg").read_bytes() == saved.tobytes()
    assert skipped(album / "faces") == []


def test_only_what_is_missing_or_has_changed_is_done_again(
    album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(data_root="photos", out_dir=Path("faces"))
    first, told = contents(album / "faces"), capsys.readouterr()
    read: list[str] = []

    def reading(path: str) -> Image:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(aligned_copies, "read_image", reading)
    assert main(data_root="photos", out_dir=Path("faces")) == EXIT_SKIPPED
    again = capsys.readouterr()
    assert read == ["photos/bob/2.jpg"]  # what could not be read may be readable now
    assert contents(album / "faces") == first and again.out == told.out
    skips = [line for line in told.err.splitlines() if line.startswith("skipped: ")]
    assert len(skips) == 3 and again.err.splitlines()[-3:] == skips
    # A copy is lost, a photo has changed, and the last line of the journal is half.
    (album / "faces/ann/2.jpg").unlink()
    shutil.copy(album / "photos/bob/1.png", album / "photos/ann/1.png")
    with open(album / "faces" / JOURNAL, "a") as file:
        file.write('["ann/1.png", 1')
    read.clear()
    main(data_root="photos", out_dir=Path("faces"))
    assert sorted(read) == ["photos/ann/1.png", "photos/ann/2.jpg", "photos/bob/2.jpg"]
    now = contents(album / "faces")
    assert now["ann/2.jpg"] == first["ann/2.jpg"]
    assert "ann/1.jpg" not in now and ["photos/ann/1.png", "no face"] in skipped(album / "faces")


def test_a_killed_run_leaves_nothing_half(album: Path, stalled_script: Any) -> None:
    rows = [HEADER, *(line(f"photos/{name}", TEMPLATE) for name in ("ann/1.png", "ann/2.jpg"))]
    (album / "points.csv").write_text("\n".join([*rows, line("photos/bob/1.png", TEMPLATE)]))
    flags = "--data-root", "photos", "--landmarks", "points.csv", "--out-dir"
    command = [sys.executable, "-m", "dataset.aligned_copies", *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole = subprocess.run([*command, "whole"], env=env, capture_output=True, text=True)
    assert whole.returncode == EXIT_SKIPPED, whole.stderr
    stalled = stalled_script(
        "dataset/aligned_copies.py", *flags, "faces", cwd=album, at="photos/bob/1.png"
    )
    stalled.process.kill()
    stalled.process.communicate()
    again = subprocess.run([*command, "faces"], env=env, capture_output=True, text=True)
    assert again.returncode == EXIT_SKIPPED, again.stderr
    made, wanted = contents(album / "faces"), contents(album / "whole")
    assert made == wanted and set(made) > {"ann/1.jpg", "ann/2.jpg", "bob/1.jpg"}


def test_no_file_takes_the_place_of_another(album: Path) -> None:
    photos = album / "photos/ann"
    shutil.copy(photos / "1.png", photos / "2.png")
    (album / "faces/ann").mkdir(parents=True)
    (album / "faces/ann/1.jpg").write_bytes(b"mine")
    main(data_root="photos", out_dir=Path("faces"))
    assert (album / "faces/ann/1.jpg").read_bytes() == b"mine"
    why = "its copy would replace faces/ann/1.jpg, which is another file"
    assert skipped(album / "faces")[0] == ["photos/ann/1.png", why]
    one = read_image(album / "faces/ann/2.jpg").astype(int)
    other = read_image(album / "faces/ann/2.png.jpg").astype(int)
    for copy, source in ((one, "2.jpg"), (other, "2.png")):
        wanted = align(read_image(photos / source), TEMPLATE)
        assert np.abs(copy - wanted).mean() < 5 < np.abs(one - other).mean()


def test_copies_of_other_settings_are_refused(album: Path) -> None:
    (album / "photos/ann/raw.jxl").write_bytes(b"\xff\x0a....")
    (album / "photos/ann/1.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(12))
    main(data_root="photos", out_dir=Path("photos/faces"))
    reasons = dict(skipped(album / "photos/faces"))
    assert reasons["photos/ann/1.mp4"] == "is a video"
    assert "of a kind that is not read" in reasons["photos/ann/raw.jxl"]
    before = contents(album / "photos/faces")
    assert "ann/1.jpg" in before  # the video 1.mp4 does not take the name
    with pytest.raises(UserError, match=r'the copies there were made with .*"format": "jpg"'):
        main(data_root="photos", out_dir=Path("photos/faces"), format="png")
    main(data_root="photos", out_dir=Path("photos/faces"))  # its own copies are no photos
    assert contents(album / "photos/faces") == before
    (album / "photos/faces" / JOURNAL).write_text("no journal")
    with pytest.raises(UserError, match=r"aligned_copies.jsonl: is damaged; remove it"):
        main(data_root="photos", out_dir=Path("photos/faces"))
    (album / "empty").mkdir()
    for flags, message in (
        ({"data_root": "nowhere"}, "--data-root nowhere: is no folder"),
        ({"num_workers": 0}, "--num-workers 0: must be 1 or more"),
        ({"data_root": "empty"}, "empty: has no images"),
        ({"out_dir": album / "photos"}, "is --out-dir, of which nothing is read"),
    ):
        with pytest.raises(UserError, match=message):
            main(**{"data_root": "photos", "out_dir": album / "o", **flags})  # type: ignore[arg-type]


def test_own_landmarks_need_no_detector(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(aligned_copies, "FaceAligner")
    shutil.copy(album / "photos/ann/2.jpg", album / "photos/ann/3.jpg")
    shutil.copy(album / "photos/ann/2.jpg", album / "photos/ann/4.jpg")
    small = (TEMPLATE - 56) * 0.5 + 56
    rows = [
        f"score,{HEADER}",
        "1," + line("./photos/ann/1.png#1", small + np.array((94, 0))),
        "2," + line("./photos/ann/1.png#2", TEMPLATE),
        "," + line("ann/2.jpg", small),  # below the root
        "3," + line("photos/ann/3.jpg", small + 400),
        "4," + line("photos/ann/4.jpg", np.full((5, 2), 7)),
        ",photos/bob/1.png" + 10 * ",",
    ]
    (album / "points.csv").write_text("\n".join(rows) + "\n")
    for pick, of_first in (("largest", TEMPLATE), ("central", small + np.array((94, 0)))):
        out = Path(pick)
        flags = {"pick": pick, "landmarks": Path("points.csv"), "format": "png"}
        assert main(data_root="photos", out_dir=out, **flags) == EXIT_SKIPPED  # type: ignore[arg-type]
        for source, copy, points in (
            ("ann/1.png", "ann/1.png", of_first),
            ("ann/2.jpg", "ann/2.png", small),
        ):
            wanted = align(read_image(album / "photos" / source), points)
            assert np.array_equal(read_image(out / copy), wanted)
        reasons = dict(skipped(out))
        assert reasons["photos/ann/3.jpg"] == "all its landmarks are outside the photo"
        assert "they have no size" in reasons["photos/ann/4.jpg"]
        assert reasons["photos/bob/1.png"] == "no face"
        assert reasons["photos/bob/2.jpg"] == (
            "the landmarks have no line for photos/bob/2.jpg or bob/2.jpg"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,left_eye_x\n", "1: the header lacks left_eye_y, right_eye_x"),
        (f"{HEADER}\na.jpg,1,2,3\n", "2: expected a path and ten finite numbers"),
        (f"{HEADER}\n{line('a.jpg', TEMPLATE)[:-3]}x\n", "2: expected a path and ten"),
        (f"{HEADER}\n{line('a.jpg', TEMPLATE)[:-3]}1_0\n", "2: expected a path and ten"),
        (f"{HEADER}\n{line('a.jpg', TEMPLATE[[1, 0, 2, 4, 3]])}\n", "left and right are swapped"),
        (f'{HEADER}\n"a.jpg,1', "is not CSV"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_bad_landmarks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "points.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        read_landmarks(tmp_path / "points.csv")


def test_landmarks_of_a_face_upside_down_are_not_swapped(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(f"{HEADER}\n{line('a.jpg', 112 - TEMPLATE)}\n")
    (face,) = read_landmarks(tmp_path / "points.csv")["a.jpg"]
    assert np.allclose(face.landmarks, 112 - TEMPLATE)


def test_real_faces_are_cut_out_as_everywhere(
    tmp_path: Path, fetched: Callable[[str], Path]
) -> None:
    fetched("yunet")
    source = fetched("orl")
    for identity in ("s1", "s2"):
        (tmp_path / "photos" / identity).mkdir(parents=True)
        shutil.copy(source / identity / "1.pgm", tmp_path / "photos" / identity)
    assert main(data_root=str(tmp_path / "photos"), out_dir=tmp_path / "f", format="png") == 0
    for identity in ("s1", "s2"):
        (_, wanted), *_ = FaceAligner().align(read_image(source / identity / "1.pgm"), most=1)
        assert np.array_equal(read_image(tmp_path / "f" / identity / "1.png"), wanted)
