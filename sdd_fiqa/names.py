"""File names in tables and on terminals: they may hold anything."""

from __future__ import annotations

import re
from typing import TextIO

# C0 and C1 without TAB and line break; what changes the direction of writing, or breaks lines.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def for_table(path: str) -> str:
    """A path with `./` before it where a spreadsheet would take it for a formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@")) else path


def printable(text: str, to: TextIO | None = None) -> str:
    """Escapes the control characters of a text, so that a file name cannot steer a terminal.

    TAB and line break stay. A file or a pipe, given as `to`, gets the text as it is.
    """
    if text.isprintable() or (to is not None and not to.isatty()):
        return text
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
