"""How a script stops: signals that come at any time, and a stderr that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.Popen[str]"]

HEAD = """
import os, signal, sys, time
from pathlib import Path
from tqdm import tqdm
from common.cli import StopRequest, note, run_script, uninterrupted
from sdd_fiqa.errors import UserError
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whatever the caller ignores

def ready(name):
    Path(name).touch()

def wait(name):
    for _ in range(6000):
        if Path(name).exists():
            return
        time.sleep(0.01)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a script whose `main` has this body."""
    started = []

    def begin(body: str, **more: object) -> subprocess.Popen[str]:
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        (tmp_path / "x.py").write_text(f"{HEAD}\ndef main() -> int:\n{lines}\nrun_script(main)\n")
        options: dict[str, object] = {"stderr": subprocess.PIPE, **more}
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "x.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SAVES = """
try:
    ready("working")
    wait("never")
except KeyboardInterrupt:
    ready("saving")
    wait("go on")
    ready("saved")
    raise
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_costs_nothing(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    process = start(SAVES)
    wait_for(tmp_path / "working")
    process.send_signal(number)
    wait_for(tmp_path / "saving")
    process.send_signal(number)
    (tmp_path / "go on").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists()
    assert "Traceback" not in errors
    assert errors.endswith("error: interrupted\n")


@pytest.mark.parametrize("body", [SAVES, "stop = StopRequest()\nready('working')\nwait('never')"])
def test_a_third_signal_ends_at_once(tmp_path: Path, start: Start, body: str) -> None:
    process = start(body)
    wait_for(tmp_path / "working")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)  # two at a time may arrive as one
        time.sleep(0.3)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_request_lets_the_work_end(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    process = start("""
stop = StopRequest()
ready("working")
while not stop.asked:
    time.sleep(0.01)
ready("saving")
wait("go on")
ready("saved")
return 130
""")
    wait_for(tmp_path / "working")
    process.send_signal(number)
    wait_for(tmp_path / "saving")
    process.send_signal(number)
    (tmp_path / "go on").touch()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists()
    assert "Traceback" not in errors


def test_what_must_not_be_interrupted_ends_first(tmp_path: Path, start: Start) -> None:
    process = start("""
with uninterrupted():
    ready("working")
    wait("go on")
    ready("saved")
ready("went on")
""")
    wait_for(tmp_path / "working")
    process.send_signal(signal.SIGINT)
    (tmp_path / "go on").touch()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists() and not (tmp_path / "went on").exists()


def test_a_closed_terminal_does_not_stop_what_nohup_started(tmp_path: Path, start: Start) -> None:
    body = "ready('working')\nwait('go on')"
    hangup = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = start(body)
    process.kill()
    script = (tmp_path / "x.py").read_text().replace("\ndef main", f"\n{hangup}\ndef main")
    (tmp_path / "x.py").write_text(script)
    (tmp_path / "working").unlink(missing_ok=True)
    command = [sys.executable, "x.py"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, text=True)
    wait_for(tmp_path / "working")
    process.send_signal(signal.SIGHUP)
    (tmp_path / "go on").touch()
    assert process.wait(60) == 0


NOISY = """
for step in tqdm(range(300), mininterval=0):
    note(f"step {step}")
    print("a long line " * 100, file=sys.stderr)
sys.stderr.write("no line end")
print("done")
"""


@pytest.mark.parametrize("kind", ["full", "closed", "no reader"])
def test_a_stderr_that_cannot_be_written_ends_no_work(start: Start, kind: str) -> None:
    if kind == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full here")
        with open("/dev/full", "w") as full:
            process = start(NOISY, stderr=full, stdout=subprocess.PIPE)
    elif kind == "closed":
        process = start(NOISY, stderr=None, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    else:
        read, write = os.pipe()
        process = start(NOISY, stderr=write, stdout=subprocess.PIPE)
        os.close(write)
        os.close(read)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "done\n")


def test_an_error_that_cannot_be_shown_keeps_its_exit_code(start: Start) -> None:
    process = start("raise UserError('wrong')", preexec_fn=lambda: os.close(2))
    process.communicate(timeout=60)
    assert process.returncode == 1
    process = start("raise UserError('wrong')")
    assert process.communicate(timeout=60)[1] == "error: wrong\n"
    assert process.returncode == 1


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path, start: Start) -> None:
    body = "file = open('out', 'w')\nos.write(2, b'noise')\nos.write(1, b'noise')\nfile.close()"

    def close_all() -> None:
        for number in range(3):
            os.close(number)

    process = start(body, stderr=None, preexec_fn=close_all)
    assert process.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == b""
