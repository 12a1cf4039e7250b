"""What a search for images did not take, and why."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

BAD_NAMES = "names with a TAB, a line break or no UTF-8 (rename them)"
_SHOWN = 5  # names given of each problem


@dataclass
class Skipped:
    """What a search did not take, counted by kind.

    Attributes:
        expected: {".txt files": 3, "hidden files": 1, ...}; nothing is wrong with these.
        problems: {"folders that cannot be read": 2, ...}; the user should look at these.
        examples: the first paths of each problem.
    """

    expected: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def other_file(self, name: str) -> None:
        """Counts one file that is not an image, by its suffix."""
        suffix = os.path.splitext(name)[1].lower()
        self.expected[f"{suffix} files" if suffix else "files without a suffix"] += 1

    def problem(self, kind: str, path: str) -> None:
        """Counts one path that should have been taken."""
        self.problems[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < _SHOWN:
            shown.append(path)

    def lines(self) -> list[str]:
        """A human-readable line for each kind."""
        lines = [f"left out: {count} {kind}" for kind, count in sorted(self.expected.items())]
        for kind, count in sorted(self.problems.items()):
            more = ", ..." if count > _SHOWN else ""
            shown = ", ".join(map(ascii, self.examples[kind]))
            lines.append(f"left out: {count} {kind}: {shown}{more}")
        return lines


def fits_a_line(path: str) -> bool:
    """Whether a list can hold a path: no TAB, no line break, and UTF-8."""
    if "\t" in path or "\n" in path or "\r" in path:
        return False
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)
