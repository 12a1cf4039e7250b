"""The wheel: the library alone, which scores where torch is missing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("hatchling", "editables", "pip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; the extra `dev` brings what builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    options = "--quiet", "--no-deps", "--no-build-isolation", "--no-index"
    run("-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"sdd_fiqa"}
    own = {"__init__.py", "__main__.py", "small.onnx", "py.typed"}
    own |= {"licences/small.onnx.txt", "licences/sface.Apache-2.0.txt"}
    assert {f"sdd_fiqa/{name}" for name in own} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", text, re.MULTILINE)
    library = {"numpy", "onnxruntime", "opencv-python", "pillow", "simplejpeg"}
    assert set(needed) == library


def test_installed_wheel_scores_without_torch(wheel: Path, tmp_path: Path, make_face: Any) -> None:
    target = tmp_path / "site"
    options = "--quiet", "--no-deps", "--no-index", "--no-compile"
    run("-m", "pip", "install", *options, "--target", target, wheel, cwd=tmp_path)
    code = """if True:
        import sys
        blocked = "torch", "tqdm", "tyro", "scipy", "matplotlib", "common", "dataset", "models"
        sys.modules.update(dict.fromkeys(blocked))  # importing one of these fails
        import numpy, sdd_fiqa
        assert sdd_fiqa.__file__.startswith(sys.argv[1]), sdd_fiqa.__file__
        crops = numpy.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), numpy.uint8)
        print(len(sdd_fiqa.load(device="cpu").score(crops)))
    """
    assert run("-c", code, target, cwd=tmp_path, PYTHONPATH=str(target)) == "3\n"
    version = run("-m", "sdd_fiqa", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    assert version.startswith("sdd-fiqa ")
    commands = [path.name for path in (target / "bin").glob("*")]
    assert commands in ([], ["sdd-fiqa"])


def test_quickstart_on_a_cpu_asks_for_the_index_of_torch() -> None:
    def start(*flags: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "quickstart.sh"), *flags]
        env = {name: value for name, value in os.environ.items() if name != "TORCH_INDEX_URL"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    done = start("--setup-only", "--cpu")
    assert done.returncode == 1
    assert "set TORCH_INDEX_URL to the CPU index that PyTorch's install page names" in done.stderr
    assert "--gpu: unknown" in start("--gpu").stderr
