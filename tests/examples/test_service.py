"""examples/service.py, through FastAPI's test client."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError

pytest.importorskip("fastapi", reason="the extra `service` is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service() -> Any:
    spec = importlib.util.spec_from_file_location("service", ROOT / "examples" / "service.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client(service: Any) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(service.app)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_service_scores_the_faces_of_a_photo(client: Any, service: Any) -> None:
    try:
        photo = np.pad(np.asarray(Image.open(fetch("orl") / "s1" / "1.pgm")), 40)
        fetch("yunet")
    except UserError as error:
        pytest.skip(str(error))
    answer = client.post("/faces", content=png(photo))
    assert answer.status_code == 200
    (face,) = answer.json()
    (found,) = service.scorer()(png(photo))
    assert face["score"] == pytest.approx(found.score, abs=1e-3)
    assert face["accepted"] == found.accepted(0.95) and len(face["box"]) == 4
    assert client.post("/faces", content=png(np.zeros((99, 99), np.uint8))).json() == []


def test_service_answers_bad_input_with_one_reason(
    client: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "scorer", lambda: service.sdd_fiqa.scorer._pixels)  # no detector
    cases = [(b"", 400, "the body is empty"), (b"text", 422, "is not an image")]
    for content, code, reason in cases:
        answer = client.post("/faces", content=content)
        assert answer.status_code == code and reason in answer.json()["detail"]
    monkeypatch.setattr(service, "MAX_BYTES", 100)
    answer = client.post("/faces", content=b"x" * 101)
    assert answer.status_code == 413 and "more than 100 bytes" in answer.json()["detail"]
