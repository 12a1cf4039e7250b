"""The figure of an evaluation: error versus discard, a panel for each FMR, readable in print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.edc.areas import FULL_LIMIT
from evaluation.edc.curves import Rules
from evaluation.edc.pairs import Values
from evaluation.edc.results import show, title
from evaluation.edc.study import EdcResult
from sdd_fiqa.files import replacing
from sdd_fiqa.number import count_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which differ for the colour-blind too; the dashes differ in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 1.5)),
    (0, (1, 3)),
)
_CEILING = 1.6  # of g(phi)/g(0): a worse score would flatten the other curves


def plot_curves(path: Path, results: Sequence[EdcResult], area: str) -> None:
    """Writes a PNG: g(phi)/g(0), a row of panels for each recogniser and pair of rules.

    A scorer has the same colour and dashes in every panel. Bands are the bootstrap's middle 95 %.
    Each legend is ordered by `area`, best first, and shows its value.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys((result.recogniser, result.curve.rules) for result in results))
    fmrs = list(dict.fromkeys(result.curve.fmr for result in results))
    scorers = sorted({result.scorer for result in results})
    legend_lines = len(scorers) + 1
    height = 2.6 + 0.17 * legend_lines
    size = 3.6 * len(fmrs) + 0.4, height * len(rows)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(len(rows), len(fmrs), squeeze=False)
    groups: dict[tuple[str, Rules, float], list[EdcResult]] = {}
    for one in results:
        groups.setdefault((one.recogniser, one.curve.rules, one.curve.fmr), []).append(one)
    for (recogniser, rules, fmr), group in groups.items():
        row, column = rows.index((recogniser, rules)), fmrs.index(fmr)
        _panel(panels[row, column], group, area, scorers, first=column == 0)
    with replacing(path, "wb") as file:
        # Figure.savefig would draw it twice. (matplotlib's canvas has no types.)
        FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]


def line_style(number: int) -> tuple[str, Any]:
    """Colour and dashes of a scorer; the first 49 all differ."""
    turn = number // len(_COLOURS)
    return _COLOURS[number % len(_COLOURS)], _DASHES[(number + turn) % len(_DASHES)]


def _panel(
    axes: Axes, group: Sequence[EdcResult], area: str, scorers: Sequence[str], *, first: bool
) -> None:
    rules, fmr = group[0].curve.rules, group[0].curve.fmr
    ceiling = 1.05
    for result in group:
        start = float(result.curve.fnmr[0])
        if not start > 0:
            continue
        shares, values = result.curve.shares, result.curve.fnmr / start
        colour, dashes = line_style(scorers.index(result.scorer))
        label = f"{show(area, result.areas[area])}  {result.scorer}"
        # The area takes the last value of a coarse score up to the limit; so does the line.
        ends = np.append(shares, FULL_LIMIT), np.append(values, values[-1])
        axes.plot(*ends, color=colour, linestyle=dashes, linewidth=1.4, label=label)
        if result.replicates is not None:
            low, high = _band(result.replicates)
            axes.fill_between(shares, low, high, color=colour, alpha=0.13, lw=0)
        ceiling = max(ceiling, min(float(np.nanmax(values)) * 1.03, _CEILING))
    start = float(group[0].curve.fnmr[0])
    if rules == Rules("fixed", "pairs") and 0 < start < 1:
        shares = np.linspace(0, 0.95, 200)
        perfect = np.maximum(start - shares, 0) / (1 - shares) / start
        axes.plot(shares, perfect, color="0.6", linewidth=0.8, label="a perfect score")
    axes.set_xlim(0, FULL_LIMIT)
    axes.set_ylim(0, ceiling)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_title(f"{group[0].recogniser}, FMR {fmr:g}", fontsize=9)
    axes.set_xlabel(f"share of {rules.discard} discarded", fontsize=8)
    if first:
        axes.set_ylabel(f"FNMR / FNMR at 0\nthreshold {rules.threshold}", fontsize=8)
    if axes.lines:
        errors = int(group[0].curve.errors[0])
        axes.legend(
            title=f"{title(area)}, FNMR at 0: {start:.2%} ({count_of(errors, 'error')})",
            title_fontsize=7.5,
            fontsize=7.5,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            frameon=False,
            handlelength=3,
            borderpad=0,
        )
    else:
        axes.text(0.5, 0.5, "no error, or too few pairs for this FMR", ha="center", fontsize=8)


def _band(replicates: Values) -> tuple[Values, Values]:
    """The middle 95 % of g_b(phi)/g_b(0); a replicate without an error at 0 has no ratio."""
    ratios = replicates[replicates[:, 0] > 0]
    if len(ratios) < 2:
        ratios = np.full((2, replicates.shape[1]), np.nan)
    low, high = np.quantile(ratios / ratios[:, :1], [0.025, 0.975], axis=0)
    return low, high
