"""What several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.assets import fetch
from dataset.command_line import UserError


@pytest.fixture
def fetched() -> Callable[[str], Path]:
    """Fetches a known asset into the user's own cache; skips the test where it cannot be had."""

    def get(name: str) -> Path:
        try:
            return fetch(name)
        except UserError as error:
            pytest.skip(f"{name} cannot be fetched: {error}")

    return get
