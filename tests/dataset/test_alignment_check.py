"""The note on images that are not aligned: by size, by landmarks, and where nothing is said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import alignment_check
from dataset.alignment_check import doubt_alignment, like_photo
from dataset.images import read_image
from dataset.lists import read_table
from generate_pseudo_labels import gen_datalist
from sdd_fiqa import assets
from sdd_fiqa.alignment import TEMPLATE, DetectedFace, FaceAligner
from sdd_fiqa.assets import cached
from sdd_fiqa.images import Image, cv2

COMMAND = "python -m dataset.aligned_copies --data-root"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_check, "_SECONDS", 120.0)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., str]:
    """What is said of pictures of some sizes (height, width)."""

    def doubt(*sizes: tuple[int, int]) -> str:
        (tmp_path / "list.txt").write_text(
            "".join(f"{tmp_path}/{i}.png\n" for i in range(len(sizes)))
        )
        for number, size in enumerate(sizes):
            cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((*size, 3), 90, np.uint8))
        return doubt_alignment(read_table(tmp_path / "list.txt"))

    return doubt


def detector(monkeypatch: pytest.MonkeyPatch, shift: float, widths: set[int]) -> None:
    """Pictures of some widths show a face whose landmarks are off by so many pixels of 112."""

    class Detector:
        def __init__(self, model: Path) -> None:
            pass

        def search(self, image: Any) -> list[DetectedFace]:
            if image.shape[1] not in widths:
                return []
            landmarks = (TEMPLATE + (shift, 0) + 0.5) * (image.shape[1] / 112) - 0.5
            return [DetectedFace((0, 0, 9, 9), landmarks, 0.9)]

    monkeypatch.setattr(alignment_check, "FaceAligner", Detector)
    monkeypatch.setattr(alignment_check, "cached", lambda name: Path(name))


def test_which_sizes_are_those_of_photos() -> None:
    sizes = [(640, 640), (112, 150), (120, 112), (224, 224), (1, 1), (150, 150), (225, 225)]
    wanted = [True, True, False, False, False, False, True]
    assert [like_photo(np.zeros((*size, 3), np.uint8)) for size in sizes] == wanted


def test_by_size_without_a_detector(
    listed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment_check, "cached", lambda name: None)
    assert listed((112, 112), (150, 150)) == ""
    said = listed((112, 112), (300, 400), (400, 300))
    assert said.startswith("look like photos, not aligned faces: 2 of 3 images tried; ")
    assert COMMAND in said


def test_by_landmarks_where_the_size_says_nothing(
    listed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [(150, 150)] * 3
    detector(monkeypatch, 10, {150})
    said = listed(*many)
    assert "faces in 3 images tried are not where" in said
    assert "landmarks: 10 pixels of 112)" in said and COMMAND in said
    assert listed(*many, (130, 130), (130, 130)) != ""
    assert listed(*many, *[(130, 130)] * 3) == ""  # half of them show no face
    detector(monkeypatch, 4, {150})
    assert listed(*many) == ""


def test_a_sample_of_fifty_and_always_the_same(
    listed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment_check, "cached", lambda name: None)
    read: list[str] = []

    def reading(path: str) -> Image:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(alignment_check, "read_image", reading)
    listed(*[(8, 8)] * 80)
    listed(*[(8, 8)] * 80)
    assert len(set(read)) == 50 and read[:50] == read[50:]


def test_storage_that_hangs_is_not_waited_for(
    listed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment_check, "cached", lambda name: None)
    monkeypatch.setattr(alignment_check, "_SECONDS", 0.05)
    monkeypatch.setattr(alignment_check, "_LAST_IMAGE", 0.05)
    answers = threading.Event()

    def hanging(path: str) -> Image:
        answers.wait()
        raise ValueError("gone")

    monkeypatch.setattr(alignment_check, "read_image", hanging)
    assert listed((300, 400)) == ""
    answers.set()  # the thread ends: none outlives its test


def test_unreadable_images_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/bad.jpg\n{tmp_path}/none.jpg\n")
    assert doubt_alignment(read_table(tmp_path / "list.txt")) == ""


def test_the_detector_is_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDD_FIQA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "download_wheel", lambda *_: pytest.fail("fetched"))
    assert cached("yunet") is None and not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / assets.ASSETS["yunet"].file_name).write_bytes(b"damaged")
    assert cached("yunet") is None


def test_gen_datalist_says_it_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann/1.png", "ann/2.png", "bob/1.png", "bob/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((300, 400, 3), 90, np.uint8))
    assert gen_datalist.main(str(tmp_path), out_dir=tmp_path / "lists") == 0
    assert "look like photos, not aligned faces: " in (err := capsys.readouterr().err)
    assert COMMAND in err


def test_real_faces(tmp_path: Path, fetched: Callable[[str], Path]) -> None:
    fetched("yunet")
    source = fetched("orl")
    aligner = FaceAligner()
    for number in range(1, 9):
        photo = read_image(source / f"s{number}" / "1.pgm")
        wide = cv2.copyMakeBorder(photo, 20, 20, 30, 30, cv2.BORDER_REPLICATE)  # 152 x 152
        for folder, face in (("aligned", aligner.align(photo, 1)[0][1]), ("wide", wide)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{number}.png"), cv2.resize(face, (150, 150)))
    said = {}
    for folder in ("aligned", "wide"):
        names = sorted(map(str, (tmp_path / folder).iterdir()))
        (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
        said[folder] = doubt_alignment(read_table(tmp_path / "list.txt"))
    assert said["aligned"] == "" and "not where those of aligned faces are" in said["wide"]
