"""The quickstart's faces: what is planned, what is written, and going on after an interruption."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.cli import EXIT_DONE, EXIT_SKIPPED
from dataset import orl_faces
from dataset.images import read_image
from dataset.orl_faces import COPY_KINDS, MANIFEST, main, plan_copies
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json
from sdd_fiqa.images import Image


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def toy_faces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of the real faces: pictures, the second of s03 not found. Returns who was asked."""
    log: list[str] = []

    def aligned() -> Iterator[Image | None]:
        for identity, number in orl_faces.FACES:
            log.append(f"{identity}/{number}")
            face = np.full((112, 112, 3), (5 * identity, 20 * number, 99), np.uint8)
            yield None if (identity, number) == (3, 2) else face

    monkeypatch.setattr(orl_faces, "_aligned", aligned)
    return log


def test_the_plan_gives_everybody_every_kind() -> None:
    copies = plan_copies(0)
    assert len(copies) == 320  # no face is degraded twice
    assert {identity for identity, _ in copies} == set(range(1, 41))
    for identity in range(1, 41):
        assert {copies[face][0] for face in copies if face[0] == identity} == set(COPY_KINDS)
    assert Counter(kind for kind, _ in copies.values()) == dict.fromkeys(COPY_KINDS, 64)
    for kind in COPY_KINDS:
        strengths = sorted(strength for own, strength in copies.values() if own == kind)
        np.testing.assert_allclose(strengths, np.linspace(0.2, 1, 64), atol=1e-4)


def test_the_plan_follows_its_seed() -> None:
    assert plan_copies(3) == plan_copies(3)
    assert plan_copies(3) != plan_copies(4)


def test_the_real_faces(
    fetched: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched("orl"), fetched("yunet")
    assert main(out_dir=tmp_path / "faces") == EXIT_DONE
    shown = capsys.readouterr().out
    assert "found and aligned 400/400 faces of 40 identities" in shown
    assert "320 degraded copies: 64 blur, 64 low_resolution, 64 noise, 64 occl" in shown
    files = contents(tmp_path / "faces")
    copies = read_json(tmp_path / "faces" / MANIFEST)["strengths"]
    names = {f"s{i:02d}/s{i:02d}_{n:02d}.png" for i in range(1, 41) for n in range(1, 11)}
    assert set(files) == names | set(copies) | {MANIFEST}
    for name in (*list(names)[:5], *list(copies)[:5]):
        assert read_image(tmp_path / "faces" / name).shape == (112, 112, 3)

    assert main(out_dir=tmp_path / "faces") == EXIT_DONE
    again = capsys.readouterr().out
    assert "nothing to do" in again and "found and aligned 400/400" in again
    assert contents(tmp_path / "faces") == files


def test_a_kind_stands_in_the_name(toy_faces: list[str], tmp_path: Path) -> None:
    main(out_dir=tmp_path)
    for (identity, number), (kind, _) in plan_copies(0).items():
        path = tmp_path / f"s{identity:02d}" / f"s{identity:02d}_{number:02d}.{kind}.png"
        assert path.is_file() or (identity, number) == (3, 2)


def test_a_face_that_is_not_found_is_named(
    toy_faces: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(out_dir=tmp_path) == EXIT_SKIPPED
    out, err = capsys.readouterr()
    assert "found and aligned 399/400" in out
    assert "s03/s03_02.png: no face found" in err
    assert not list(tmp_path.glob("s03/s03_02*"))
    # Known from now on: another run is finished at once and says the same.
    toy_faces.clear()
    assert main(out_dir=tmp_path) == EXIT_SKIPPED
    assert toy_faces == []
    assert "s03/s03_02.png: no face found" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_to_the_same_end(toy_faces: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    main(out_dir=whole)
    shutil.copytree(whole, broken)
    for name in ("s07", "s31"):
        shutil.rmtree(broken / name)
    kept = broken / "s08" / "s08_01.png"
    before = kept.stat().st_mtime_ns
    main(out_dir=broken)
    assert contents(broken) == contents(whole)
    assert kept.stat().st_mtime_ns == before


def test_a_run_that_died_is_not_taken_for_finished(
    toy_faces: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(path: Path, face: Image) -> None:
        if path.name == "s20_05.png":
            raise KeyboardInterrupt
        write(path, face)

    write = orl_faces._write
    monkeypatch.setattr(orl_faces, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        main(out_dir=tmp_path / "broken")
    monkeypatch.setattr(orl_faces, "_write", write)
    main(out_dir=tmp_path / "broken")
    main(out_dir=tmp_path / "whole")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_faces_of_another_seed_are_not_mixed_in(toy_faces: list[str], tmp_path: Path) -> None:
    main(out_dir=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"orl_faces\.json: was made with other settings"):
        main(out_dir=tmp_path, seed=1)
    with pytest.raises(UserError, match="--seed -1: must be 0 or more"):
        main(out_dir=tmp_path, seed=-1)
    assert contents(tmp_path) == before


def test_an_out_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        main(out_dir=tmp_path / "file" / "faces")
