"""Every script: its help, its import, wrong usage, and errors of one line."""

import dataclasses
import importlib
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import sdd_fiqa
from common import cli as command_line
from common.cli import EXIT_DONE, EXIT_USAGE, EXIT_USER_ERROR

Call = Callable[..., tuple[Any, str, str]]
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (ROOT, ROOT / "generate_pseudo_labels")
    for path in folder.rglob("*.py")
    if not {".venv", "tests", "benchmarks", "docs", "build"} & set(path.relative_to(ROOT).parts)
    and 'if __name__ == "__main__"' in path.read_text()
    and (folder != ROOT or path.parent == ROOT)
)
TOOLS = sorted(  # run with `python -m`
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for room in ("dataset", "models", "evaluation", "training")
    for path in (ROOT / room).rglob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)
_WATCH = """
import importlib, os, sys, traceback
import cv2, numpy, tyro  # most of them import these, which do not import torch

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os._exit(0 if "GOMP_SPINCOUNT" in os.environ else 1)  # importing it takes seconds

sys.meta_path.insert(0, Watch())
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0 if "GOMP_SPINCOUNT" in os.environ else 1)
    if os.wait()[1]:
        print(name)
"""


def test_the_scripts_are_found() -> None:
    assert {"eval.py", "train.py"} < set(SCRIPTS)
    assert {
        f"generate_pseudo_labels/{name}.py" for name in ("gen_datalist", "gen_pseudo_labels")
    } < (set(SCRIPTS))
    assert {"dataset.degraded_copies", "models.shrink", "evaluation.calibration"} < set(TOOLS)


def test_how_torchs_threads_wait_is_set_before_torch_is_imported() -> None:
    names = [script.removesuffix(".py").replace("/", ".") for script in SCRIPTS]
    names += [*TOOLS, "models", "models.networks"]
    names += [f"benchmarks.{name}" for name in ("speed_extraction", "speed_training")]
    names.append("benchmarks.study_heads")
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *names],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Runs a script in this process and an empty folder: its exit code, stdout and stderr."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(command_line, "_signals", command_line._Signals())
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(sys.argv[0], run_name="__main__")
        return left.value.code, *capsys.readouterr()

    yield run
    assert list(tmp_path.iterdir()) == []
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", [*SCRIPTS, *TOOLS])
def test_every_script_says_its_version(name: str, call: Call) -> None:
    path = name if name.endswith(".py") else f"{name.replace('.', '/')}.py"
    assert call(path, "--version") == (EXIT_DONE, f"sdd-fiqa {sdd_fiqa.__version__}\n", "")


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {sdd_fiqa.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def flags_of(script: str) -> list[str]:
    """From main(): its arguments, and the fields of the settings among them."""
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    names: list[str] = []
    for name, kind in get_type_hints(main).items():
        if dataclasses.is_dataclass(kind):
            names += [field.name for field in dataclasses.fields(kind)]
        elif name not in ("return", "path"):  # eval.py's paths have no flag
            names.append(name)
    return [f"--{name.replace('_', '-')}" for name in names]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag(script: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, text, errors = call(script, "--help")
    assert (code, errors) == (EXIT_DONE, "")
    flags = flags_of(script)
    assert flags
    for flag in flags:
        assert re.search(rf"{flag}\b", text), flag


def test_importing_does_nothing(tmp_path: Path) -> None:
    """No file, no output, and no torch where only a script's main() needs it."""
    modules = [script.removesuffix(".py").replace("/", ".") for script in SCRIPTS]
    code = (
        "import importlib, sys\n"
        "sys.argv = ['x', '--no-such-flag']\n"
        "for name in sys.argv_modules: importlib.import_module(name)\n"
    ).replace("sys.argv_modules", repr(modules))
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("generate_pseudo_labels/gen_datalist.py", [], EXIT_USAGE, "--data-root"),
        ("generate_pseudo_labels/gen_datalist.py", ["--nothing"], EXIT_USAGE, "--nothing"),
        ("eval.py", ["x", "--precision", "fp8"], EXIT_USAGE, "--precision"),
        ("eval.py", [], EXIT_USAGE, ""),
        ("train.py", ["--epochs", "many"], EXIT_USAGE, "--epochs"),
        ("train.py", ["--epochs", "1_0"], EXIT_USAGE, "--epochs: '1_0' is not a number"),
        ("eval.py", ["x", "--accept", "0_0.5"], EXIT_USAGE, "'0_0.5' is not a number"),
        (
            "generate_pseudo_labels/gen_datalist.py",
            ["--data-root", "no  where"],
            EXIT_USER_ERROR,
            "error: --data-root no  where: does not exist; name the folder of identity folders",
        ),
        ("eval.py", ["none.jpg"], EXIT_USER_ERROR, "error: none.jpg: no such file or folder\n"),
        (
            "generate_pseudo_labels/extract_embedding/extract_feats.py",
            ["--weights", "sface"],
            EXIT_USER_ERROR,
            "error: annotations/DATA.labelpath: does not exist; run gen_datalist.py first\n",
        ),
        ("train.py", ["--epochs", "0"], EXIT_USER_ERROR, "error: train_config: epochs must be 1 "),
        (
            "train.py",
            [],
            EXIT_USER_ERROR,
            "error: annotations/quality_pseudo_labels.txt: does not exist; run gen_pseudo_labels.",
        ),
    ],
)
def test_errors_are_one_line_and_wrong_usage_is_two(
    script: str, arguments: list[str], code: int, message: str, call: Call
) -> None:
    found, text, errors = call(script, *arguments)
    assert (found, text) == (code, ""), errors
    assert message in errors
    if code == EXIT_USER_ERROR:
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1


def test_a_reader_who_leaves_is_no_error(tmp_path: Path, start_script: Callable[..., Any]) -> None:
    """`--help | head -0`."""
    process = start_script("generate_pseudo_labels/gen_datalist.py", "--help", cwd=tmp_path)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == EXIT_DONE


def test_a_full_gpu_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
        )

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as left:
        command_line.run_script(main)
    assert left.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err == (
        "error: CUDA out of memory: use a smaller --batch-size where there is one, a GPU with more "
        "memory, or --device cpu\n"
    )
