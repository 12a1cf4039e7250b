"""Storage that fails: what is tried again, what is reported, and that nothing waits for ever."""

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset.images import read_image
from sdd_fiqa import storage
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.storage import File, read_file, retried

ROOT = Path(__file__).parents[2]


class Failing:
    """An action that fails some times before it succeeds."""

    def __init__(self, times: int, number: int = errno.EIO) -> None:
        self.left, self.number, self.calls = times, number, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return "done"


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr(storage, "_given_up", 0)
    return pauses


@pytest.mark.parametrize("number", sorted(storage.TRANSIENT))
def test_what_may_pass_is_tried_again(slept: list[float], number: int) -> None:
    failing = Failing(len(storage.PAUSES), number)
    assert retried(failing, "a.jpg") == "done"
    assert slept == list(storage.PAUSES)


def test_the_tries_are_bounded_and_told(slept: list[float]) -> None:
    failing = Failing(10**9)
    with pytest.raises(UnreadableImage, match=r"Input/output error \(5 tries in 3 s\)"):
        retried(failing, "a.jpg")
    assert failing.calls == len(storage.PAUSES) + 1
    assert sum(slept) == pytest.approx(3)


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EPERM]
)
def test_what_lasts_is_not_tried_again(slept: list[float], number: int) -> None:
    failing = Failing(10**9, number)
    with pytest.raises(UnreadableImage, match=os.strerror(number)):
        retried(failing, "a.jpg")
    assert (failing.calls, slept) == (1, [])


def test_a_storage_that_is_gone_ends_the_run(slept: list[float]) -> None:
    for _ in range(storage.GONE_AFTER - 1):
        with pytest.raises(UnreadableImage):
            retried(Failing(10**9), "a.jpg")
    retried(Failing(0), "a.jpg")  # one that succeeds begins the count anew
    for _ in range(storage.GONE_AFTER - 1):
        with pytest.raises(UnreadableImage):
            retried(Failing(10**9), "a.jpg")
    with pytest.raises(UserError, match=r"b\.jpg: Input/output error, as the 64 reads before it"):
        retried(Failing(10**9), "b.jpg")


def failing_reads(monkeypatch: pytest.MonkeyPatch, name: str, failing: Failing) -> None:
    real: Callable[..., object] = getattr(os, name)

    def call(*values: object, **more: object) -> object:
        failing()
        return real(*values, **more)

    monkeypatch.setattr(os, name, call)


def test_a_file_is_read_through_failures(
    tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    failing_reads(monkeypatch, "open", Failing(2, errno.ESTALE))
    assert read_file(tmp_path / "a") == b"content"
    file = File(tmp_path / "a")
    failing = Failing(3, errno.ESTALE)  # the first try is made without a pause after it
    failing_reads(monkeypatch, "pread", failing)
    assert file.read(2, 3) == b"nte"
    assert len(slept) == 4


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: real(file, min(size, 7), at))
    file = File(tmp_path / "a")
    assert file.read(10, 50) == bytes(range(10, 60))
    assert file.read(90, 50) == bytes(range(90, 100))
    assert file.read(100, 5) == b""
    with file.stream(16) as stream:
        assert stream.read() == bytes(range(100))
        assert stream.seek(-3, os.SEEK_END) == 97


def test_pipes_and_folders_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="not a file but a pipe"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="not a file but a pipe"):
        read_image("/dev/zero")
    with pytest.raises(UnreadableImage, match="Is a directory"):
        read_image(tmp_path)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "none.jpg")


def test_too_large_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(storage.MAX_BYTES + 1)  # sparse: no disk is used
    with pytest.raises(UnreadableImage, match="too many for an image"):
        read_file(tmp_path / "a.jpg")


def test_many_containers_take_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_OPEN", 4)
    files = []
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)
        files.append(File(tmp_path / f"{number}"))
    gc.collect()
    links = [
        os.readlink(f"/proc/self/fd/{n}")
        for n in os.listdir("/proc/self/fd")
        if n.isdigit() and os.path.islink(f"/proc/self/fd/{n}")
    ]
    assert sum(link.startswith(str(tmp_path)) for link in links) <= 4
    wrong: list[str] = []

    def read(seed: int) -> None:
        for step in range(400):
            number = (seed * 7 + step * 13) % 40
            if files[number].read(0, 10) != b"%d" % number:
                wrong.append(f"{number}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_replaced_meanwhile_is_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_OPEN", 1)
    (tmp_path / "a").write_bytes(b"first")
    file = File(tmp_path / "a")
    File(tmp_path / "a").read(0, 1)  # pushes the first out
    (tmp_path / "new").write_bytes(b"another")
    os.replace(tmp_path / "new", tmp_path / "a")
    with pytest.raises(UnreadableImage, match="has changed since it was opened"):
        file.read(0, 5)


STALLING = """
import threading
from pathlib import Path
from dataset import loader
from common.cli import run_script
from dataset.lists import read_table

loader.STALL_SECONDS = 1.0

def read(path):
    if path.endswith("7.jpg"):
        threading.Event().wait()  # what a read of a dead network mount does
    raise loader.UnreadableImage("fine")

loader.read_image = read

def main() -> int:
    table = read_table("list.txt")
    for batch in loader.batches(table, range(len(table)), 4, 2):
        pass
    return 0

run_script(main)
"""


def test_a_read_that_never_returns_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{n}.jpg\n" for n in range(20)))
    (tmp_path / "script.py").write_text(STALLING)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    said = "error: 4.jpg: reading it, or an image soon after it, has not come back for 1 s"
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr
