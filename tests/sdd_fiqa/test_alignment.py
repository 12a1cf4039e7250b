"""Alignment: the transform against an SVD reference, the crop against plain warps, and the detector
on real faces (where they can be fetched) under flips, turns, scales and shifts."""

from __future__ import annotations

import copy
import pickle
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.images import read_image
from sdd_fiqa.alignment import (
    TEMPLATE,
    DetectedFace,
    FaceAligner,
    Points,
    align,
    rolls,
    similarity_transform,
)
from sdd_fiqa.assets import fetch
from sdd_fiqa.detector import YuNet
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import Image, cv2, decode_image
from sdd_fiqa.quality_onnx import SHIPPED

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def umeyama(a: Points, b: Points) -> Points:
    """Umeyama 1991, equations 40 to 42, in his notation: the plain reference."""
    mu_x, mu_y = a.mean(axis=0), b.mean(axis=0)
    sigma_xy = (b - mu_y).T @ (a - mu_x) / len(a)
    u, d, v_t = np.linalg.svd(sigma_xy)
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v_t))])
    r = u @ s @ v_t
    c = np.trace(np.diag(d) @ s) / np.mean(np.sum((a - mu_x) ** 2, axis=1))
    return np.column_stack([c * r, mu_y - c * r @ mu_x])


def turned(points: Points, matrix: Points) -> Points:
    return points @ matrix[:, :2].T + matrix[:, 2]


def similarity(scale: float, degrees: float, shift: tuple[float, float]) -> Points:
    turn = np.deg2rad(degrees)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def detect(aligner: FaceAligner, photo: Image, most: int | None = None) -> list[DetectedFace]:
    return [face for face, _ in aligner.align(photo, most)]


def texture(height: int, width: int, seed: int = 0) -> Image:
    """A smooth coloured picture."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, 3))
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


# --- The transform --------------------------------------------------------------------------------
@given(
    scale=st.floats(0.05, 20),
    degrees=st.floats(-180, 180),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
)
def test_a_similarity_is_found_again(
    scale: float, degrees: float, shift: tuple[float, float]
) -> None:
    matrix = similarity(scale, degrees, shift)
    found = similarity_transform(TEMPLATE, turned(TEMPLATE, matrix))
    np.testing.assert_allclose(found, matrix, rtol=1e-9, atol=1e-7)


@given(seed=st.integers(0, 10_000), noise=st.floats(0.1, 100))
def test_it_is_umeyamas_least_squares(seed: int, noise: float) -> None:
    source = TEMPLATE + np.random.default_rng(seed).normal(0, noise, (5, 2))
    found = similarity_transform(source, TEMPLATE)
    np.testing.assert_allclose(found, umeyama(source, TEMPLATE), rtol=1e-6, atol=1e-7)
    assert np.linalg.det(found[:, :2]) > 0  # turned, never mirrored


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (np.full((5, 2), 7.0), "have no size"),
        (TEMPLATE[:4], r"got \(4, 2\), \(5, 2\)"),
        (TEMPLATE.ravel(), r"expected two arrays of shape \(N, 2\)"),
    ],
)
def test_points_that_tell_nothing(source: Points, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        similarity_transform(source, TEMPLATE)


# --- The crop -------------------------------------------------------------------------------------
def test_an_aligned_face_is_left_as_it_is() -> None:
    face = texture(112, 112)
    assert np.array_equal(align(face, TEMPLATE), face)


def test_a_shifted_face_is_cut_out_exactly() -> None:
    photo = texture(400, 320)
    landmarks = TEMPLATE + np.array([130, 201])
    assert np.array_equal(align(photo, landmarks), photo[201:313, 130:242])


def test_where_the_photo_ends_it_is_black() -> None:
    photo = np.full((112, 112, 3), 200, np.uint8)
    face = align(photo, TEMPLATE - np.array([30, 0]))
    assert np.all(face[:, 30:] == 200)
    assert not face[:, :29].any()
    assert not align(photo, TEMPLATE + 5000).any()


@pytest.mark.parametrize("degrees", [0, 25, 180])
@pytest.mark.parametrize("scale", [0.5, 1.3, 1.9])
def test_it_is_the_plain_warp_where_nothing_aliases(scale: float, degrees: float) -> None:
    photo = texture(300, 400)
    landmarks = turned(TEMPLATE - 56, similarity(scale, degrees, (210, 140)))
    plain = cv2.warpAffine(photo, similarity_transform(landmarks, TEMPLATE), (112, 112))
    assert np.abs(align(photo, landmarks).astype(int) - plain).max() <= 1


@pytest.mark.parametrize("scale", [2, 3, 8])
def test_a_large_face_shrinks_without_a_shift(scale: int) -> None:
    face = texture(112, 112)
    large = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    photo = np.asarray(np.pad(large, ((37, 11), (23, 5), (0, 0))), np.uint8)
    landmarks = (TEMPLATE + 0.5) * scale - 0.5 + (23, 37)
    shrunk = align(photo, landmarks)[4:-4, 4:-4].astype(int)
    assert np.abs(shrunk - face[4:-4, 4:-4]).mean() < 1.5
    # One pixel to either side is clearly worse.
    assert np.abs(shrunk - face[4:-4, 5:-3]).mean() > 3


def test_fine_stripes_of_a_large_face_average_out() -> None:
    photo = np.zeros((900, 900, 3), np.uint8)
    photo[:, ::2] = 200
    face = align(photo, TEMPLATE * 8)[8:-8, 8:-8]
    assert np.all(np.abs(face.astype(int) - 100) < 15)


def test_landmarks_of_another_form() -> None:
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        align(texture(112, 112), TEMPLATE[:4])


# --- The detector ---------------------------------------------------------------------------------
@pytest.fixture
def aligner(fetched: Callable[[str], Path]) -> FaceAligner:
    return FaceAligner(fetched("yunet"))


@pytest.fixture
def faces(fetched: Callable[[str], Path]) -> list[Image]:
    """One frontal face of ten people, 112 high and 92 wide."""
    folder = fetched("orl")
    return [read_image(folder / f"s{identity}" / "1.pgm") for identity in range(1, 11)]


def on_canvas(face: Image, matrix: Points, size: int = 400) -> Image:
    """The face moved by `matrix` into a grey picture."""
    canvas = cv2.warpAffine(face, matrix, (size, size), borderValue=(96, 96, 96))
    return np.asarray(canvas, np.uint8)


def test_landmarks_are_named_as_seen_in_the_picture(
    aligner: FaceAligner, faces: list[Image]
) -> None:
    for face in faces:
        (found,) = detect(aligner, face)
        left_eye, right_eye, nose, left_mouth, right_mouth = found.landmarks
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
        x, y, width, height = found.box
        assert np.all(found.landmarks > (x, y))
        assert np.all(found.landmarks < (x + width, y + height))
        assert 0.6 <= found.detector_score <= 1


def test_a_mirrored_face_has_mirrored_landmarks(aligner: FaceAligner, faces: list[Image]) -> None:
    for face in faces:
        seen = detect(aligner, face)[0].landmarks
        mirrored = detect(aligner, np.ascontiguousarray(face[:, ::-1]))[0].landmarks
        mirrored = mirrored[[1, 0, 2, 4, 3]]
        mirrored[:, 0] = face.shape[1] - 1 - mirrored[:, 0]
        assert np.abs(seen - mirrored).mean() < 1


@pytest.mark.parametrize("scale", [1, 2.2, 3])
@pytest.mark.parametrize("degrees", [0, 20, -15])
def test_the_crop_does_not_depend_on_how_the_face_stood(
    aligner: FaceAligner, faces: list[Image], degrees: float, scale: float
) -> None:
    distances = []
    for face in faces:
        upright = on_canvas(face, similarity(1, 0, (150, 150)))
        first = detect(aligner, upright)[0].landmarks - 150
        moved = similarity(scale, degrees, (120, 90))
        second = detect(aligner, on_canvas(face, moved, 640))[0].landmarks
        crops = [
            similarity_transform(points, TEMPLATE) for points in (turned(first, moved), second)
        ]
        grid = turned(face_grid(), moved)
        distances.append(np.abs(turned(grid, crops[0]) - turned(grid, crops[1])).mean())
    assert np.mean(distances) < 2  # of 112 pixels


def face_grid() -> Points:
    return np.array([(x, y) for x in (20, 46, 72) for y in (30, 60, 90)], float)


def test_an_aligned_face_lies_on_the_template(aligner: FaceAligner, faces: list[Image]) -> None:
    offsets = []
    for face in faces:
        crop = aligner.align(face)[0][1]
        again = similarity_transform(detect(aligner, crop)[0].landmarks, TEMPLATE)
        offsets.append(np.abs(turned(TEMPLATE, again) - TEMPLATE).mean())
    assert np.mean(offsets) < 1.5


def test_faces_come_largest_first_and_as_many_as_wanted(
    aligner: FaceAligner, faces: list[Image]
) -> None:
    photo = np.full((500, 600, 3), 96, np.uint8)
    photo[20:132, 20:112] = faces[0]
    photo[200:424, 150:334] = cv2.resize(faces[1], (184, 224))
    photo[60:228, 400:538] = cv2.resize(faces[2], (138, 168))
    found = detect(aligner, photo)
    assert len(found) == 3
    centres = [face.landmarks.mean(axis=0) for face in found]
    for centre, middle in zip(centres, [(242, 312), (469, 144), (66, 76)], strict=True):
        assert np.linalg.norm(centre - middle) < 30
    assert [face.box for face in detect(aligner, photo, most=1)] == [found[0].box]
    crops = aligner.align(photo, most=2)
    assert [crop.shape for _, crop in crops] == [(112, 112, 3)] * 2


def test_small_faces_are_found_whatever_the_first_look_shows(
    aligner: FaceAligner, faces: list[Image]
) -> None:
    """Faces of 7 % down to 2 % of the photo's longer side, in rows of four."""
    photo = np.full((4000, 6000, 3), 96, np.uint8)
    centres = []
    for number in range(12):
        height = 180 - 5 * number
        face = cv2.resize(faces[number % 10], (height * 92 // 112, height))
        top, left = 400 + number // 4 * 1200, 500 + number % 4 * 1400
        photo[top : top + height, left : left + face.shape[1]] = face
        centres.append((left + face.shape[1] / 2, top + height / 2))
    found = detect(aligner, photo)
    assert len(found) == 12  # and none twice
    for centre in centres:
        assert min(np.linalg.norm(one.landmarks.mean(axis=0) - centre) for one in found) < 40


def test_a_near_face_does_not_hide_a_far_one(aligner: FaceAligner, faces: list[Image]) -> None:
    photo = np.full((2000, 3000, 3), 96, np.uint8)
    photo[300:1644, 200:1304] = cv2.resize(faces[0], (1104, 1344))
    photo[900:994, 2400:2477] = cv2.resize(faces[1], (77, 94))
    assert len(detect(aligner, photo)) == 2
    assert len(aligner.search(photo)) == 1  # one look: the largest face is all that is needed


def test_a_photo_of_one_face_is_looked_at_once(
    aligner: FaceAligner, faces: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[int, ...]] = []
    rows = YuNet.rows

    def counted(self: YuNet, seen: Image) -> Any:
        looks.append(seen.shape[:2])
        return rows(self, seen)

    monkeypatch.setattr(YuNet, "rows", counted)
    photo = np.full((480, 640, 3), 96, np.uint8)
    photo[100:324, 200:384] = cv2.resize(faces[0], (184, 224))
    for most in (None, 1):
        assert len(detect(aligner, photo, most)) == 1
        assert looks == [(480, 640), (320, 320), (320, 320)]  # the close-up and its mirror image
        looks.clear()


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turned_photo_gives_the_upright_crops(
    aligner: FaceAligner, faces: list[Image], turn: int
) -> None:
    photo = np.full((420, 640, 3), 96, np.uint8)
    photo[20:132, 20:112] = faces[0]
    photo[100:324, 300:484] = cv2.resize(faces[1], (184, 224))
    lying = np.ascontiguousarray(np.rot90(photo, turn // 90))  # turned counterclockwise
    upright = aligner.search(photo)
    found = aligner.search(lying, turn=turn)
    assert len(found) == len(upright) == 2
    for one, other in zip(found, upright, strict=True):
        assert one.turned == turn
        assert (
            np.abs(align(lying, one.landmarks).astype(int) - align(photo, other.landmarks)).max()
            < 9
        )
        assert rolls(one.landmarks[None])[0] == pytest.approx(
            (rolls(other.landmarks[None])[0] - turn + 180) % 360 - 180, abs=0.1
        )
        x, y, width, height = one.box
        assert np.all(one.landmarks > (x, y))
        assert np.all(one.landmarks < (x + width, y + height))
    quick = aligner.search_turned(lying)
    assert [{face.turned for face in look} for look in quick if look] == [
        {at} for at, look in zip((90, 180, 270), quick, strict=True) if look
    ]
    best = quick[turn // 90 - 1][0]
    assert np.abs(best.landmarks - found[0].landmarks).mean() < 8


@given(degrees=st.floats(-179, 179), scale=st.floats(0.1, 10))
def test_the_roll_is_the_angle_of_the_template(degrees: float, scale: float) -> None:
    moved = turned(TEMPLATE, similarity(scale, degrees, (30, -7)))
    assert rolls(np.stack([moved, moved * np.nan]))[0] == pytest.approx(degrees, abs=1e-6)


def test_colours_arrive_in_their_order(aligner: FaceAligner, faces: list[Image]) -> None:
    tinted = (faces[0] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)
    crop = aligner.align(tinted)[0][1]
    red, green, blue = (float(crop[..., i].mean()) for i in range(3))
    assert red > green > blue


def test_a_small_face_in_a_large_photo(aligner: FaceAligner, faces: list[Image]) -> None:
    photo = np.full((1800, 2400, 3), 96, np.uint8)
    photo[900:1012, 1500:1592] = faces[3]
    (found,) = detect(aligner, photo)
    assert np.linalg.norm(found.landmarks.mean(axis=0) - (1546, 956)) < 30


def test_a_face_that_fills_and_leaves_the_picture(aligner: FaceAligner, faces: list[Image]) -> None:
    for face in faces:
        cut = cv2.resize(face[24:-10, 12:-12], None, fx=8, fy=8)
        found = detect(aligner, np.asarray(cut, np.uint8), most=1)
        assert found
        seen = (found[0].landmarks + 0.5) / 8 - 0.5 + (12, 24)
        assert np.abs(seen - detect(aligner, face)[0].landmarks).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (64, 64), (112, 112), (1500, 700)])
def test_no_face_is_no_face(aligner: FaceAligner, size: tuple[int, int]) -> None:
    assert detect(aligner, np.full((*size, 3), 90, np.uint8)) == []
    assert aligner.align(np.zeros((*size, 3), np.uint8)) == []


def test_it_can_be_copied_sent_and_shared(aligner: FaceAligner, faces: list[Image]) -> None:
    expected = [detect(aligner, face)[0].landmarks for face in faces]
    for other in (copy.copy(aligner), pickle.loads(pickle.dumps(aligner))):
        np.testing.assert_array_equal(detect(other, faces[0])[0].landmarks, expected[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda face: detect(aligner, face)[0].landmarks, faces * 3))
    np.testing.assert_array_equal(found, expected * 3)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.onnx: is not a file"):
        FaceAligner(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    for other in (tmp_path / "text.onnx", SHIPPED["small"]):
        with pytest.raises(UserError, match=rf"{other.name}: is not a YuNet model"):
            FaceAligner(other).align(texture(64, 64))


def test_the_detector_gives_the_rows_of_opencv(faces: list[Image]) -> None:
    """Pictures of all sizes, with no face, one, and some whose boxes overlap."""
    model = str(fetch("yunet"))
    detector, plain = (
        YuNet(model, 0.6),
        cv2.FaceDetectorYN.create(model, "", (9, 9), 0.6, 0.3, 5000),
    )
    crowd = np.concatenate([*faces[:3], *faces[:2]], axis=1)
    sizes = (160, 160), (301, 95), (640, 360), (700, 701), (1, 40)
    found = 0
    for photo in [faces[0], crowd, *(cv2.resize(crowd, size) for size in sizes)]:
        plain.setInputSize(photo.shape[1::-1])
        wanted = plain.detect(np.ascontiguousarray(photo[:, :, ::-1]))[1]
        wanted = np.empty((0, 15), np.float32) if wanted is None else wanted
        rows = detector.rows(photo)
        np.testing.assert_allclose(rows, wanted, atol=1e-3)
        found += len(rows)
    assert found > 10


@pytest.mark.skipif(not (SHARED / "lfw_photos.tar").exists(), reason="needs ../shared")
def test_photos_become_the_crops_made_by_others(aligner: FaceAligner) -> None:
    """Other landmarks, so no exact match: but the same faces, and nearly the same place."""
    photos = images_of(SHARED / "lfw_photos.tar")
    crops = {
        name: image
        for part in ("lfw112-1.tar", "lfw112-2.tar")
        for name, image in images_of(SHARED / part, wanted=set(photos)).items()
    }
    assert set(crops) == set(photos)
    differences = []
    for name, photo in photos.items():
        found = aligner.align(photo, most=1)
        assert found, name
        differences.append(np.abs(found[0][1].astype(int) - crops[name]).mean())
    middle = [np.abs(photos[n][19:131, 19:131].astype(int) - crops[n]).mean() for n in photos]
    assert np.median(differences) < 14
    assert np.median(middle) > 30


def images_of(tar: Path, wanted: set[str] | None = None) -> dict[str, Image]:
    with tarfile.open(tar) as archive:
        files = {
            "/".join(Path(member.name).parts[-2:]): archive.extractfile(member)
            for member in archive.getmembers()
            if member.isfile()
            and member.name.endswith(".jpg")
            and (wanted is None or "/".join(Path(member.name).parts[-2:]) in wanted)
        }
        return {name: decode_image(file.read()) for name, file in files.items() if file is not None}
