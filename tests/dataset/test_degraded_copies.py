from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import EXIT_SKIPPED
from dataset.degradations import degrade_by
from dataset.degraded_copies import Copies, main, write_copies
from dataset.images import read_face
from dataset.left_out import Skipped
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import cv2


def test_copies_are_keyed_by_name_and_made_once(
    tmp_path: Path, make_faces: Callable[[Path], Path]
) -> None:
    root = make_faces(tmp_path / "data/faces")
    copies = Copies(0.6, ("blur", "noise"), (0.3, 0.9), seed=1)
    made, kept_faces, failures = write_copies(
        str(root), tmp_path / "data/degraded", copies, Skipped()
    )
    files = sorted((tmp_path / "data/degraded").rglob("*.jpg"))
    assert made == len(files) and not failures and 6 <= made <= 20 and kept_faces == 0
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
    write_copies(str(root), tmp_path / "data/degraded", copies, Skipped())
    for file, content in kept.items():
        if file.parent.name != gone.parent.name or not file.name.startswith(gone.stem):
            assert file.read_bytes() == content


def test_several_kinds_at_once_and_the_rest_kept(
    tmp_path: Path, make_faces: Callable[[Path], Path]
) -> None:
    root, out = make_faces(tmp_path / "faces"), tmp_path / "out"
    copies = Copies(
        0.6, ("blur", "noise", "compression"), (0.2, 0.8), seed=2, most=3, keep_others=True
    )
    made, kept, failures = write_copies(str(root), out, copies, Skipped())
    faces = sorted(path.relative_to(root) for path in root.rglob("*.*"))
    assert made + kept == len(faces) and not failures and made and kept
    counts = set()
    for face in faces:
        drawn = copies.of(str(face))
        if drawn is None:
            assert (out / face).read_bytes() == (root / face).read_bytes()
            continue
        strengths, rng = drawn
        counts.add(len(strengths))
        share = 1 / np.sqrt(len(strengths))
        assert all(0.2 * share <= strength <= 0.8 * share for strength in strengths.values())
        copy = read_face(out / face.with_suffix(f".{'+'.join(strengths)}.jpg"))
        wanted = degrade_by(read_face(root / face), strengths, rng)[:, :, ::-1]
        _, saved = cv2.imencode(".jpg", wanted, [cv2.IMWRITE_JPEG_QUALITY, 95])
        again: Any = cv2.imdecode(saved, cv2.IMREAD_COLOR)
        assert np.array_equal(copy, again[:, :, ::-1])
    assert counts == {1, 2, 3}


def test_a_copy_never_takes_the_place_of_anothers(
    tmp_path: Path, make_faces: Callable[[Path], Path]
) -> None:
    root, out = make_faces(tmp_path / "faces"), tmp_path / "out"
    face = next(root.rglob("*.png"))
    cv2.imwrite(str(face.with_suffix(".jpg")), np.full((112, 112, 3), 200, np.uint8))
    faces = len(list(root.rglob("*.*")))
    copies = Copies(1.0, ("blur",), (0.1, 0.2), seed=1)
    made, _, failures = write_copies(str(root), out, copies, Skipped())
    assert made == faces - 1 == len(list(out.rglob("*.*")))
    why = (
        f"its copy would be {out}/{face.parent.name}/{face.stem}.blur.jpg, which is another face's"
    )
    assert failures == [(str(face), why)]
    copy = read_face(out / face.parent.name / f"{face.stem}.blur.jpg")
    assert np.abs(copy.astype(int) - 200).max() < 5


def test_one_folder_has_copies_of_one_kind_and_names_what_it_leaves_out(
    tmp_path: Path, make_faces: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_faces(tmp_path / "faces"), tmp_path / "out"
    assert main(data_root=str(root), out_dir=out, seed=3) == main(
        data_root=str(root), out_dir=out, seed=3
    )
    with pytest.raises(UserError, match=r'the copies there were made with .*"seed": 3'):
        main(data_root=str(root), out_dir=out, seed=4)
    (root / "id0/dead.jpg").symlink_to("nowhere")
    assert main(data_root=str(root), out_dir=out, seed=3) == EXIT_SKIPPED
    assert "left out: links to nothing" in capsys.readouterr().err


def test_bad_arguments_and_bad_faces(
    tmp_path: Path, make_faces: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_faces(tmp_path / "faces"), tmp_path / "out"
    for change, message in (
        ({"kinds": ("rain",)}, "--kinds rain: choose from blur"),
        ({"share": 0.0}, "--share 0: must be in"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"strengths": (0.5, 0.1)}, "--strengths"),
        ({"kinds": ("blur", "noise"), "most": 3}, "--most 3: must be in 1..2"),
        ({"kinds": ("blur", "blur"), "most": 2}, "--most 2: must be in 1..1"),
        ({"data_root": "nowhere"}, "nowhere: is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            main(**{"data_root": str(root), "out_dir": out, **change})  # type: ignore[arg-type]
    (root / "id0/broken.png").write_bytes(b"no image")
    assert main(data_root=str(root), out_dir=out, share=1.0) == 3
    assert "broken.png: is not an image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        main(data_root=str(tmp_path / "empty"), out_dir=out, share=1.0)
    other = tmp_path / "other"
    for seed in (0, 1):  # no copy was made: no settings bind the folder
        with pytest.raises(UserError, match="has no images"):
            main(data_root=str(tmp_path / "empty"), out_dir=other, seed=seed)
