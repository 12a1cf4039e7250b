"""The quality models that come with the project, by name; docs/model.md is their model card."""

from __future__ import annotations

import os
from pathlib import Path

from sdd_fiqa.errors import UserError

_FOLDER = Path(__file__).parent
PRETRAINED = {"small": _FOLDER / "small.pth"}
DEFAULT_MODEL = "small"


def find_model(model: str | os.PathLike[str]) -> Path:
    """The file of a quality model: one of PRETRAINED by name, or the path as given.

    Raises:
        UserError: neither a known name nor a file.
    """
    path = PRETRAINED.get(os.fspath(model), Path(model))
    if not path.is_file():
        names = ", ".join(PRETRAINED)
        raise UserError(
            f"--model {model}: no such file, and no shipped model ({names}); train one with "
            "train.py, or get the published checkpoint (README, Published weights)"
        )
    return path
