"""What the tests share: scripts run as users run them, made-up faces, random networks."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

# First, so that scripts called in the tests' own process multiply as they do in theirs, and so
# that the limit on the pixels of an image stands before any test imports cv2.
import as_a_script  # noqa: F401

# isort: split
import cv2
import hypothesis
import numpy as np
import numpy.typing as npt
import pytest

from forked_scripts import ForkedScripts
from sdd_fiqa.assets import fetch
from sdd_fiqa.errors import UserError

ROOT = Path(__file__).parent.parent
IDENTITIES, EACH = 6, 4  # of the made-up faces

# A slow machine is no failure.
hypothesis.settings.register_profile("any_speed", deadline=None)
hypothesis.settings.load_profile("any_speed")


class RunScript(Protocol):
    def __call__(
        self,
        script: str,
        *arguments: object,
        cwd: Path,
        processes: int = 1,
        env: dict[str, str] | None = None,
        timeout: float = 240,
    ) -> "subprocess.CompletedProcess[str]": ...


def script_command(script: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def script_env(**more: str) -> dict[str, str]:
    # One thread a process: the threads of several processes would wait for each other.
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def run_script() -> Iterator[RunScript]:
    """Runs a script of this project in a process of its own, or several as torchrun does."""
    forked = ForkedScripts(script_env())

    def run(
        script: str,
        *arguments: object,
        cwd: Path,
        processes: int = 1,
        env: dict[str, str] | None = None,
        timeout: float = 240,
    ) -> "subprocess.CompletedProcess[str]":
        command, more = script_command(script, arguments), script_env(**(env or {}))
        if not any(name.startswith("PYTHON") for name in env or ()):  # read as it starts
            return forked.run(command[1:], cwd, more, timeout, processes)
        return subprocess.run(
            command,
            cwd=cwd,
            env=more,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    yield run
    forked.close()


@pytest.fixture(scope="session")
def start_script() -> Callable[..., "subprocess.Popen[str]"]:
    """As `run_script`, one process, without waiting for its end; the test ends it."""

    def start(script: str, *arguments: object, cwd: Path, **more: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            script_command(script, arguments),
            cwd=cwd,
            env=script_env(),
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    return start


_STALL = """
import os, signal, sys, threading, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it

def stall(event, arguments):
    if threading.current_thread().name == "alignment":
        return  # it looks at a sample before the work
    name = arguments[0] if event == "open" else None
    if isinstance(name, str) and name.endswith(os.environ["STALL_AT"]):
        open("stalled", "w").close()
        while not os.path.exists("go on"):
            time.sleep(0.01)

sys.addaudithook(stall)
"""


class StalledScript:
    """A script that waits where it opens a certain file, until it is let go on or killed."""

    def __init__(self, hook: Path, at: str, command: list[str], cwd: Path) -> None:
        (hook / "sitecustomize.py").write_text(_STALL)
        env = script_env(STALL_AT=at)
        self.cwd = cwd
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**env, "PYTHONPATH": f"{hook}{os.pathsep}{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while not (cwd / "stalled").exists():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def go_on(self) -> None:
        (self.cwd / "go on").touch()


@pytest.fixture
def stalled_script(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., StalledScript]]:
    """Starts a script and returns when it opens a file whose path ends in `at`; there it waits."""
    started = []

    def start(script: str, *arguments: object, cwd: Path, at: str) -> StalledScript:
        hook = tmp_path_factory.mktemp("hook")
        started.append(StalledScript(hook, at, script_command(script, arguments), cwd))
        return started[-1]

    yield start
    for script in started:
        script.process.kill()
        script.process.communicate()


def face(identity: int, image: int) -> npt.NDArray[np.uint8]:
    """(112, 112, 3) uint8: a smooth pattern of one identity, with something of its own."""
    of_identity = np.random.default_rng([1, identity]).uniform(0, 255, (6, 6, 3))
    of_image = np.random.default_rng([2, identity, image]).uniform(-40, 40, (9, 9, 3))
    of_all = cv2.resize(of_identity, (112, 112), interpolation=cv2.INTER_CUBIC)
    pixels = of_all + cv2.resize(of_image, (112, 112), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


@pytest.fixture(scope="session")
def make_face() -> Callable[[int, int], npt.NDArray[np.uint8]]:
    return face


@pytest.fixture(scope="session")
def make_faces() -> Callable[[Path], Path]:
    """Writes 6 identities of 4 faces below a folder: PNG and JPEG by turns. Returns the folder."""

    def make(root: Path) -> Path:
        for identity in range(IDENTITIES):
            folder = root / f"id{identity}"
            folder.mkdir(parents=True)
            for image in range(EACH):
                suffix = ".png" if image % 2 else ".jpg"
                cv2.imwrite(str(folder / f"{image}{suffix}"), face(identity, image)[:, :, ::-1])
        return root

    return make


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory, make_faces: Callable[[Path], Path]) -> Path:
    """A folder of made-up faces for reading; a test that changes it makes its own."""
    return make_faces(tmp_path_factory.mktemp("shared") / "faces")


@pytest.fixture(scope="session")
def random_state() -> Callable[..., dict[str, Any]]:
    """State dicts of random weights, by backbone and head; the same arguments, the same weights.

    BatchNorm's statistics are those of some made-up faces, so that signals neither die nor grow,
    and the quality head is scaled so that scores spread over tens of points about 50.
    """
    import torch
    from torch import nn

    from models.networks import FaceModel, build_network

    def make(backbone: str = "MFN", recognition: bool = False) -> dict[str, Any]:
        torch.manual_seed(5)
        network = build_network(backbone, recognition=recognition, dropout=0.0)
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.momentum = 1.0
        people = 2 if backbone == "R_50" else 4  # a large network takes its time
        faces = np.stack([face(who, image) for who in range(people) for image in range(2)])
        with torch.no_grad():
            FaceModel(network).train()(torch.from_numpy(faces))
        state: dict[str, Any] = network.state_dict()
        if not recognition:
            state["quality.3.weight"].mul_(20)
            state["quality.3.bias"].fill_(50)
        return state

    return make


@pytest.fixture(scope="session")
def weights(
    tmp_path_factory: pytest.TempPathFactory, random_state: Callable[..., dict[str, Any]]
) -> dict[str, Path]:
    """Checkpoint files of random MFN weights: {"quality": ..., "recognition": ...}."""
    import torch

    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for head in ("quality", "recognition"):
        files[head] = folder / f"mfn_{head}.pth"
        torch.save(random_state("MFN", head == "recognition"), files[head])
    return files


@pytest.fixture
def fetched() -> Callable[[str], Path]:
    """Fetches a known asset into the user's own cache; skips the test where it cannot be had."""

    def get(name: str) -> Path:
        try:
            return fetch(name)
        except UserError as error:
            pytest.skip(f"{name} cannot be fetched: {error}")

    return get
