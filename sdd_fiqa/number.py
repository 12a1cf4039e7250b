"""Numbers in text, as all programs read them: Python's own also takes 1_000."""

from __future__ import annotations


def plain_number(text: str) -> float:
    """A number; raises ValueError where the text is none.

    >>> plain_number("-1.5e3"), plain_number("inf")
    (-1500.0, inf)
    """
    return float(_checked(text))


def whole_number(text: str) -> int:
    """A whole number; raises ValueError where the text is none."""
    return int(_checked(text))


def _checked(text: str) -> str:
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number")
    return text
