"""bf16 is taken for embeddings only where it leaves them in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common import device
from common.precision import Precision
from models import recognisers
from models.recognisers import load_recogniser


def test_a_network_that_drifts_in_bf16_runs_in_float32(
    weights: dict[str, Path],
    make_face: Callable[[int, int], npt.NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512_bf16"})
    faces = np.stack([make_face(identity, 7) for identity in range(4)])
    path = str(weights["recognition"])  # random, with a last BatchNorm that blows rounding up

    def embeddings(precision: Precision) -> npt.NDArray[np.float32]:
        found = load_recogniser(path, "MFN", "cpu", precision, faces).embed(faces)
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

    half, full = embeddings("bf16"), embeddings("fp32")
    cosine = float(np.sum(half * full, axis=1).min())
    assert cosine < recognisers.MIN_COSINE
    capsys.readouterr()
    assert np.array_equal(embeddings("auto"), full)
    assert "in bf16 its embeddings drift; float32 is taken" in capsys.readouterr().err

    monkeypatch.setattr(recognisers, "MIN_COSINE", cosine - 0.01)
    assert np.array_equal(embeddings("auto"), half)
    assert capsys.readouterr().err == ""
