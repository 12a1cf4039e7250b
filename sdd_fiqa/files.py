"""Files: written so that a reader never sees half of one, locked, hashed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from sdd_fiqa.errors import UnreadableImage, UserError

try:
    import fcntl
except ImportError:  # Windows, where folders cannot be locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file next to `path` that replaces it when the block ends without an error.

    Text is UTF-8 with Unix line ends. If the block raises, the temporary file is removed and `path`
    is unchanged. Missing folders are made. Anything but an ordinary file (/dev/null, a pipe) is
    written to directly.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    make_parent(path)
    special = os.path.exists(path) and not os.path.isfile(path)  # /dev/null, a pipe
    target = Path(path) if special else Path(os.path.realpath(path))  # a link stays a link
    temporary = target if special else _beside(target)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if not special:
        _remove_abandoned(target.parent)
    try:
        with _in_use(temporary), open(temporary, mode, **text) as file:  # type: ignore[call-overload]
            yield file
        if not special:
            os.replace(temporary, target)
    except RuntimeError as error:  # of torch.save, if the disk is full
        if not isinstance(error.__context__, OSError):
            raise
        reason = error.__context__.strerror or error.__context__
        raise UserError(f"{path}: cannot be written ({reason})") from error
    except OSError as error:
        if error.filename not in (None, str(temporary), str(target)):
            raise  # an error of another file, from inside the block
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if not special:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is removed when the block ends; that of a killed run, by the next run.

    Args:
        parent: where it is made; None: where the system keeps temporary files.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_abandoned(where)
    with (
        tempfile.TemporaryDirectory(
            dir=where, prefix=f".sdd-fiqa.{_host()}.{os.getpid()}.", suffix=".tmp"
        ) as name,
        _in_use(Path(name)),
    ):
        yield Path(name)


def scratch_name(stem: str, process: int) -> Path:
    """A name for a temporary file that is removed some time after the end of a process."""
    return Path(tempfile.gettempdir()) / f".{stem}.{_host()}.{process}.0.tmp"


_used: set[str] = set()  # the names of this process's temporary files and folders
_searched: set[str] = set()  # folders where files of killed runs were looked for


@contextmanager
def _in_use(path: Path) -> Iterator[None]:
    _used.add(path.name)
    try:
        yield
    finally:
        _used.discard(path.name)


def _beside(target: Path) -> Path:
    """A temporary name in the same folder that says which process writes the file, and where."""
    name = os.fsdecode(os.fsencode(target.name)[:180])
    return target.with_name(f".{name}.{_host()}.{os.getpid()}.{threading.get_ident()}.tmp")


@cache
def _host() -> str:
    """This machine and, in a container, its numbering of processes: 8 hexadecimal digits."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""  # not Linux
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def _remove_abandoned(folder: Path) -> None:
    """Removes temporary files and folders whose process was killed; once a process and folder."""
    if fcntl is None or (place := os.path.abspath(folder)) in _searched:
        return  # Windows does not tell whether a process runs
    _searched.add(place)
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = re.fullmatch(rf"\..*\.{_host()}\.([0-9]+)\.\w+\.tmp", entry.name, re.DOTALL)
            if match is None or entry.name in _used or _is_running(int(match[1])):
                continue
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _is_running(process: int) -> bool:
    """Whether another process of this machine runs."""
    if process == os.getpid():
        return False  # an earlier one had the same number
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # somebody else's
    return True


def make_parent(path: str | os.PathLike[str]) -> None:
    """Makes the folder of the file `path`, and checks before long work that it can be written.

    Raises:
        UserError: it cannot be made, cannot be written, or `path` itself is a folder.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise UserError(f"{target}: is a folder; name a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.lstat(target)  # fails if the name is too long
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    if os.path.exists(target) and not os.path.isfile(target):
        return  # /dev/null, a pipe
    folder = os.path.dirname(os.path.realpath(target))  # `replacing` writes next to the file
    if not os.access(folder, os.W_OK):
        raise UserError(f"{target}: cannot be written (no permission in {folder})")


class OpenFile:
    """A file descriptor, for `os.pread`; closed when nobody holds this object any more.

    Attributes:
        number: the descriptor.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@contextmanager
def lock_folder(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other runs out of a folder until the block ends, or this process does.

    The folder is made if it is missing. The lock leaves no file in it. Where a file system has no
    locks (and on Windows), nobody is kept out. With `wait`, a run waits for the one that holds it.

    Raises:
        UserError: another run holds the lock and `wait` is False; or the folder cannot be made.
    """
    make_parent(folder / "lock")
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(
            f"{folder}: another run is at work there; wait until it ends, or name another folder"
        ) from error
    except OSError:
        pass  # no locks there
    try:
        yield
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `content` as indented JSON with `replacing`."""
    with replacing(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: missing, or not JSON.
    """
    with reading(path):
        content = Path(path).read_bytes()
    try:
        return parse_json(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); make it again") from error


@contextmanager
def reading(path: str | os.PathLike[str], missing: str = "") -> Iterator[None]:
    """Makes a UserError that names the file of what goes wrong while a block reads it.

    `missing` says what to do where it does not exist.
    """
    try:
        yield
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise UserError(f"{path}: does not exist; {missing}") from error
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: is not CSV ({error})") from error
    except UnreadableImage as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def parse_json(text: str) -> Any:
    """Parses JSON text; its numbers are below 2^64, or NaN.

    Raises:
        ValueError: it is not JSON, or holds another number.
        RecursionError: it is nested too deeply.
    """

    def bounded(value: float) -> float:
        if abs(value) >= 1 << 64:
            raise ValueError("it holds a number that is too large")
        return value

    return json.loads(
        text,
        parse_int=lambda number: bounded(int(number)),
        parse_float=lambda number: bounded(float(number)),
        parse_constant=lambda number: bounded(float(number)),
    )


def sha256_of(path: str | os.PathLike[str], block: int = 1 << 22) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(block):
            digest.update(chunk)
    return digest.hexdigest()
