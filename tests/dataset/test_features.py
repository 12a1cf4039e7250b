"""Writing embeddings: a run that was cut short anywhere ends in the bytes of one that was not."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dataset import embedding_writer
from dataset.embedding_writer import FEATURES, FeatureWriter
from dataset.embeddings import NORMS
from dataset.lists import ImageList, read_table
from sdd_fiqa.errors import UserError

ROWS, DIMENSION, BATCH = 23, 5, 4
ABOUT = {"list": {"sha256": "abc"}, "weights": {"sha256": "def"}, "preprocessing": {"scale": 127.5}}
UNREADABLE = {6: "No such file", 22: "is empty"}


class Killed(BaseException):
    pass


@pytest.fixture
def table(tmp_path: Path) -> ImageList:
    (tmp_path / "list").write_text("".join(f"faces/a/{row}.jpg\n" for row in range(ROWS)))
    return read_table(tmp_path / "list")


def embeddings() -> npt.NDArray[np.float32]:
    values = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32) * 9
    values[10] = 0
    values[11, 2] = np.nan
    return values


def run(
    folder: Path,
    table: ImageList,
    *,
    about: dict[str, Any] = ABOUT,
    batch: int = BATCH,
    ranks: int = 1,
    stop_after: int | None = None,
    unreadable: dict[int, str] = UNREADABLE,
    finish: bool = True,
) -> list[int]:
    """Does what is missing, as extract_feats does; returns the batches written."""
    writer = FeatureWriter(folder, ROWS, DIMENSION, about)
    writer.prepare()
    missing = writer.missing_batches(batch)
    done: list[int] = []
    for rank, part in enumerate(np.array_split(missing, ranks)):
        own = FeatureWriter(folder, ROWS, DIMENSION, about, rank)
        for number in part.tolist():
            if len(done) == stop_after:
                raise Killed
            start = number * batch
            rows = range(start, min(start + batch, ROWS))
            failures = {row - start: unreadable[row] for row in rows if row in unreadable}
            own.write(start, embeddings()[start : start + batch], failures)
            done.append(number)
    if finish:
        writer.finish(table)
    return done


def results(folder: Path) -> dict[str, Any]:
    names = sorted(os.listdir(folder))
    assert names == ["Embedding_Features.json", FEATURES, NORMS]
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in names[1:]}
    found["json"] = json.loads((folder / names[0]).read_text())
    return found


@pytest.fixture
def whole(tmp_path: Path, table: ImageList) -> dict[str, Any]:
    run(tmp_path / "whole", table)
    return results(tmp_path / "whole")


def test_what_an_uninterrupted_run_leaves(
    tmp_path: Path, table: ImageList, whole: dict[str, Any]
) -> None:
    features, norms = np.load(tmp_path / "whole" / FEATURES), np.load(tmp_path / "whole" / NORMS)
    assert (features.dtype, features.shape) == (np.float16, (ROWS, DIMENSION))
    assert (norms.dtype, norms.shape) == (np.float32, (ROWS,))
    zero = sorted([*UNREADABLE, 10, 11])
    assert np.flatnonzero(norms == 0).tolist() == zero
    assert not features[zero].any()
    good = np.delete(np.arange(ROWS), zero)
    lengths = np.linalg.norm(embeddings()[good], axis=1)
    assert np.allclose(norms[good], lengths)
    assert np.allclose(features[good], embeddings()[good] / lengths[:, None], atol=1e-3)
    about = whole["json"]
    assert about["rows_done"] == ROWS
    assert about["dimension"] == DIMENSION
    assert {key: about[key] for key in ABOUT} == ABOUT
    assert about["unreadable"] == [
        {"row": 6, "path": "faces/a/6.jpg", "reason": "No such file"},
        {"row": 10, "path": "faces/a/10.jpg", "reason": "its embedding is zero or not finite"},
        {"row": 11, "path": "faces/a/11.jpg", "reason": "its embedding is zero or not finite"},
        {"row": 22, "path": "faces/a/22.jpg", "reason": "is empty"},
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stop_after", [0, 1, 3, 5])
def test_resumed_is_uninterrupted(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], ranks: int, stop_after: int
) -> None:
    folder = tmp_path / "feats"
    with pytest.raises(Killed):
        run(folder, table, ranks=ranks, stop_after=stop_after)
    assert not (folder / FEATURES).exists()
    again = run(folder, table, ranks=3 - ranks % 3)  # by another number of processes
    assert len(again) == -(-ROWS // BATCH) - stop_after  # what was written is not done again
    assert results(folder) == whole


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_torn_journal_costs_one_batch(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], cut: int
) -> None:
    folder = tmp_path / "feats"
    with pytest.raises(Killed):
        run(folder, table, stop_after=4)
    journal = folder / f"{FEATURES}.0.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    # One newline is lost: its line is whole. More: the line is torn, its batch is done again.
    assert run(folder, table) == ([4, 5] if cut == 1 else [3, 4, 5])
    assert results(folder) == whole


def test_another_batch_size_goes_on_too(
    tmp_path: Path, table: ImageList, whole: dict[str, Any]
) -> None:
    folder = tmp_path / "feats"
    with pytest.raises(Killed):
        run(folder, table, stop_after=3)  # rows 0..11
    assert run(folder, table, batch=5) == [2, 3, 4]
    assert results(folder) == whole


@pytest.mark.parametrize("changed", [{"list": {"sha256": "x"}}, {"weights": {}}, {"new": 1}])
def test_other_work_begins_anew(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], changed: dict[str, Any]
) -> None:
    folder = tmp_path / "feats"
    with pytest.raises(Killed):
        run(folder, table, about={**ABOUT, **changed}, stop_after=3)
    assert run(folder, table) == [0, 1, 2, 3, 4, 5]
    assert results(folder) == whole
    # What stands is kept until the other work is done.
    with pytest.raises(Killed):
        run(folder, table, about={**ABOUT, **changed}, stop_after=3)
    assert (folder / FEATURES).read_bytes() == whole[FEATURES]
    assert FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() is not None


def test_done_is_this_very_work_with_all_its_files(
    tmp_path: Path, table: ImageList, whole: dict[str, Any]
) -> None:
    folder = tmp_path / "whole"
    listed = whole["json"]["unreadable"]
    assert FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() == listed
    assert FeatureWriter(folder, ROWS, DIMENSION + 1, ABOUT).finished() is None
    assert FeatureWriter(folder, ROWS, DIMENSION, {**ABOUT, "weights": {}}).finished() is None
    beside = folder / "Embedding_Features.json"
    for text in ("{", "[]", "{}"):
        beside.write_text(text)
        assert FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() is None
    run(folder, table)
    assert results(folder) == whole
    for shorter in (1000, 0):  # cut off, or other numbers
        file = folder / FEATURES
        file.write_bytes(file.read_bytes()[:-9] if shorter else b"")
        assert FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() is None
        run(folder, table)
        assert results(folder) == whole
    for name in (FEATURES, NORMS, beside.name):
        run(folder, table)
        (folder / name).unlink()
        assert FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() is None
        run(folder, table)
        assert results(folder) == whole


@pytest.mark.parametrize("older", [False, True])
def test_a_kill_while_finishing_loses_nothing(
    tmp_path: Path,
    table: ImageList,
    whole: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    older: bool,
) -> None:
    """Dies before the n-th change of a file's name, n = 0, 1, ..., until there is none left."""
    replace, unlink = os.replace, Path.unlink
    for point in range(100):
        folder = tmp_path / f"{point}"
        if older:  # rows of other work stand in the folder
            run(folder, table, about={**ABOUT, "weights": {}}, unreadable={})
        run(folder, table, finish=False)
        left = iter(range(point))

        def dying(act: Any, left: Iterator[int] = left) -> Any:
            def do(*args: Any, **options: Any) -> None:
                if next(left, None) is None:
                    raise Killed
                act(*args, **options)

            return do

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(replace))
            patch.setattr(Path, "unlink", dying(unlink))
            try:
                FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finish(table)
            except Killed:
                killed = True
            else:
                killed = False
        if killed and FeatureWriter(folder, ROWS, DIMENSION, ABOUT).finished() is None:
            assert run(folder, table) == []
        assert (folder / FEATURES).read_bytes() == whole[FEATURES]
        assert (folder / NORMS).read_bytes() == whole[NORMS]
        beside = json.loads((folder / "Embedding_Features.json").read_text())
        assert beside == whole["json"]
        if not killed:
            assert point > 5
            return
    raise AssertionError("finish() changes more names than expected")


def test_a_row_mended_between_two_runs_is_no_longer_unreadable(
    tmp_path: Path, table: ImageList
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "f", table, stop_after=2)  # rows 0..7, row 6 unreadable
    run(tmp_path / "f", table, batch=5, unreadable={})  # rows 5..9 are done again, row 6 is well
    rows = [entry["row"] for entry in results(tmp_path / "f")["json"]["unreadable"]]
    assert rows == [10, 11]
    assert np.load(tmp_path / "f" / FEATURES)[6].any()


def test_nothing_readable_puts_nothing_in_place(tmp_path: Path, table: ImageList) -> None:
    run(tmp_path / "f", table)
    before = results(tmp_path / "f")
    message = (
        r"list: none of its images could be read \(the first: faces/a/0.jpg: gone\); paths are "
        "read relative to the current folder"
    )
    with pytest.raises(UserError, match=message):
        run(
            tmp_path / "f",
            table,
            about={**ABOUT, "weights": {}},
            unreadable=dict.fromkeys(range(ROWS), "gone"),
        )
    assert results(tmp_path / "f") == before


def test_how_the_list_was_typed_does_not_matter(tmp_path: Path, table: ImageList) -> None:
    typed = [{**ABOUT, "list": {"sha256": "abc", "path": path}} for path in ("a/l", "/x/a/l")]
    with pytest.raises(Killed):
        run(tmp_path / "f", table, about=typed[0], stop_after=3)
    assert run(tmp_path / "f", table, about=typed[1]) == [3, 4, 5]
    assert FeatureWriter(tmp_path / "f", ROWS, DIMENSION, typed[0]).finished() is not None


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"{}",
        b'{"start": 0, "stop": "x", "unreadable": []}',
        b'{"start": 0, "stop": 23, "unreadable": [[999, "gone"]]}',
        b'{"start": 0, "stop": 99, "unreadable": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"start": 0, "stop": 1e999, "unreadable": []}',
        b'{"start": 0, "stop": 23, "unreadable": [[-1e999, "gone"]]}',
        b'{"start": 0, "stop": 23, "unreadable": 5}',
    ],
)
def test_a_journal_that_is_not_ours_costs_nothing(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], line: bytes
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "f", table, stop_after=3)
    with open(tmp_path / "f" / f"{FEATURES}.0.journal", "ab") as file:
        file.write(line + b"\n")
    assert run(tmp_path / "f", table) == [3, 4, 5]
    assert results(tmp_path / "f") == whole


def test_parts_that_were_cut_off_are_begun_anew(
    tmp_path: Path, table: ImageList, whole: dict[str, Any]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "f", table, stop_after=3)
    part = tmp_path / "f" / f"{FEATURES}.part"
    part.write_bytes(part.read_bytes()[:200])
    assert run(tmp_path / "f", table) == [0, 1, 2, 3, 4, 5]
    assert results(tmp_path / "f") == whole


@pytest.mark.parametrize("name", [FEATURES, NORMS])
@pytest.mark.parametrize("place", [0, 6, 8, 20, 60])
def test_parts_whose_header_is_damaged_are_begun_anew(
    tmp_path: Path,
    table: ImageList,
    whole: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    name: str,
    place: int,
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "f", table, stop_after=3)
    with open(tmp_path / "f" / f"{name}.part", "r+b") as part:
        part.seek(place)
        part.write(bytes(4))
    assert run(tmp_path / "f", table) == [0, 1, 2, 3, 4, 5]
    assert f"{name}.part: is damaged" in capsys.readouterr().err
    assert results(tmp_path / "f") == whole


@pytest.mark.parametrize("key", ["rows_done", "dimension", "unreadable", "list"])
@pytest.mark.parametrize("number", ["1e999", "-5", "[[]]", '["x"]', "null"])
def test_a_damaged_json_is_made_again(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], key: str, number: str
) -> None:
    beside = tmp_path / "whole" / "Embedding_Features.json"
    beside.write_text(json.dumps({**whole["json"], key: "HERE"}).replace('"HERE"', number))
    assert FeatureWriter(tmp_path / "whole", ROWS, DIMENSION, ABOUT).finished() is None
    run(tmp_path / "whole", table)
    assert results(tmp_path / "whole") == whole


@pytest.mark.parametrize("name", [FEATURES, NORMS])
def test_rows_that_a_journal_alone_holds_are_written_again(
    tmp_path: Path, table: ImageList, whole: dict[str, Any], name: str
) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "f", table, stop_after=4, ranks=2)
    rows = np.load(tmp_path / "f" / f"{name}.part", mmap_mode="r+")
    rows[BATCH : 2 * BATCH] = 0  # the second batch, as a power cut may leave it
    rows.flush()
    assert run(tmp_path / "f", table) == [1, 4, 5]
    assert results(tmp_path / "f") == whole


def test_rows_that_nobody_wrote_are_not_done(tmp_path: Path, table: ImageList) -> None:
    writer = FeatureWriter(tmp_path / "f", ROWS, DIMENSION, ABOUT)
    writer.prepare()
    writer.write(0, embeddings()[:20], {})
    with pytest.raises(UserError, match="f: some rows were written by no process"):
        writer.finish(table)
    run(tmp_path / "f", table)
    assert np.load(tmp_path / "f" / FEATURES)[20:].any()


def test_a_full_disk_loses_what_found_no_room_alone(
    tmp_path: Path, table: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    writer = FeatureWriter(tmp_path / "f", ROWS, DIMENSION, ABOUT)
    writer.prepare()
    writer.write(0, np.ones((2, DIMENSION), np.float32), {})
    with monkeypatch.context() as patch:
        patch.setattr(embedding_writer, "open", full, raising=False)
        with pytest.raises(UserError, match=r"f: cannot be written \(No space .* run the same"):
            writer.write(2, np.ones((2, DIMENSION), np.float32), {})
    assert 0 not in writer.missing_batches(2) and 1 in writer.missing_batches(2)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/feats: cannot be written"):
        FeatureWriter(tmp_path / "file/feats", ROWS, DIMENSION, ABOUT).prepare()
