"""What torchrun's processes do when one of them ends."""

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
SCRIPT = """
import os, time
from pathlib import Path
from common.cli import StopRequest, run_script
from common.distributed import join_process_group
from sdd_fiqa.errors import UserError

def main() -> int:
    with join_process_group("cpu") as processes:
        if os.environ["KIND"] == "training":
            stop = StopRequest()
        Path("draft%d" % processes.rank).write_text(str(os.getpid()))
        os.replace("draft%d" % processes.rank, "rank%d" % processes.rank)
        for _ in range(12000):
            if processes.rank == 1 and Path("fail").exists():
                raise UserError("mine alone")
            processes.total(1)
            time.sleep(0.01)
    return 0

run_script(main)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Three processes that meet again and again."""
    (tmp_path / "x.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KIND": "labels"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*command, "--nproc-per-node", "3", "x.py"],
        cwd=tmp_path,
        env=env,
        text=True,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 180
    while not all((tmp_path / f"rank{rank}").exists() for rank in range(3)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


def own_lines(errors: str) -> list[str]:
    """Without what torchrun says."""
    assert "x.py" not in errors.partition("Traceback")[2].partition("run(args)")[0]
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def test_a_killed_process_is_named_once(tmp_path: Path, running: subprocess.Popen[str]) -> None:
    os.kill(int((tmp_path / "rank1").read_text()), signal.SIGKILL)
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    (line,) = own_lines(errors)
    assert line.startswith("error: rank 1 was killed")


def test_a_process_that_says_why_it_ends_is_not_named_again(
    tmp_path: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "x.py").write_text(SCRIPT)
    (tmp_path / "fail").touch()
    done = run_script(tmp_path / "x.py", cwd=tmp_path, processes=3, env={"KIND": "training"})
    assert done.returncode != 0
    assert own_lines(done.stderr) == ["error: mine alone"]
