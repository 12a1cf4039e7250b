"""Text of the report page: the filled template, escaped strings, numbers and shares."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from evaluation.report.histogram import coarser, ticks_of

FINER = 2  # more decimals than are shown, for the script's exact thresholds
# Control characters, and characters that change the direction of the text.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_HOLE = re.compile(r"\{\{(?:([#^])(\w+)\}\}(.*?)\{\{/\2|(&?)(\w+))\}\}", re.DOTALL)


def filled(template: str, values: Mapping[str, Any]) -> str:
    """The text of a template; text that is filled in is not searched for names.

    - `{{name}}` is a value as escaped text, `{{&name}}` a value that is HTML already.
    - `{{#name}}...{{/name}}` is filled once for each mapping in a list or an iterator; with another
      value, once if it is true. `{{^name}}...{{/name}}` is filled if it is not.
    """

    def text(hole: re.Match[str]) -> str:
        sign, section, inside, html, name = hole.groups()
        value = values[section or name]
        if name:
            return str(value) if html else html_text(str(value))
        if isinstance(value, list | Iterator):
            return "".join(filled(inside, {**values, **own}) for own in value)
        return filled(inside, values) if bool(value) == (sign == "#") else ""

    return _HOLE.sub(text, template)


def path_bytes(text: str) -> bytes:
    """A path's own bytes; what no path can hold becomes `?`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def html_text(text: str) -> str:
    """Any string as HTML text or as the value of a quoted attribute."""
    return escape(_UNSEEN.sub("\ufffd", path_bytes(text).decode("utf-8", "replace")))


def number_text(value: float, decimals: int) -> str:
    """A score as the page shows it; rounded like its tick, so text and filter agree."""
    if abs(value) >= 1e9:
        return f"{value:.3e}"
    tick = coarser(ticks_of(np.array([value]), decimals + FINER), FINER)[0]
    return f"{tick / 10**decimals:.{decimals}f}"


def share_text(value: float) -> str:
    """A share in 0..1 as per cent, with three digits at most: `5 %`, `0.25 %`."""
    return f"{100 * value:.3g} %"
