"""Files that are written whole or not at all, and how a script leaves."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.cli import fail
from sdd_fiqa import files
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import (
    lock_folder,
    make_parent,
    read_json,
    replacing,
    scratch_folder,
    sha256_of,
    write_json,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new/folder/file.txt"
    with replacing(target) as file:
        file.write("one\n\u674e\n")
        assert not target.exists()
    assert target.read_bytes() == "one\n\u674e\n".encode()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(target) as file:
            file.write("half")
            file.flush()
            raise error
    assert target.read_text() == "one\n\u674e\n"
    assert os.listdir(target.parent) == ["file.txt"]
    with replacing(target, "wb") as file:
        file.write(b"\0")
    assert target.read_bytes() == b"\0"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for text in ("one", "two"):
        with replacing(tmp_path / "link") as file:
            file.write(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk/file").read_text() == text


def test_what_is_no_ordinary_file_is_written_to(tmp_path: Path) -> None:
    with replacing(os.devnull) as file:
        file.write("gone")
    assert Path(os.devnull).is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with replacing(pipe) as file:
        file.write("through")
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    targets: list[tuple[str | Path, str]] = [
        (tmp_path, "is a folder; name a file"),
        ("", "is a folder; name a file"),
        (tmp_path / "file/below", "cannot be written"),
        ("/proc/none/two/three/file", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ]
    for target, message in targets:
        with pytest.raises(UserError, match=message), replacing(target):
            raise AssertionError("the block must not begin")
    full = pytest.raises(UserError, match=r"/dev/full: cannot be written \(No space")
    with full, replacing("/dev/full") as file:
        file.write("x")
        file.flush()
    with full, replacing("/dev/full", "wb") as file:
        torch.save({"weight": torch.zeros(1 << 20)}, file)
    with pytest.raises(RuntimeError, match="mine"), replacing(tmp_path / "file"):
        raise RuntimeError("mine")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        (tmp_path / "another").read_text()  # its own trouble, not that of the file written
    make_parent(tmp_path / "a/b/c")
    assert os.listdir(tmp_path / "a/b") == []


def test_where_a_file_stands_but_none_beside_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores.csv").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"scores\.csv: cannot be written \(no permission in"):
        make_parent(tmp_path / "scores.csv")
    make_parent("/dev/null")


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 254, "\u674e" * 84):
        with replacing(tmp_path / name) as file:
            file.write("whole")
        assert (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize(
    ("closed", "code", "message"),
    [
        (">/dev/full", 1, "error: an output cannot be written (No space left on device)\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_scripts_bear_outputs_that_take_nothing(closed: str, code: int, message: str) -> None:
    text = "from common.cli import *\ndef main() -> int:\n    print('x')\n    return 0\n"
    call = f'{sys.executable} -c "$0" {closed}'
    done = subprocess.run(
        ["sh", "-c", call, text + "run_script(main)"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == message


@pytest.mark.parametrize(
    ("closed", "code", "out", "message"),
    [
        (">/dev/full", 1, "", "error: the output cannot be written (No space left on device)\n"),
        (">&-", 3, "", ""),
        ("2>&-", 3, "gone.jpg,,No such file or directory", ""),
        ("2>/dev/full", 3, "gone.jpg,,No such file or directory", ""),
    ],
)
def test_so_does_the_library(
    closed: str, code: int, out: str, message: str, fetched: Callable[[str], Path]
) -> None:
    fetched("yunet")
    call = f"{sys.executable} -m sdd_fiqa gone.jpg --device cpu {closed}"
    done = subprocess.run(["sh", "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, message)
    assert out in done.stdout


def test_json_round_trip_and_what_is_none(tmp_path: Path) -> None:
    content = {"path": "\u674e/a.jpg", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    for bad in (b"", b"{", b"\xff\xfe"):
        (tmp_path / "x.json").write_bytes(bad)
        with pytest.raises(UserError, match=r"x\.json: is not JSON .*; make it again"):
            read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        read_json(tmp_path / "none.json")


def test_sha256_does_not_depend_on_the_block(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert {sha256_of(tmp_path / "abc", block) for block in (1, 2, 3, 99)} == {known}


def test_an_error_is_one_line_that_keeps_names_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fail("two  spaces.jpg: first\n   second\r\nthird") == 1
    assert capsys.readouterr().err == "error: two  spaces.jpg: first second third\n"


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new/out"
    with lock_folder(folder):
        with (
            pytest.raises(UserError, match="out: another run is at work there"),
            lock_folder(folder),
        ):
            pass
        assert os.listdir(folder) == []
    with lock_folder(folder):
        pass


def test_what_is_too_large_and_what_ends_a_script_is_one_line(tmp_path: Path) -> None:
    for body, code, words in (
        ("np.empty(1 << 60, np.uint8)", 1, "error: this machine's memory is too small"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", 130, "error: interrupted"),
    ):
        text = "import os, signal, time, numpy as np\nfrom common.cli import run_script\n"
        text += f"def main() -> int:\n    {body}\n    return 0\nrun_script(main)\n"
        (tmp_path / "x.py").write_text(text)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, tmp_path / "x.py"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert done.stderr.startswith(words)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "Infinity", "1" + "0" * 30, "9" * 5000])
def test_a_number_that_nothing_here_can_hold_is_refused(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"rows": [{number}]}}')
    with pytest.raises(UserError, match=r"a\.json: is not JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"rows": [1, -2.5, NaN, 18446744073709551615]}')
    assert read_json(tmp_path / "a.json")["rows"][3] == 2**64 - 1


_WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from sdd_fiqa.files import replacing, scratch_folder
with replacing(Path(sys.argv[1]) / "scores.csv") as file, scratch_folder(Path(sys.argv[1])):
    print("writing", flush=True)
    time.sleep(600)
"""


def start_writing(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _WRITE_AND_WAIT, str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def test_a_killed_run_leaves_nothing_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, alive = start_writing(tmp_path), start_writing(tmp_path)
    try:
        killed.kill()
        killed.wait()
        assert len(os.listdir(tmp_path)) == 4
        others = [".scores.csv.tmp", f".scores.csv.0123abcd.{killed.pid}.1.tmp", ".a.1.2.tmp"]
        for name in others:  # not ours, or of another machine
            (tmp_path / name).touch()
        own = tmp_path / f".scores.csv.{files._host()}.{os.getpid()}.1.tmp"
        own.touch()  # of an earlier process of our number, as in a container
        monkeypatch.setattr(files, "_searched", set())
        with replacing(tmp_path / "other.csv"), replacing(tmp_path / "third.csv"):
            left = sorted(os.listdir(tmp_path))
            assert not any(f".{killed.pid}." in name and name not in others for name in left)
            assert sum(f".{alive.pid}." in name for name in left) == 2
            assert sum(f".{os.getpid()}." in name for name in left) == 2 and own.name not in left
            assert set(others) <= set(left)
    finally:
        alive.kill()
        alive.wait()


def test_a_scratch_folder_goes(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "a").touch()
        with scratch_folder(tmp_path) as second:
            assert second != folder
        assert (folder / "a").exists()
    assert not list(tmp_path.iterdir())
