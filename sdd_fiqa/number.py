"""Numbers in text: read as all programs do (Python also takes 1_000), and counts with a noun."""

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


def count_of(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count_of(1, "face"), count_of(2000, "face"), count_of(0, "identity")
    ('1 face', '2,000 faces', '0 identities')
    """
    if number == 1:
        return f"1 {noun}"
    if noun == "person":
        return f"{number:,} people"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"
