"""Batches decoded by threads: the list's order, whole, and what cannot be read by its reason."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import loader
from dataset.images import read_face
from dataset.lists import ImageList, read_table
from dataset.loader import batches, default_workers, one_behind
from sdd_fiqa.errors import UnreadableImage


@pytest.fixture
def table(tmp_path: Path, faces: Path) -> ImageList:
    paths = sorted(faces.glob("*/*"))
    paths[5:5] = [tmp_path / "none.jpg"]
    (tmp_path / "bad.jpg").write_text("text")
    paths[9:9] = [tmp_path / "bad.jpg"]
    file = tmp_path / "list"
    file.write_text("".join(f"{path}\n" for path in paths))
    return read_table(file)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_every_record_in_the_order_asked_for(
    table: ImageList, batch_size: int, workers: int | None
) -> None:
    rows = np.random.default_rng(0).permutation(len(table))
    found = list(batches(table, rows, batch_size, workers))
    assert [len(batch.rows) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    assert np.concatenate([batch.rows for batch in found]).tolist() == rows.tolist()
    for batch in found:
        assert batch.faces.dtype == np.uint8
        for position, row in enumerate(batch.rows.tolist()):
            if row in (5, 9):
                assert position in batch.failures
                assert not batch.readable[position]
                assert not batch.faces[position].any()
            else:
                assert batch.readable[position]
                assert np.array_equal(batch.faces[position], read_face(table.path(row)))
    reasons = [reason for batch in found for reason in batch.failures.values()]
    assert not any(batch.like_photos for batch in found)
    assert sorted(reasons) == ["No such file or directory", "is not an image that can be decoded"]


def test_nothing_to_read_is_no_batch(table: ImageList) -> None:
    assert list(batches(table, [], 8)) == []


def test_only_so_much_is_decoded_ahead(table: ImageList, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by a few batches, however long the list."""
    read: list[str] = []
    lock = threading.Lock()

    def note_reading(path: str) -> Any:
        with lock:
            read.append(path)
        raise UnreadableImage("not now")

    monkeypatch.setattr(loader, "read_image", note_reading)
    stream = batches(table, np.arange(len(table)), 2, 2)
    next(stream)
    assert len(read) <= 2 * 3  # the batch in use and two ahead
    stream.close()
    assert threading.active_count() < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_error_of_ours_is_not_swallowed(
    table: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(paths: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(loader, "read_run", fail)
    with pytest.raises(ZeroDivisionError):
        list(batches(table, np.arange(4), 2, 1))


def test_threads_are_shared_among_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores: Callable[[], int] = lambda: 12  # noqa: E731
    monkeypatch.setattr("sdd_fiqa.cores.usable_cores", cores)
    for processes, threads in [("1", 12), ("4", 3), ("8", 1), ("99", 1)]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert default_workers() == threads
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr("sdd_fiqa.cores.usable_cores", lambda: 999)
    assert default_workers() == 16
    assert loader._AHEAD == 2


def test_results_are_asked_for_one_behind() -> None:
    made: list[int] = []

    def begin() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise KeyboardInterrupt

    found = []
    with pytest.raises(KeyboardInterrupt):
        for number in one_behind(begin()):
            found.append(number)
            assert made[-1] == min(number + 1, 3)
    assert found == [0, 1, 2, 3]
