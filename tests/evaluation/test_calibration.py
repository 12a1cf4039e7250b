"""What a calibration says: laws of percentiles and thresholds, and the command that makes one."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import calibration as module
from evaluation.held_out import calibration, held_out_curve
from models.checkpoints import read_about
from models.networks import build_network
from sdd_fiqa.calibration import (
    check_calibration,
    percentiles_of,
    reaches,
    threshold_that_keeps,
    usable,
)
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of

SCORES = np.random.default_rng(0).normal(60, 15, 2000)


def test_percentile_is_the_share_of_faces_below() -> None:
    table: Any = calibration(SCORES)
    probe = np.linspace(SCORES.min(), SCORES.max(), 500)
    share = np.array([100 * np.mean(score > SCORES) for score in probe])
    assert np.abs(percentiles_of(probe, table) - share).max() < 0.5


def test_threshold_keeps_what_was_asked() -> None:
    table: Any = calibration(SCORES)
    for share in (1, 0.99, 0.95, 0.9, 0.755, 0.5, 0.01):
        threshold = threshold_that_keeps(share, table)
        assert reaches(SCORES, threshold).mean() == pytest.approx(share, abs=0.003)
        assert percentiles_of(np.array([threshold]), table)[0] == pytest.approx(
            100 * (1 - share), abs=0.01
        )


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60))
def test_percentiles_rise_with_scores_and_stay_in_range(values: Any) -> None:
    scores = np.array(values)
    table: Any = calibration(scores)
    probe = np.sort(np.concatenate([scores, [-2e4, 2e4]]))
    shares = percentiles_of(probe, table)
    assert np.all(np.diff(shares) >= 0) and shares[0] == 0 and shares[-1] == 100


def test_equal_scores_share_the_middle_of_their_percentiles() -> None:
    table: Any = calibration(np.repeat([10.0, 20.0, 30.0], [100, 800, 100]))
    assert percentiles_of(np.array([20.0]), table)[0] == pytest.approx(50, abs=1)


def test_no_score_has_no_percentile_and_is_not_accepted() -> None:
    table: Any = calibration(np.array([np.nan, *SCORES]))
    assert table["faces"] == len(SCORES)
    assert np.isnan(percentiles_of(np.array([np.nan]), table)[0])
    assert not reaches(np.array([np.nan]), -1e9)[0]
    assert calibration(np.array([np.nan])) is None


def test_a_score_counts_as_the_csv_shows_it() -> None:
    assert reaches(np.array([np.float32(49.99996)]), 50.0)[0]
    assert not reaches(np.array([np.float32(49.9999)]), 50.0)[0]


@pytest.mark.parametrize(
    "table",
    [
        3,
        {},
        {"percentiles": list(range(100, -1, -1))},
        *(
            {"percentiles": [*range(100), last], "thresholds": []}
            for last in (10**30, 10**400, "x")
        ),
    ],
)
def test_damaged_calibration_is_named(table: Any) -> None:
    with pytest.raises(UserError, match=r"model\.pth: its calibration is damaged .* make it again"):
        usable(table, "model.pth")


@pytest.fixture
def scored(tmp_path: Any) -> Any:
    """A checkpoint without a .json, and the scores it might have given."""
    torch.save(build_network("MFN").state_dict(), tmp_path / "model.pth")
    lines = [f"{row}.jpg,{score:.4f},ok\n" for row, score in enumerate(SCORES)]
    text = "path,score,status\n" + "".join(lines) + "bad.jpg,,no face\n"
    (tmp_path / "scores.csv").write_text(text)
    return tmp_path


def test_command_makes_a_calibration_and_keeps_the_rest(scored: Any, capsys: Any) -> None:
    model, scores = scored / "model.pth", scored / "scores.csv"
    assert module.main(scores=scores, model=model) == 0
    assert "calibration on 2,000 faces" in capsys.readouterr().out
    about = read_about(model)
    expected = calibration(np.round(SCORES, 4))
    assert about == {"sha256": sha256_of(model), "calibration": expected}
    (scored / "model.json").write_text(json.dumps({**about, "architecture": "MFN"}))
    scores.write_text("\n".join(scores.read_text().split("\n")[:202]))
    assert module.main(scores=scores, model=model) == 0
    about = read_about(model)
    assert about["architecture"] == "MFN" and about["calibration"]["faces"] == 201


def test_command_with_embeddings_says_what_error_is_left(scored: Any) -> None:
    count = len(SCORES)
    rng = np.random.default_rng(3)
    y = np.arange(count) % 100
    # Faces of low scores have noisy embeddings.
    noise = rng.normal(size=(count, 16)) * (1.2 - SCORES[:, None] / 100)
    feats = (rng.normal(size=(100, 16))[y] + noise).astype(np.float32)
    np.save(scored / "feats.npy", feats)
    lines = "".join(f"{row}.jpg\t{identity}\n" for row, identity in enumerate(y))
    (scored / "list").write_text(lines)
    given = {"scores": scored / "scores.csv", "model": scored / "model.pth"}
    more = {"feats": scored / "feats.npy", "image_list": scored / "list", "fmr": 1e-2}
    assert module.main(**given, **more) == 0
    found: Any = read_about(scored / "model.pth")["calibration"]
    curve = held_out_curve(np.round(SCORES, 4), feats, y, 1e-2)
    assert found == calibration(np.round(SCORES, 4), curve)
    left = [entry["fnmr"] for entry in found["thresholds"]]
    assert left == sorted(left, reverse=True) and left[-1] < 0.9 * left[0]
    with pytest.raises(UserError, match="--fmr 2: must be between 0 and 1"):
        module.main(**given, fmr=2.0)
    with pytest.raises(UserError, match=r"is part of the project; copy .*small\.pth"):
        module.main(**given | {"model": type(scored)("small")})
    with pytest.raises(UserError, match="name both, or neither"):
        module.main(**given, feats=scored / "feats.npy")
    (scored / "list").write_text(lines.replace(".jpg", ".png"))
    with pytest.raises(UserError, match=r"none of its paths is in .*list"):
        module.main(**given, **more)


def test_command_refuses(scored: Any) -> None:
    model, scores = scored / "model.pth", scored / "scores.csv"
    with pytest.raises(UserError, match="then export it again"):
        module.main(scores=scores, model=scored / "model.onnx")
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        module.main(scores=scores, model=scored / "none.pth")
    (scored / "few.csv").write_text("path,score,status\na.jpg,50,ok\n")
    with pytest.raises(UserError, match="has 1 scored face; 101 are needed"):
        module.main(scores=scored / "few.csv", model=model)
    (scored / "model.json").write_text('{"sha256": "another"}')
    with pytest.raises(UserError, match="describes another file"):
        module.main(scores=scores, model=model)
    assert (scored / "model.json").read_text() == '{"sha256": "another"}'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "`thresholds` must be a list, got None"),
        ({"thresholds": [{"discard": 5, "score": 1}]}, "discard: share in 0..1"),
        ({"thresholds": [7]}, "a threshold must be"),
        ({"thresholds": [{"discard": 0.5, "score": "<script>"}]}, "a threshold must be"),
        ({"thresholds": [], "percentiles": [1, 0] * 50 + [2]}, "must be 101 rising scores"),
        ({"thresholds": [], "fmr": "<b>"}, "`fmr` must be a number, got '<b>'"),
    ],
)
def test_a_damaged_calibration_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_calibration(table)
