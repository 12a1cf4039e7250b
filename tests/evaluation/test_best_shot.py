"""Groups of images, the ranks in them, and the copies of the best."""

import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dataset.faces import Faces
from dataset.find import find_images
from dataset.images import read_image
from dataset.left_out import Skipped
from dataset.lists import table_of
from evaluation.best_shot import (
    BestShots,
    best_shots,
    check_copies,
    copy_best,
    key_of,
    print_best,
)
from sdd_fiqa.errors import UserError

NAN = np.nan
# By path: albums/ann/{1,2,3}, albums/bob/{1,2}, albums/carl/1, other/ann/1.
VALUES = np.array([50.0, 70.00001, 70.0, NAN, NAN, 20.0, 90.0], np.float32)
RANKS = {
    None: [4, 2, 3, 0, 0, 5, 1],
    "folder": [3, 1, 2, 0, 0, 1, 1],
    "-2": [4, 2, 3, 0, 0, 1, 1],
    "0": [3, 1, 2, 0, 0, 4, 1],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = ["ann/1", "ann/2", "ann/3", "bob/1", "bob/2", "carl/1"]
    for number, name in enumerate([*(f"albums/{name}" for name in names), "other/ann/1"]):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.full((112, 112, 3), 10 * number, np.uint8))
    return tmp_path


def open_faces(*inputs: str) -> tuple[Faces, Any]:
    table = table_of(find_images(inputs, Skipped()), Path("list.txt"))
    return Faces(table, 4), table


@pytest.mark.parametrize("per", RANKS)
def test_ranks_within_groups(here: Path, per: str | None) -> None:
    faces, table = open_faces("albums", "other")
    shots = best_shots(faces, VALUES, None if per is None else key_of(per, table))
    assert list(shots.column()[1]) == [str(rank or "") for rank in RANKS[per]]


def test_rows_outside_all_groups_have_no_rank() -> None:
    shots = BestShots.of(["a"], np.array([-1, 0, -1, 0], np.int32), np.arange(4, dtype=np.float32))
    assert list(shots.column()[1]) == ["", "2", "", "1"]


def test_a_line_a_group(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces, table = open_faces("albums")
    shots = best_shots(faces, VALUES[:6], key_of("folder", table))
    print_best(shots, VALUES[:6], faces.paths_at, 1, 0, 30.0, sys.stdout)
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "albums/ann\t70.00\talbums/ann/2.png\tof 3\tnext 70.00",
        "albums/carl\t20.00\talbums/carl/1.png\tof 1\tnext none",
    ]
    assert err.splitlines() == [
        "no face scored in albums/bob",
        "below the threshold: albums/carl (best 20.00)",
    ]
    print_best(shots, VALUES[:6], faces.paths_at, 1, 2, None, sys.stdout)
    assert capsys.readouterr().out.splitlines()[3:] == [
        "the worst of each group:",
        "albums/ann\t50.00\talbums/ann/1.png\tof 3\tnext 70.00",
        "albums/ann\t70.00\talbums/ann/3.png\tof 3\tnext 70.00",
        "albums/carl\t20.00\talbums/carl/1.png\tof 1\tnext none",
    ]


@pytest.mark.parametrize(
    ("per", "message"),
    [
        ("day", "--per day: must be folder, track or the number"),
        ("track", "--per track: is for videos; add --frames-per-second"),
        ("-1", "--per -1: is the image's own name"),
        ("-9", "--per -9: albums/ann/1.png has no such part"),
    ],
)
def test_keys_that_no_path_has(here: Path, per: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        key_of(per, open_faces("albums")[1])


def test_copies_of_the_best(here: Path) -> None:
    """Bytes unchanged; twice the same; two of one name get a number."""
    faces, table = open_faces("albums", "other")
    best = Path("best")
    for per, expected in [
        ("folder", ["albums/ann/2.png", "albums/carl/1.png", "other/ann/1.png"]),
        ("-2", ["ann/1.png", "carl/1.png"]),
        (None, ["1.png"]),
    ]:
        key = None if per is None else key_of(per, table)
        shots = best_shots(faces, VALUES, key)
        for _ in range(2):
            check_copies(best, ["albums", "other"], table, key, False)
            assert copy_best(best, shots, 1, faces, False) == 0
        assert sorted(str(file.relative_to(best)) for file in best.rglob("*.png")) == expected
        for name in expected if per == "folder" else []:
            assert (best / name).read_bytes() == Path(name).read_bytes()
        shutil.rmtree(best)
    copy_best(best, best_shots(faces, VALUES, key_of("-2", table)), 4, faces, False)
    twins = [Path("other/ann/1.png"), Path("albums/ann/1.png")]
    copies = [best / "ann/1.png", best / "ann/1_2.png"]
    assert [file.read_bytes() for file in copies] == [file.read_bytes() for file in twins]
    Path("other/ann/1.png").unlink()
    assert copy_best(Path("new"), best_shots(faces, VALUES, None), 1, faces, False) == 1


def test_crops_are_png(here: Path) -> None:
    faces, table = open_faces("albums/ann")
    shots = best_shots(faces, VALUES[:3], "folder")
    copy_best(Path("best"), shots, 1, faces, True)
    assert np.array_equal(read_image("best/albums/ann/2.png.png"), read_image("albums/ann/2.png"))
    check_copies(Path("best"), ["albums"], table, "folder", True)
    Path("best/albums/ann/2.png.png").write_text("mine")
    with pytest.raises(UserError, match=r"2\.png\.png is there, with other bytes"):
        copy_best(Path("best"), shots, 1, faces, True)


@pytest.mark.parametrize("folder", ["albums", "albums/ann/best", "other/best"])
def test_a_folder_inside_an_input_is_refused(here: Path, folder: str) -> None:
    (here / "link").symlink_to("albums")
    table = open_faces("albums")[1]
    with pytest.raises(UserError, match="lies inside"):
        check_copies(Path(folder), ["list.txt", "link", "oth*/*"], table, "folder", False)
    assert not Path(folder).exists() or folder == "albums"
    check_copies(Path("best"), ["albums", "albums/*/*.png"], table, "folder", False)


def test_other_bytes_are_never_replaced(here: Path) -> None:
    table = open_faces("albums")[1]
    mine = here / "best/albums/carl/1.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"best/albums/carl/1\.png is there, with other bytes"):
        check_copies(Path("best"), ["albums"], table, "folder", False)
    faces, _ = open_faces("albums/carl")
    with pytest.raises(UserError, match="is there, with other bytes"):
        copy_best(Path("best"), best_shots(faces, VALUES[:1], "folder"), 1, faces, False)
    assert mine.read_text() == "mine"
