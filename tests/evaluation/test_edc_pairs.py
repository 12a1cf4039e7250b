"""Where pairs come from: all of a set, some drawn at random, rows of any length."""

from __future__ import annotations

import numpy as np
import pytest

from edc_faces import FOUR, faces
from evaluation.edc import pairs as pairs_module
from evaluation.edc.areas import areas
from evaluation.edc.curves import evaluate
from evaluation.edc.pairs import all_pairs, sampled_pairs, unit_rows


def test_sampled_impostors() -> None:
    features, ids, quality = faces(200, 20, seed=11)
    source = sampled_pairs(features, ids, 30_000, seed=1)
    again = sampled_pairs(features, ids, 30_000, seed=1)
    other = sampled_pairs(features, ids, 30_000, seed=2)
    listed = source.listed
    assert source.impostors == 30_000 and source.sampled
    assert np.all(ids[listed.first] != ids[listed.second])
    np.testing.assert_array_equal(listed.first, again.listed.first)
    assert not np.array_equal(listed.first, other.listed.first)
    np.testing.assert_allclose(
        listed.similarity,
        np.sum(features[listed.first] * features[listed.second], axis=1),
        atol=1e-6,
    )
    whole = all_pairs(features, ids)
    np.testing.assert_array_equal(source.genuine.similarity, whole.genuine.similarity)
    exact = evaluate(whole, {"q": quality}, [0.05], FOUR)
    drawn = evaluate(source, {"q": quality}, [0.05], FOUR)
    for key, curve in exact.items():
        np.testing.assert_array_equal(curve.shares, drawn[key].shares)  # of all pairs, not the draw
        assert areas(curve)["aoc"] == pytest.approx(areas(drawn[key])["aoc"], abs=0.05)


def test_every_impostor_pair_is_drawn_alike() -> None:
    ids = np.array([0, 0, 0, 1, 1, 2])
    features = np.eye(6, dtype=np.float32)
    listed = sampled_pairs(features, ids, 110_000, seed=3).listed
    low, high = np.minimum(listed.first, listed.second), np.maximum(listed.first, listed.second)
    seen, counts = np.unique(low * 6 + high, return_counts=True)
    assert len(seen) == 11  # 15 pairs less 3 + 1 genuine ones
    assert np.all(np.abs(counts - 10_000) < 600)  # 6 standard deviations


@pytest.mark.parametrize("count", [1, 3, 9])
def test_sources_agree_on_counts(count: int) -> None:
    features, ids, quality = faces(50, count, seed=12)
    source = all_pairs(features, ids)
    tail = list(source.impostors_above(-2.0))
    assert sum(len(part.similarity) for part in tail) == source.impostors
    assert len(source.genuine.similarity) + source.impostors == 50 * 49 // 2
    level = np.unique(np.round(quality * 10), return_inverse=True)[1].astype(np.int32)
    levels = int(level.max()) + 1
    counted = np.zeros(levels, int)
    for part in tail:
        worse = np.minimum(level[part.first], level[part.second])
        counted += np.bincount(worse, minlength=levels)
    found = source.impostors_by_level(level, levels)
    np.testing.assert_array_equal(found, counted)


def test_too_many_genuine_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "MAX_GENUINE", 10)
    with pytest.raises(ValueError, match="largest identity has 6 images; limit the images"):
        all_pairs(np.eye(8, dtype=np.float32), np.array([0] * 6 + [1] * 2))


def test_sampling_one_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="no impostor pair"):
        sampled_pairs(np.eye(4, dtype=np.float32), np.zeros(4, int), 5)


def test_rows_of_any_length_and_type_become_unit_rows() -> None:
    rows = np.random.default_rng(16).normal(size=(50, 7))
    units = unit_rows(rows * 100)
    np.testing.assert_allclose(units, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=1e-5)
    assert unit_rows(rows.astype(np.float16)).dtype == np.float32
