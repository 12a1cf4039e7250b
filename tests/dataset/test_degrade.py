"""Degradations: laws that hold for every kind, and one physical fact of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dataset import degradations as degrade_module
from dataset.degradations import KINDS, TEST_KINDS, TRAINING_KINDS, degrade, degrade_by
from sdd_fiqa.images import Image, cv2

STRENGTHS = np.linspace(0, 1, 9)


def face_like(seed: int) -> Image:
    """A smooth picture with edges and fine texture, in colour."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.uniform(40, 220, (7, 7, 3)).astype(np.float32), (112, 112))
    y, x = np.mgrid[:112, :112]
    oval = ((x - 56) / 38) ** 2 + ((y - 60) / 48) ** 2 < 1
    picture = np.where(oval[:, :, None], picture * 0.6 + 80, picture)
    picture = picture + rng.normal(0, 8, (112, 112, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def spoilt(face: Image, kind: str, strength: float, seed: int = 0) -> Image:
    return degrade(face, kind, strength, np.random.default_rng(seed))


def difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_strength_nought_is_the_face(kind: str) -> None:
    face = face_like(0)
    result = spoilt(face, kind, 0)
    assert np.array_equal(result, face)
    assert result is not face


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_a_new_face_of_the_same_form(kind: str) -> None:
    face = face_like(1)
    before = face.copy()
    result = spoilt(face, kind, 0.7)
    assert result.shape == (112, 112, 3)
    assert result.dtype == np.uint8
    assert np.array_equal(face, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_face(kind: str) -> None:
    face = face_like(2)
    assert np.array_equal(spoilt(face, kind, 0.5, seed=7), spoilt(face, kind, 0.5, seed=7))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"blur", "defocus", "webp"}))
def test_another_seed_gives_another_face(kind: str) -> None:
    face = face_like(2)
    results = {spoilt(face, kind, 0.5, seed=seed).tobytes() for seed in range(6)}
    assert len(results) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_strength_changes_more(kind: str) -> None:
    changes = np.array(
        [
            [difference(spoilt(face_like(seed), kind, s, seed), face_like(seed)) for s in STRENGTHS]
            for seed in range(12)
        ]
    )
    median = np.median(changes, axis=0)
    assert np.all(np.diff(median) > 0), median


@pytest.mark.parametrize("kind", KINDS)
def test_the_random_numbers_drawn_do_not_depend_on_strength(kind: str) -> None:
    states = []
    for strength in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(3)
        degrade(face_like(3), kind, strength, rng)
        states.append(rng.random())
    assert len(set(states)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_face_stays_grey(kind: str) -> None:
    grey = np.repeat(face_like(4)[:, :, :1], 3, axis=2)
    for seed in range(4):
        result = spoilt(grey, kind, 0.6, seed)
        assert np.all(result == result[:, :, :1])
        assert not np.array_equal(result, grey)


def test_blur_is_a_gaussian_of_the_stated_width() -> None:
    dot = np.zeros((112, 112, 3), np.uint8)
    dot[46:66, 46:66] = 255
    blurred = spoilt(dot, "blur", 0.5)[:, :, 0].astype(float)
    x = np.arange(112) - 55.5
    profile = blurred.sum(axis=0) / blurred.sum()
    # Variances add: that of a box of 20 pixels, and that of the Gaussian.
    assert profile @ x**2 == pytest.approx((20**2 - 1) / 12 + 4**2, rel=0.02)


def test_motion_smears_a_dot_along_one_line_of_the_stated_length() -> None:
    dot = np.zeros((112, 112, 3), np.uint8)
    dot[54:59, 54:59] = 255
    for seed in range(5):
        smeared = spoilt(dot, "motion", 1, seed)[:, :, 0].astype(float)
        y, x = np.mgrid[:112, :112]
        spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=smeared.ravel(), ddof=0)
        across, along = np.sqrt(np.linalg.eigvalsh(spread))
        assert along == pytest.approx(np.sqrt(32**2 / 12 + (5**2 - 1) / 12), rel=0.1)
        assert across < 2


def test_low_resolution_leaves_few_pixels() -> None:
    small = spoilt(face_like(5), "low_resolution", 1)
    back = cv2.resize(cv2.resize(small, (6, 6), interpolation=cv2.INTER_AREA), (112, 112))
    assert difference(small, back) < 10
    assert difference(face_like(5), back) > 12


def test_noise_grows_with_the_signal() -> None:
    dark, bright = (np.full((112, 112, 3), value, np.uint8) for value in (40, 140))
    assert np.std(spoilt(bright, "noise", 0.2)) > 1.3 * np.std(spoilt(dark, "noise", 0.2))


def test_compression_leaves_blocks_at_any_offset() -> None:
    offsets = set()
    for seed in range(12):
        step = np.abs(np.diff(spoilt(face_like(6), "compression", 0.9, seed).astype(int), axis=1))
        offsets.add(int(np.argmax([step[:, start::8].mean() for start in range(8)])))
    assert len(offsets) > 2


def test_low_light_is_darker() -> None:
    assert np.mean(spoilt(face_like(7), "low_light", 0.4)) < 0.6 * np.mean(face_like(7))


@pytest.mark.parametrize("kind", ["occlusion", "black_border"])
def test_what_is_covered_grows_and_what_is_not_stays(kind: str) -> None:
    face = face_like(8)
    for seed in range(16):
        weak, strong = spoilt(face, kind, 0.4, seed), spoilt(face, kind, 0.8, seed)
        weakly, strongly = np.any(weak != face, axis=2), np.any(strong != face, axis=2)
        colour = strong[strongly][0]
        assert np.all(strong[strongly] == colour)
        # A covered pixel may happen to have the cover's colour already.
        assert np.all(strong[weakly] == colour)
        assert strongly.mean() > weakly.mean() > 0
        if kind == "black_border":
            assert not colour.any()


def test_any_black_border_touches_the_edge() -> None:
    for seed in range(16):
        black = spoilt(np.full((112, 112, 3), 99, np.uint8), "black_border", 0.3, seed).max(2) == 0
        assert black[0].any() or black[-1].any() or black[:, 0].any() or black[:, -1].any()
        assert not black[56, 56]


@pytest.mark.parametrize(
    ("face", "kind", "strength", "rule"),
    [
        (face_like(0), "rain", 0.5, "unknown kind 'rain'; known ones: blur, motion"),
        (face_like(0), "blur", 1.1, r"\[0, 1\], got 1.1"),
        (face_like(0), "blur", float("nan"), r"\[0, 1\], got nan"),
        (face_like(0)[:100], "blur", 0.5, r"\(100, 112, 3\) uint8"),
        (face_like(0).astype(np.float32), "blur", 0.5, "float32"),
    ],
)
def test_bad_arguments(face: Image, kind: str, strength: float, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        degrade(face, kind, strength, np.random.default_rng(0))


def test_kinds_follow_each_other_as_on_the_way_to_a_file() -> None:
    face = face_like(9)
    strengths = {"compression": 0.6, "blur": 0.3, "occlusion": 0.4}
    result = degrade_by(face, strengths, np.random.default_rng(5))
    rng, by_hand = np.random.default_rng(5), face
    for kind in ("occlusion", "blur", "compression"):
        by_hand = degrade(by_hand, kind, strengths[kind], rng)
    assert np.array_equal(result, by_hand)
    assert np.array_equal(degrade_by(face, {}, rng), face)


def test_what_is_for_tests_is_not_trained_on() -> None:
    assert not set(TEST_KINDS) & set(TRAINING_KINDS)
    assert {*TEST_KINDS, *TRAINING_KINDS} == set(KINDS)
    assert sorted(degrade_module._ALONG_THE_WAY) == sorted(KINDS)
