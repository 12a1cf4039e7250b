"""A histogram of scores, drawn as inline SVG, which needs no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sdd_fiqa.number import count_of

Ticks = npt.NDArray[np.int64]

MAX_BARS = 60
_DIGITS = 100  # the last decimal is at most the size of the scores / this,
_STEPS_ACROSS = 20  # and at most the range of their 5 % to 95 % quantiles / this
_LARGEST_TICK = 1 << 52  # JavaScript holds whole numbers up to here exactly
_LETTER_SHARE = 0.025  # of the axis: a letter's width on a screen 320 pixels wide
_ROW = 14  # pixels between two rows of labels
_PLOT = 180  # pixels, height of the tallest bar


@dataclass(frozen=True)
class Mark:
    """A vertical line in the histogram: its score, and the label above it."""

    score: float
    label: str


def decimals_for(scores: npt.NDArray[np.float64]) -> int:
    """How many decimals to show: about three digits, more if the scores hardly differ.

    That is 1 on the scale 0..100, and 3 on 0..1.

    Args:
        scores: (N,) float64, finite, N >= 1. A few outliers do not change the answer.
    """
    low, high = np.quantile(scores, [0.05, 0.95])
    steps = [max(abs(low), abs(high)) / _DIGITS, (high - low) / _STEPS_ACROSS]
    fine_enough = min((step for step in steps if step > 0), default=0.1)
    return min(max(0, -math.floor(math.log10(fine_enough))), 9)


def ticks_of(scores: npt.NDArray[np.float64], decimals: int) -> Ticks:
    """Scores as whole numbers of the last decimal, rounded down: 41.26 with 1 decimal is 412."""
    scaled = np.asarray(scores, np.float64) * 10.0**decimals
    ticks = np.floor(np.round(scaled, 6))  # 0.29 * 100 is 28.999999999999996
    return np.clip(ticks, -_LARGEST_TICK, _LARGEST_TICK).astype(np.int64)


def coarser(ticks: Ticks, decimals: int) -> Ticks:
    """Ticks with fewer decimals, rounded, halves up: 4126 with 2 fewer is 41."""
    step: int = 10**decimals
    return (ticks + step // 2) // step


def histogram(
    ticks: Ticks,
    decimals: int,
    marks: Sequence[Mark] = (),
    kind: str = "image",
    cut: Mark | None = None,
) -> dict[str, Any]:
    """The histogram of all scores, as the values that draw it in template.html.

    Bars start at round numbers. Scores far from all others are counted in the first and the last
    bar: those that are outside the 0.1 % to 99.9 % quantiles by more than that range.

    Args:
        ticks: (N,) int64, scores as whole numbers of the last decimal, N >= 1.
        decimals: of the scores.
        marks: lines to draw; one outside the axis is left out (`histogram_edges` extends the axis
            to those near it).
        kind: what is counted, in the singular.
        cut: the lowest accepted score: bars below it have another colour.

    Returns:
        Among others `bars`, each with the lowest and the highest tick that it counts, `low` and
        `high`, for the page's script, and `marks`, those on the axis.
    """
    marks = [*marks, *([] if cut is None else [cut])]
    marked = coarser(ticks_of(np.array([mark.score for mark in marks]), decimals + 1), 1)
    edges = histogram_edges(ticks, marked)
    axis = _Axis(int(edges[0]), int(edges[-1]), decimals)
    shown = [
        (mark, int(tick))
        for mark, tick in zip(marks, marked, strict=True)
        if axis.first <= tick <= axis.last
    ]
    spans = [_label_span(axis.share(tick), mark.label) for mark, tick in shown]
    rows = _label_rows(spans)
    top = 8 + _ROW * (max(rows, default=-1) + 1)
    floor = top + _PLOT
    width, most = edges[1] - edges[0], len(edges) - 1
    heights = np.bincount(np.clip((ticks - edges[0]) // width, 0, most - 1), minlength=most)
    tallest = int(heights.max())
    rung = _round_up(tallest / 5)
    levels = range(rung, tallest + 1, rung)
    grid = [(level, round(floor - _PLOT * level / tallest, 1)) for level in levels]
    return {
        "top": top,
        "floor": floor,
        "tick_y": floor + 16,
        "svg_height": floor + 22,
        "plot": _PLOT,
        "first": axis.text(ticks.min()),
        "last": axis.text(ticks.max()),
        "grid": [
            {"y": f"{y:.1f}", "text_y": f"{y - 3:.1f}", "level": f"{level:,}"} for level, y in grid
        ],
        "bar_width": f"{100 / most:.3f}%",
        "bars": list(_bars(axis, ticks, edges, heights, floor, kind, cut)),
        "ticks": list(_axis_labels(axis)),
        "marks": [
            {
                "look": "cut" if mark is cut else "mark",
                "x": axis.at(tick),
                "line_y": 13 + _ROW * row,
                "label_y": 10 + _ROW * row,
                "anchor": "end" if left < axis.share(tick) else "start",
                "label": mark.label,
            }
            for (mark, tick), row, (left, _) in zip(shown, rows, spans, strict=True)
        ],
    }


class _Axis(NamedTuple):
    """The axis of scores: its first and last tick, and the decimals of a tick."""

    first: int
    last: int
    decimals: int

    def share(self, tick: float) -> float:
        return float((tick - self.first) / (self.last - self.first))

    def at(self, tick: float) -> str:
        return f"{100 * self.share(tick):.3f}%"

    def text(self, tick: float) -> str:
        return f"{tick / 10**self.decimals:.{self.decimals}f}"


def _bars(
    axis: _Axis, ticks: Ticks, edges: Ticks, heights: Ticks, floor: int, kind: str, cut: Mark | None
) -> Iterator[dict[str, Any]]:
    lows, highs = edges[:-1].copy(), edges[1:] - 1
    lows[0], highs[-1] = min(lows[0], ticks.min()), max(highs[-1], ticks.max())
    for left, low, high, number in zip(edges[:-1], lows, highs, heights, strict=True):
        height = _PLOT * number / heights.max()
        if number:
            height = max(height, 1.5)  # one image among many must be visible
        counted, share = count_of(number, kind), f"{100 * number / len(ticks):.1f} %"
        yield {
            "below": cut is not None and (high + 1) / 10**axis.decimals <= cut.score,
            "x": axis.at(left),
            "y": f"{floor - height:.1f}",
            "height": f"{height:.1f}",
            "low": low,
            "high": high,
            "title": f"{axis.text(low)} to {axis.text(high)}: {counted} ({share})",
        }


def _axis_labels(axis: _Axis) -> Iterator[dict[str, Any]]:
    step = _round_up((axis.last - axis.first) / 8)  # few enough labels to fit a narrow screen
    for tick in range(-(-axis.first // step) * step, axis.last + 1, step):
        anchor = {0.0: "start", 1.0: "end"}.get(axis.share(tick), "middle")
        text = axis.text(tick)
        label = text.rstrip("0").rstrip(".") if axis.decimals else text
        yield {"x": axis.at(tick), "anchor": anchor, "label": label}


def histogram_edges(ticks: Ticks, marks: Ticks) -> Ticks:
    """Round, evenly spaced edges (B + 1,) of B <= MAX_BARS bars around the scores and the marks."""
    most = min(MAX_BARS, max(10, int(2 * math.sqrt(len(ticks)))))  # few images, few bars
    low, high = (int(value) for value in np.quantile(ticks, [0.001, 0.999]).round())
    reach = max(high - low, 10)
    near = np.concatenate([ticks, marks])
    near = near[(near >= low - reach) & (near <= high + reach)]
    low, high = int(near.min()), int(near.max())
    width = _round_up((high - low + 1) / most)
    if -(-(high + 1) // width) - low // width > most:  # both ends are inside a bar
        width = _round_up(width + 1)
    first, last = low // width, -(-high // width)
    last = max(last if high % width else last + 1, first + 1)
    return np.arange(first, last + 1, dtype=np.int64) * width


def _round_up(value: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `value`."""
    steps = (step * 10**power for power in count() for step in (1, 2, 5))
    return int(next(step for step in steps if step >= value))


def _label_span(line: float, label: str) -> tuple[float, float]:
    """Where a label starts and ends; left of its line near the axis' end."""
    width = _LETTER_SHARE * (len(label) + 1)
    return (line - width, line) if line > 1 - width else (line, line + width)


def _label_rows(spans: Sequence[tuple[float, float]]) -> list[int]:
    """The row of each label, which covers (from, to) of the axis; none overlaps in its row."""
    rows = [0] * len(spans)
    ends: list[float] = []
    for index in sorted(range(len(spans)), key=spans.__getitem__):
        left, right = spans[index]
        row = next((r for r, end in enumerate(ends) if left >= end), len(ends))
        ends[row : row + 1] = [right]
        rows[index] = row
    return rows
