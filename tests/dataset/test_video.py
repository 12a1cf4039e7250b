"""Videos: which frames are read, what is said of damage, and how faces are followed.

Videos are written here. Their brightness tells the time: frame i of 10 a second is 8 i.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset import photo_faces as photos
from dataset import video
from dataset.find import find_images
from dataset.journal import Journal
from dataset.left_out import Skipped
from dataset.lists import table_of
from dataset.photo_faces import PhotoFaces
from dataset.tracks import Tracks
from dataset.turned import turn_photos
from dataset.video import frame_at, frames, is_video
from sdd_fiqa.alignment import TEMPLATE, DetectedFace, FaceAligner
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import Image, cv2


def write(path: Path, pictures: list[Image]) -> Path:
    height, width = pictures[0].shape[:2]
    code = {".mp4": "mp4v", ".avi": "MJPG"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (width, height))
    for picture in pictures:
        writer.write(picture[:, :, ::-1])
    writer.release()
    return path


@pytest.fixture(params=[".mp4", ".avi"])
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three seconds; the upper half is blue."""
    pictures = [np.full((96, 128, 3), 8 * number, np.uint8) for number in range(30)]
    for picture in pictures:
        picture[:48] = (0, 0, 250)
    return write(tmp_path / f"clip{request.param}", pictures)


def number_of(frame: Image) -> float:
    assert frame[:44, :, 2].mean() > 200 > 60 > frame[:44, :, 0].mean()  # blue, in RGB
    return float(frame[52:].mean()) / 8


@pytest.mark.parametrize(
    ("per_second", "numbers"),
    [(2, [0, 5, 10, 15, 20, 25]), (4, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]), (0.1, [0])],
)
def test_so_many_frames_of_each_second(clip: Path, per_second: float, numbers: list[int]) -> None:
    found = list(frames(str(clip), per_second))
    assert [time for time, _ in found] == pytest.approx([number / 10 for number in numbers])
    assert [number_of(frame) for _, frame in found] == pytest.approx(numbers, abs=0.49)


def test_all_frames_where_there_are_fewer(clip: Path) -> None:
    assert len(list(frames(str(clip), 100))) == 30


def test_a_frame_is_found_again(clip: Path) -> None:
    for time, frame in list(frames(str(clip), 5))[::-1]:
        assert np.abs(frame_at(str(clip), time).astype(int) - frame).max() <= 1
    with pytest.raises(UnreadableImage, match=r"has no frame at 1\.234 s any more"):
        frame_at(str(clip), 1.234)


def test_the_rotation_of_the_file_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[:, :64] = 200
    path = write(tmp_path / "a.mp4", [picture] * 3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # the matrix of the track: a quarter turn clockwise
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 96 << 16, 0, 1 << 30]
    content[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turn)
    path.write_bytes(content)
    (_, frame), *_ = frames(str(path), 1)
    assert frame.shape == (128, 96, 3)
    assert frame[:60].mean() > 180 > 20 > frame[68:].mean()


def read_with_reason(path: Path) -> tuple[int, str]:
    count = 0
    try:
        for _ in frames(str(path), 100):
            count += 1
    except UnreadableImage as error:
        return count, str(error)
    return count, ""


def test_damage_is_named_after_what_could_be_read(clip: Path, capfd: Any) -> None:
    content = clip.read_bytes()
    hole = bytearray(content)
    hole[len(hole) // 2 : len(hole) // 2 + 400] = bytes(400)
    clip.write_bytes(hole)
    count, reason = read_with_reason(clip)
    assert 20 < count < 30
    assert reason.startswith(f"damaged: {30 - count} of 30 frames cannot be read; the last one")
    clip.write_bytes(content[: len(content) // 2])
    count, reason = read_with_reason(clip)
    if clip.suffix == ".avi":
        assert 0 < count < 25
        assert reason.startswith(f"damaged: {30 - count} of 30 frames")
    else:  # its index is at the end
        assert (count, reason) == (0, "is not a video that can be decoded")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("still", [True, False])
def test_a_video_that_stops_advancing_is_named(
    clip: Path, monkeypatch: pytest.MonkeyPatch, still: bool
) -> None:
    """It hangs, or gives the same frame for ever."""
    ended = threading.Event()

    class Stuck:
        def isOpened(self) -> bool:
            return True

        def get(self, what: int) -> float:
            return 0.0

        def grab(self) -> bool:
            return ended.wait() if still else not ended.wait(0.001)

        def retrieve(self) -> Any:
            return True, np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(cv2, "VideoCapture", lambda *arguments: Stuck())
    monkeypatch.setattr(video, "STALL_SECONDS", 0.2)
    count, reason = read_with_reason(clip)
    ended.set()
    assert count == (not still)
    assert reason.startswith("stopped advancing for 0.2 s, at ")


def test_videos_are_known_by_their_first_bytes(clip: Path, tmp_path: Path) -> None:
    assert is_video(clip)
    bare = clip.rename(tmp_path / "bare")
    contents = {
        "a.ts": b"let a: number = 1;",
        "list.txt": "abc/free.jpg\nZo\u00eb.jpg\n".encode() + b"G" * 300,
        "a.heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "a.avif": b"\0\0\0\x18ftypavif" + bytes(50),
        "broken.mp4": bytes(100),
        "empty.mov": b"",
        "a.jpg": b"\xff\xd8\xff" + bytes(50),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    videos = {"bare", "broken.mp4", "empty.mov"}
    assert {path.name for path in tmp_path.iterdir() if is_video(path)} == videos
    assert not is_video(tmp_path)
    assert list(find_images([str(bare)], Skipped(videos=True))) == [str(bare)]


def test_without_the_flag_videos_are_left_out_and_named(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3)))[1].tobytes())
    for inputs in ([str(tmp_path)], [str(clip), str(tmp_path / "a.png")]):
        skipped = Skipped()
        assert list(find_images(inputs, skipped)) == [str(tmp_path / "a.png")]
        assert skipped.examples == {
            "videos (eval.py scores them with --frames-per-second 2)": [str(clip)]
        }
    with pytest.raises(UserError, match=r"no images found .*--frames-per-second 2"):
        list(find_images([str(clip)], Skipped()))
    found = list(find_images([str(tmp_path)], Skipped(videos=True)))
    assert found == [str(tmp_path / "a.png"), str(clip)]


@pytest.mark.parametrize("name", ["rtsp://camera/1", "http://host/a.mp4"])
def test_a_stream_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is a stream or an address; save it as a file first"):
        list(find_images([name], Skipped(videos=True)))


# --- Faces ----------------------------------------------------------------------------------------
class Detector(FaceAligner):
    """A face is each bright square of 112 pixels; a photo of one is 300 pixels wide."""

    def __init__(self) -> None:
        pass

    def search(self, image: Image, every: bool = False, turn: int = 0) -> list[DetectedFace]:
        bright = (image.max(axis=2) > 60).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        boxes = sorted((box for box in stats[1:, :4].tolist() if box[2] > 100), reverse=True)
        return [
            DetectedFace((x, y, w, h), TEMPLATE + np.array((x, y)), 0.9) for x, y, w, h in boxes
        ]

    def search_turned(self, image: Image) -> list[list[DetectedFace]]:
        assert image.shape[1] == 300, "frames of videos are not looked at turned"
        return [[], [], []]

    def look_closer(self, image: Image, face: DetectedFace) -> DetectedFace:
        return face


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PhotoFaces]:
    """A photo without a face, a video in which two faces pass each other, and a photo."""
    pictures = []
    for number in range(20):  # 2 s, frames at 0, .5, 1, 1.5
        picture = np.zeros((320, 480, 3), np.uint8)
        if number < 15:
            picture[10:122, 10 + 6 * number : 122 + 6 * number] = 250
        if number >= 5:
            picture[200:312, 350 - 6 * number : 462 - 6 * number] = 150
        pictures.append(picture)
    write(tmp_path / "b.avi", pictures)
    for name in ("a.png", "c.png"):
        photo = np.zeros((200, 300, 3), np.uint8)
        photo[30:142, 30:142] = 100 if name == "c.png" else 0
        cv2.imwrite(str(tmp_path / name), photo)
    (tmp_path / "d.mp4").write_bytes(bytes(99))
    monkeypatch.setattr(photos, "FaceAligner", Detector)
    monkeypatch.chdir(tmp_path)

    def made(all_faces: bool, batch_size: int = 3) -> PhotoFaces:
        found = find_images(["a.png", "b.avi", "c.png", "d.mp4"], Skipped(videos=True))
        table = table_of(found, tmp_path / "list.txt")
        return PhotoFaces(table, all_faces, batch_size, 2, frames_per_second=2)

    return made


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_rows_of_photos_and_frames(album: Callable[..., PhotoFaces], batch_size: int) -> None:
    faces = album(True, batch_size)
    crops, reasons = {}, {}
    for batch in faces:
        for at, row in enumerate(batch.rows.tolist()):
            crops[row] = batch.faces[at]
            if at in batch.failures:
                reasons[row] = batch.failures[at]
    names = [
        *("a.png", "b.avi#t=0.000#1", "b.avi#t=0.500#1", "b.avi#t=0.500#2", "b.avi#t=1.000#1"),
        *("b.avi#t=1.000#2", "b.avi#t=1.500#1", "c.png#1", "d.mp4"),
    ]
    assert list(faces.paths()) == names
    assert reasons == {0: "no face", 8: "is not a video that can be decoded"}
    columns = dict(faces.columns())
    assert list(columns)[:4] == ["faces", "turned", "time", "track"]
    assert list(columns["faces"]) == ["0", "1", "2", "2", "2", "2", "1", "1", ""]
    assert list(columns["time"])[:8] == ["", "0.000", *["0.500"] * 2, *["1.000"] * 2, "1.500", ""]
    assert list(columns["track"]) == ["", "1", "2", "1", "2", "1", "2", "", ""]
    for row in range(1, 8):
        assert np.abs(faces.crop(row).astype(int) - crops[row]).max() <= 1
        assert faces.photo_path(row) == names[row].partition("#")[0]
    for row in (0, 8):
        with pytest.raises(UnreadableImage):
            faces.crop(row)


def test_only_photos_are_looked_at_turned(album: Callable[..., PhotoFaces]) -> None:
    from dataset.scores import Scores

    faces = album(False)
    count = sum(len(batch.rows) for batch in faces)
    scores = Scores(np.full(count, 1, np.float32))
    scores.values[faces.kept["number"] == 0] = np.nan
    looks = []

    def score(again: Any, photos: int) -> tuple[Scores, bool]:
        looks.append(photos)
        return Scores.none(sum(len(batch.rows) for batch in again)), False

    turn_photos(faces, scores, 20.0, score)
    assert looks == [2]  # the two photos


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_killed_run_goes_on_inside_a_video(
    album: Callable[..., PhotoFaces], batch_size: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """Each run adds one block and is killed; the last one equals one that was left alone."""
    shutil.copy("b.avi", "c.png")  # a second video: what a file is called does not matter
    searched: list[int] = []
    search = Detector.search

    def counted(self: Detector, *more: Any) -> list[DetectedFace]:
        searched.append(1)
        return search(self, *more)

    monkeypatch.setattr(Detector, "search", counted)

    def run(kept: bool, most: int = 99) -> dict[str, Any] | None:
        faces, blocks = album(True, batch_size), 0
        found: list[tuple[float, str | None]] = []
        journal = faces.journal = Journal(tmp_path / "journal", {}) if kept else None
        for batch in faces:
            values = np.full(len(batch.rows), np.nan, np.float32)
            scores = batch.faces.mean((1, 2, 3)) if batch.scores is None else batch.scores
            values[batch.readable] = scores[batch.readable] if batch.scores is None else scores
            found += zip(values.tolist(), map(batch.failures.get, range(len(values))), strict=True)
            faces.keep(batch, values)
            blocks += batch.scores is None and batch.last
            if blocks == most:
                return None
        if journal is not None:
            journal.close(done=False)
        table = {name: list(values) for name, values in faces.columns()}
        return {"paths": list(faces.paths()), "found": list(map(str, found)), **table}

    whole = run(kept=False)
    runs = 0
    while (last := run(kept=True, most=1)) is None:
        runs += 1
    assert last == whole
    assert runs >= 16 // max(batch_size, 3)
    searched.clear()
    assert run(kept=True) == whole
    assert searched == []


@given(
    starts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), unique=True, max_size=6),
    steps=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_faces_that_stay_apart_keep_their_tracks(
    starts: list[tuple[int, int]], steps: int, seed: int
) -> None:
    """In any order, moving less than half a box a frame, each far from the others."""
    rng = np.random.default_rng(seed)
    tracks = Tracks(2.0)
    known: dict[int, int] = {}
    for step in range(steps):
        order = rng.permutation(len(starts)).tolist()
        boxes = [
            (starts[face][0] * 300.0 + 15 * step, starts[face][1] * 300.0 - 15 * step, 80.0, 100.0)
            for face in order
        ]
        found = tracks.follow(step * 0.5, boxes)
        assert sorted(found) == list(range(1, len(starts) + 1))
        for face, track in zip(order, found, strict=True):
            assert known.setdefault(face, track) == track


def test_a_face_that_was_gone_too_long_is_a_new_one() -> None:
    tracks = Tracks(2.0)
    box = (0.0, 0.0, 50.0, 50.0)
    assert tracks.follow(0, [box]) == [1]
    assert tracks.follow(1, []) == []
    assert tracks.follow(2, [box]) == [1]
    assert tracks.follow(4.5, [box]) == [2]
    assert tracks.follow(5, [(40.0, 0.0, 50.0, 50.0), box]) == [3, 2]
