"""A process that has imported what the scripts import, and forks for each that it shall run.

A fork of a process that has only imported is as good as a new one, and torch takes seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any


class ForkedScripts:
    """Runs scripts one after the other, each in a process of its own, or several as torchrun."""

    def __init__(self, env: dict[str, str]) -> None:
        self._runs = 0
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # for select
        )

    def run(
        self, command: list[str], cwd: Path, env: dict[str, str], timeout: float, processes: int = 1
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of a script and its arguments, or of torchrun and these."""
        requests, answers = self._server.stdin, self._server.stdout
        assert requests is not None and answers is not None
        self._runs += 1
        ranks = [{}] if processes == 1 else _as_torchrun(processes, self._runs)
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("out", "err")]
            envs = [{**more, **env} for more in ranks]
            asked = {"argv": command, "cwd": str(cwd), "files": [*map(str, files)], "envs": envs}
            requests.write(json.dumps(asked).encode() + b"\n")
            requests.flush()
            children = [*map(int, answers.readline().split())]
            late = not select.select([answers], [], [], timeout)[0]
            for child in children if late else ():
                os.kill(child, signal.SIGKILL)
            code = int(answers.readline())
            if late:
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(command, code, *(f.read_text() for f in files))

    def close(self) -> None:
        """Ends the process."""
        self._server.communicate()


def _as_torchrun(processes: int, run: int) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_RESTART_COUNT": str(run),
    }
    return [{**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]


def serve() -> dict[str, Any]:
    """Forks for each line of stdin; returns in the children, with what is asked of them.

    When one of several fails, the others get SIGTERM, and the exit code is 1, as from torchrun.
    """
    for line in iter(sys.stdin.readline, ""):
        asked: dict[str, Any] = json.loads(line)
        if "--epochs" in asked["argv"]:  # train.py's; what it imports late takes longer than torch
            # F401: for the forks
            import scipy.stats  # noqa: F401
            import torch._dynamo
            import torch.utils.tensorboard  # noqa: F401
        children = []
        for env in asked["envs"]:
            child = os.fork()
            if child == 0:
                return {**asked, "env": env}
            children.append(child)
        print(*children, flush=True)
        several, code = len(children) > 1, 0
        while children:
            child, status = os.wait()
            children.remove(child)
            if ended := os.waitstatus_to_exitcode(status):
                code = 1 if several else ended
                for other in children:
                    os.kill(other, signal.SIGTERM)
        print(code, flush=True)
    sys.exit()


if __name__ == "__main__":
    # Imported (F401: for the forks, not for this file), so that each fork has them already.
    import as_a_script  # noqa: F401, I001
    import cv2  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401
    import tqdm  # noqa: F401
    import tyro  # noqa: F401

    asked = serve()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    for number, name in enumerate([os.devnull, *asked["files"]]):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = asked["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    code: object = None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    # The rest of Python's end takes a second where torch is imported: it frees all one by one.
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads; has no public name
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
