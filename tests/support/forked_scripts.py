"""A process that has imported what the scripts import, and forks for each that it shall run.

A fork of a process that has only imported is as good as a new one, and torch takes seconds.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class ForkedScripts:
    """Runs scripts one after the other, each in a process of its own."""

    def __init__(self, env: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # for select
        )

    def run(
        self, command: list[str], cwd: Path, env: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of a script and its arguments."""
        requests, answers = self._server.stdin, self._server.stdout
        assert requests is not None and answers is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("out", "err")]
            asked = {"argv": command, "cwd": str(cwd), "env": env, "files": [*map(str, files)]}
            requests.write(json.dumps(asked).encode() + b"\n")
            requests.flush()
            child = int(answers.readline())
            late = not select.select([answers], [], [], timeout)[0]
            if late:
                os.kill(child, 9)
            code = int(answers.readline())
            if late:
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(command, code, *(f.read_text() for f in files))

    def close(self) -> None:
        """Ends the process."""
        self._server.communicate()


def serve() -> dict[str, Any]:
    """Forks for each line of stdin; returns in the child, with what is asked of it."""
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            asked: dict[str, Any] = json.loads(line)
            return asked
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


if __name__ == "__main__":
    import as_a_script  # noqa: F401, I001
    import cv2  # noqa: F401
    import torch  # noqa: F401
    import tqdm  # noqa: F401
    import tyro  # noqa: F401

    asked = serve()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, name in enumerate([os.devnull, *asked["files"]]):
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.argv = asked["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
