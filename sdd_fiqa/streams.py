"""stdout and stderr of a script, whatever the caller has made of them."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def open_streams() -> None:
    """Makes stderr a stream that never fails, and opens what the caller has closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:  # else a file opened later would get this number
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  (stays open)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        raw = _Unfailing(2, "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )


class _Unfailing(io.FileIO):
    """Drops what cannot be written: a note or a progress bar must not end the work."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content) or len(content)  # None where it would have to wait
        except OSError:
            return len(content)
