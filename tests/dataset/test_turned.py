"""Photos that lie on their side or upside down: which turn wins, and what becomes of the rows.

A face is a place in a grey picture; its score is the brightness there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import photo_faces as photos
from dataset.lists import read_table
from dataset.photo_faces import PhotoFaces
from dataset.scores import Scores
from dataset.turned import turn_photos
from sdd_fiqa import alignment
from sdd_fiqa.alignment import TEMPLATE, DetectedFace, FaceAligner
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Image

LOWEST = 20.0
# What a photo shows as it is and turned by 90, 180 and 270 degrees: scores, the largest face first.
SHOWN: dict[str, list[list[float]]] = {
    "upright": [[60], [90], [90], [90]],  # not looked at again
    "low": [[12], [5], [21], []],  # no turn leads by 10 points
    "upside down": [[3, 1], [], [70, 50], []],
    "on its side": [[], [40], [], [65, 30]],
    "no face": [[], [9], [], []],
    "rolled": [[33], [43], [50], []],
}


class Detector(FaceAligner):
    def __init__(self) -> None:
        pass

    def search(self, image: Image, every: bool = False, turn: int = 0) -> list[DetectedFace]:
        scores = SHOWN[list(SHOWN)[int(image[0, 0, 0])]][turn // 90]
        roll = np.array([[0, -1], [1, 0]]) if image[0, 0, 0] == 5 else np.eye(2)
        return [
            DetectedFace((0, 0, score, 100 - k), (TEMPLATE + score * 1000) @ roll.T, 0.9, turn)
            for k, score in enumerate(scores)
        ]

    def search_turned(self, image: Image) -> list[list[DetectedFace]]:
        assert image[0, 0, 0] != 0, "upright"
        return [self.search(image, False, turn) for turn in (90, 180, 270)]

    def look_closer(self, image: Image, face: DetectedFace) -> DetectedFace:
        return face


def picture(image: Image, landmarks: Any) -> Image:
    """A crop that shows its score: that is where the face is."""
    return np.full((112, 112, 3), round(np.abs(landmarks).mean() / 1000), np.uint8)


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], PhotoFaces]:
    def read(path: str) -> Image:
        if path == "gone":
            raise UnreadableImage("No such file or directory")
        return np.full((9, 9, 3), list(SHOWN).index(path), np.uint8)

    monkeypatch.setattr(photos, "FaceAligner", Detector)
    monkeypatch.setattr(photos, "read_image", read)
    for module in (photos, alignment):
        monkeypatch.setattr(module, "align", picture)
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in [*SHOWN, "gone"]))
    return lambda all_faces: PhotoFaces(read_table(tmp_path / "list.txt"), all_faces, 3)


def score(faces: PhotoFaces, count: int) -> tuple[Scores, bool]:
    scores = Scores.none(0)
    for batch in faces:
        values = batch.faces[:, 0, 0, 0].astype(np.float32)
        values[~batch.readable] = np.nan
        row = int(batch.rows[0])
        scores.reasons |= {row + at: reason for at, reason in batch.failures.items()}
        scores.values = np.append(scores.values, values)
        assert faces.searched(batch) <= count
    return scores, False


def rows(faces: PhotoFaces, scores: Scores) -> list[tuple[str, str, str, str]]:
    columns = dict(faces.columns())
    return [
        (
            path,
            "" if np.isnan(value) else f"{value:.0f}",
            columns["turned"][row],
            scores.status(row),
        )
        for row, (path, value) in enumerate(zip(faces.paths(), scores.values, strict=True))
    ]


NO_FACE = ("no face", "", "", "no face")
GONE = ("gone", "", "", "No such file or directory")


def test_the_turn_that_scores_ten_points_more_wins(album: Any) -> None:
    faces = album(False)
    scores, _ = score(faces, 7)
    found, interrupted = turn_photos(faces, scores, LOWEST, score)
    assert not interrupted
    assert rows(faces, found) == [
        ("upright", "60", "0", "ok"),
        ("low", "12", "0", "ok"),
        ("upside down", "70", "180", "ok"),
        ("on its side", "65", "270", "ok"),
        NO_FACE,
        ("rolled", "50", "180", "ok"),
        GONE,
    ]
    assert list(dict(faces.columns())["faces"]) == ["1", "1", "2", "2", "0", "1", ""]
    assert faces.turned_photos() == 3
    assert faces.crop(2)[0, 0, 0] == 70


def test_all_faces_of_a_turned_photo_take_the_place_of_its_rows(album: Any) -> None:
    faces = album(True)
    scores, _ = score(faces, 7)
    found, _ = turn_photos(faces, scores, LOWEST, score)
    assert rows(faces, found) == [
        ("upright#1", "60", "0", "ok"),
        ("low#1", "12", "0", "ok"),
        ("upside down#1", "70", "180", "ok"),
        ("upside down#2", "50", "180", "ok"),
        ("on its side#1", "65", "270", "ok"),
        ("on its side#2", "30", "270", "ok"),
        NO_FACE,
        ("rolled#1", "50", "180", "ok"),
        GONE,
    ]


def test_without_a_calibration_no_score_is_doubtful(album: Any) -> None:
    faces = album(False)
    scores, _ = score(faces, 7)
    found, _ = turn_photos(faces, scores, -np.inf, score)
    assert [row[2] for row in rows(faces, found)] == ["0", "0", "0", "270", "", "180", ""]


@pytest.mark.parametrize("stop_at", [1, 2])
def test_interrupted_nothing_is_replaced(album: Any, stop_at: int) -> None:
    faces = album(True)
    scores, _ = score(faces, 7)
    before = rows(faces, scores)
    calls: list[int] = []

    def stopping(looks: PhotoFaces, count: int) -> tuple[Scores, bool]:
        calls.append(count)
        return score(looks, count)[0], len(calls) == stop_at

    found, interrupted = turn_photos(faces, scores, LOWEST, stopping)
    assert interrupted
    assert rows(faces, found) == before
    assert calls == [5, 3][:stop_at]
