"""Labels with the identity's share taken out: against a loop, and its laws."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tyro

from dataset.lists import read_table
from generate_pseudo_labels.gen_pseudo_labels import main
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.labels import with_level_identities
from sdd_fiqa.errors import UserError

SIZES = np.array([1, 2, 5, 40, 7])
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def made(repeats: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    scale = np.repeat([0.0, 0.2, 0.5, 0.9, 0.4], SIZES)[:, None]
    return np.asarray(rng.uniform(0, 1, (SIZES.sum(), repeats)) * scale, np.float32)


@pytest.mark.parametrize("share", [1, 0.5, 0])
@pytest.mark.parametrize("repeats", [1, 12])
def test_upper_quartiles_become_one(repeats: int, share: float) -> None:
    w1 = made(repeats)
    found = with_level_identities(w1, STARTS, share)
    spans = [slice(*span) for span in pairwise(STARTS)]
    quartiles = [np.sort(w1[span].mean(1))[3 * (len(w1[span]) - 1) // 4] for span in spans]
    wanted = np.mean([value for value in quartiles if value > 0])
    for span, quartile in zip(spans, quartiles, strict=True):
        factor = (wanted / quartile) ** share if quartile > 0 else 1
        np.testing.assert_allclose(found[span], w1[span] * factor, rtol=1e-5)


def test_a_persons_likeness_drops_out() -> None:
    w1 = made(1)
    likeness = np.repeat([1.0, 3.0, 0.5, 2.0, 0.25], SIZES)[:, None].astype(np.float32)
    one, other = with_level_identities(w1, STARTS), with_level_identities(w1 * likeness, STARTS)
    ratio = other[1:] / one[1:]  # the first identity has nothing above zero
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert np.array_equal(with_level_identities(np.zeros_like(w1), STARTS), np.zeros_like(w1))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(6), 20)
    spread = np.repeat([0.3, 0.5, 0.7, 0.9, 1.1, 1.3], 20)[:, None]
    feats = (rng.normal(size=(6, 24))[y] + spread * rng.normal(size=(len(y), 24))).astype(
        np.float16
    )
    notes = tmp_path / "annotations"
    (notes / "feats_npy").mkdir(parents=True)
    np.save(notes / "feats_npy/Embedding_Features.npy", feats)
    (notes / "DATA.labelpath").write_text("".join(f"f/{c}/{i}.jpg\t{c}\n" for i, c in enumerate(y)))
    between = []
    for flags in ([], ["--level-identities", "--level-share", "0.5"], ["--level-identities"]):
        assert tyro.cli(main, args=["--estimator", "exact", *flags]) == 0
        labels = read_table(notes / "quality_pseudo_labels.txt", "label").values
        assert labels.min() == 0 and labels.max() == 100
        between.append(np.std([np.percentile(labels[y == c], 75) for c in range(6)]))
    assert between[2] < 0.2 * between[0] and between[2] < between[1] < between[0]
    # A power keeps the ends of the scale and the order, and changes nothing but the labels.
    flags = ["--level-identities", "--label-power", "2"]
    assert tyro.cli(main, args=["--estimator", "exact", *flags]) == 0
    squares = read_table(notes / "quality_pseudo_labels.txt", "label").values
    assert np.allclose(squares, labels**2 / 100, atol=0.01)


@pytest.mark.parametrize("power", ["0", "-1", "inf", "nan"])
def test_a_power_that_is_none(power: str) -> None:
    with pytest.raises(UserError, match="--label-power"):
        LabelSettings(label_power=float(power)).check()


@pytest.mark.parametrize("settings", [{"level_share": 0.5}, {"level_share": 2.0}])
def test_a_share_that_is_none(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="--level-share"):
        LabelSettings(**settings).check()  # type: ignore[arg-type]
