"""Which second columns pass for labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdd_fiqa.errors import UserError
from train_config import TrainConfig
from training.data import read_training_list
from training.labels import check_labels


def check(folder: Path, values: list[float], each: int = 4, name: str = "labels.txt") -> None:
    """Checks labels of images in folders of `each`; the images exist."""
    rows = [(f"{folder}/p{row // each}/{row}.png", value) for row, value in enumerate(values)]
    for path, _ in rows:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    (folder / name).write_text("".join(f"{path}\t{value:g}\n" for path, value in rows))
    check_labels(read_training_list(TrainConfig(img_list=folder / name, val_identities=0)), -2)


@pytest.mark.parametrize("bad", [101.0, -0.5, np.nan])
def test_labels_outside_their_range_are_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(UserError, match=rf"labels.txt:2: label {bad:g} is outside 0..100; make"):
        check(tmp_path, [5, bad, 30])


@pytest.mark.parametrize(
    ("values", "each", "refused"),
    [
        ([0, 0, 1, 1, 2, 2], 2, True),
        ([7, 7, 130, 130, 2, 2], 2, True),  # any numbers; also above 100
        ([0, 0, 1, 1, 2, 3], 2, False),  # a label varies within an identity
        ([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 1], 4, True),  # an image was moved to another identity
        ([*[0] * 7, 9, *[9] * 7, 0], 8, False),  # two grades, which an identity has mostly
        ([0, 0, 40, 40, 40, 40], 2, False),  # two identities have the same label
        ([0, 40, 80, 100], 1, False),  # one image each: whole labels look the same
        ([0, 40, 80, 100], 4, False),  # one identity
        ([0.5, 0.5, 40.5, 40.5], 2, False),
    ],
)
def test_identities_are_labels_that_number_the_people(
    tmp_path: Path, values: list[float], each: int, refused: bool
) -> None:
    values = [float(value) for value in values]
    if refused:
        with pytest.raises(UserError, match="holds identities, not labels; make the labels with"):
            check(tmp_path, values, each)
    else:
        check(tmp_path, values, each)


def test_a_copy_of_the_list_of_identities_is_refused(tmp_path: Path) -> None:
    check(tmp_path, [3.0, 1.0, 2.0], each=1)
    (tmp_path / "DATA.labelpath").write_bytes((tmp_path / "labels.txt").read_bytes())
    with pytest.raises(UserError, match="holds identities"):
        check(tmp_path, [3.0, 1.0, 2.0], each=1)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([*np.linspace(0, 100, 40)], ""),
        ([50, 52, 54.5, 53], "its labels span only 50..54.5 of 0..100"),
        ([*np.linspace(1, 9, 9)], "its labels span only 1..9 of 0..100"),
        (
            [0, *np.linspace(99, 100, 18), 50],
            "90% of its labels lie between 99 and 100; --b",
        ),
        ([0, *[50] * 18, 90], "labels.txt: 90% of its labels are 50; --balanced"),
        ([0, 1, *np.linspace(99, 100, 17), 50], ""),
    ],
)
def test_odd_labels_are_noted(
    tmp_path: Path, values: list[float], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(tmp_path, values)
    said = capsys.readouterr().err
    assert note in said and said.count("note: ") == bool(note)


def test_an_image_in_a_container_exists(tmp_path: Path) -> None:
    (tmp_path / "x.rec").touch()
    path = tmp_path / "labels.txt"
    path.write_text(f"{tmp_path}/x.rec#1\t5\n{tmp_path}/x.rec#2\t50\n")
    data = read_training_list(TrainConfig(img_list=path, val_identities=0))
    check_labels(data, -2)
    (tmp_path / "x.rec").unlink()
    with pytest.raises(UserError, match="none of its images exists"):
        check_labels(data, -2)
