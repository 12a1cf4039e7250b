from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset.command_line import UserError
from dataset.degraded_copies import Copies, main, write_copies
from dataset.images import read_face


def test_copies_are_keyed_by_name_and_made_once(
    tmp_path: Path, make_faces: Callable[[Path], Path]
) -> None:
    root = make_faces(tmp_path / "data/faces")
    copies = Copies(0.6, ("blur", "noise"), (0.3, 0.9), seed=1)
    made, failures = write_copies(str(root), tmp_path / "data/degraded", copies)
    files = sorted((tmp_path / "data/degraded").rglob("*.jpg"))
    assert made == len(files) and not failures and 6 <= made <= 20
    for file in files:
        stem, kind, _ = file.name.split(".")
        assert kind in ("blur", "noise")
        original = next((root / file.parent.name).glob(f"{stem}.*"))
        difference = np.abs(read_face(file).astype(int) - read_face(original)).mean()
        assert difference > 3
    # One face less: the others' copies stay what they were.
    kept = {file: file.read_bytes() for file in files}
    gone = next(root.rglob("*.png"))
    gone.unlink()
    for file in files[::2]:
        file.unlink()
    write_copies(str(root), tmp_path / "data/degraded", copies)
    for file, content in kept.items():
        if file.parent.name != gone.parent.name or not file.name.startswith(gone.stem):
            assert file.read_bytes() == content


def test_bad_arguments_and_bad_faces(
    tmp_path: Path, make_faces: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_faces(tmp_path / "faces"), tmp_path / "out"
    for change, message in (
        ({"kinds": ("rain",)}, "--kinds rain: choose from blur"),
        ({"share": 0.0}, "--share 0: must lie in"),
        ({"strengths": (0.5, 0.1)}, "--strengths"),
        ({"data_root": "nowhere"}, "nowhere: is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            main(**{"data_root": str(root), "out_dir": out, **change})  # type: ignore[arg-type]
    (root / "id0/broken.png").write_bytes(b"no image")
    assert main(data_root=str(root), out_dir=out, share=1.0) == 3
    assert "broken.png: is not an image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        main(data_root=str(tmp_path / "empty"), out_dir=out)
