"""The picture of the label step takes a second, and the labels none: only scripts draw it here."""

import pytest


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generate_pseudo_labels.distributions_plot.draw_picture", lambda *_: None)
