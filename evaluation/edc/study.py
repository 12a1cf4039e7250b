"""One evaluation: several scorers on several recognisers, under several rules, in one table.

A protocol is the two rules of edc.Rules and the area by which a paper compares (areas.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.edc.areas import (
    FEW_ERRORS,
    FULL_LIMIT,
    HIGHER_IS_BETTER,
    LIMITS,
    areas,
    grid_areas,
    refusal,
)
from evaluation.edc.bootstrap import interval, resampled
from evaluation.edc.curves import Curve, DiscardRule, Rules, ThresholdRule, Values, evaluate
from evaluation.edc.pairs import PairSource

Mask = npt.NDArray[np.bool_]


class Protocol(NamedTuple):
    """What a family of papers fixes, and the area by which it compares."""

    threshold: ThresholdRule
    discard: DiscardRule
    area: str


PROTOCOLS: dict[str, Protocol] = {
    "sdd-fiqa": Protocol("recomputed", "images", "aoc"),
    "iso": Protocol("fixed", "pairs", "stepwise_0.3"),  # ISO/IEC 29794-1, as Schlett et al. do it
    "cr-fiqa": Protocol("recomputed", "pairs", "auc"),
    "fraunhofer": Protocol("recomputed", "pairs", "pauc_raw_0.3"),  # CR-FIQA's authors from 2025 on
}


@dataclass(frozen=True)
class Cell:
    """One scorer on one recogniser at one FMR under one pair of rules.

    Attributes:
        recogniser: whose embeddings.
        scorer: whose scores.
        curve: g(phi).
        areas: by name (areas.py), NaN where refused.
        intervals: by the area's name, the middle 95 % of the bootstrap; empty without one.
        replicates: (B, S) bootstrapped g(phi); None without one.
        refused: why the area over the whole range cannot be had; None where it can.
    """

    recogniser: str
    scorer: str
    curve: Curve
    areas: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    replicates: Values | None
    refused: str | None

    @property
    def few_errors(self) -> bool:
        """Fewer than 30 genuine errors at phi = 0: not to be relied on."""
        return bool(self.curve.errors[0] < FEW_ERRORS) and not np.isnan(self.curve.fnmr[0])

    @property
    def smallest_fmr(self) -> float:
        """The smallest FMR that the impostor pairs can show at phi = 0."""
        return 1.0 / int(self.curve.impostors[0])


@dataclass(frozen=True)
class Difference:
    """Two scorers on the same pairs: area of the better minus area of the other, and its interval.

    Attributes:
        better: the cell that comes first in its group.
        other: one that comes after it.
        area: the area's name.
        value: the difference of the areas.
        low: the bootstrap's lower end, identities drawn alike for both.
        high: its upper end.
    """

    better: Cell
    other: Cell
    area: str
    value: float
    low: float
    high: float

    @property
    def told_apart(self) -> bool:
        """The interval lies on one side of zero."""
        return bool(self.low > 0 or self.high < 0)


def study(
    sources: Mapping[str, PairSource],
    scores: Mapping[str, npt.NDArray[np.floating]],
    fmrs: Sequence[float],
    rules: Sequence[Rules],
    area: str = "aoc",
    limits: Sequence[float] = LIMITS,
    replicates: int = 0,
    seed: int = 0,
) -> list[Cell]:
    """Every cell, grouped by recogniser, rules and FMR, the best by `area` first in each group.

    Args:
        sources: by the recogniser's name, the pairs; all of the same images.
        scores: by the scorer's name, (n,) one score an image.
        fmrs: target FMRs.
        rules: which curves.
        area: the area to order by.
        limits: L of the partial areas.
        replicates: of the bootstrap over identities; 0 for none.
        seed: of the bootstrap.

    Raises:
        ValueError: as edc.evaluate.
    """
    cells: list[Cell] = []
    for recogniser, source in sources.items():
        curves = evaluate(source, scores, fmrs, rules)
        for rule in rules:
            for fmr in fmrs:
                group = [
                    _cell(
                        source, recogniser, name, curves[name, fmr, rule], limits, replicates, seed
                    )
                    for name in scores
                ]
                cells.extend(sorted(group, key=lambda cell: _rank(cell, area)))
    return cells


def differences(
    cells: Sequence[Cell], area: str, limits: Sequence[float] = LIMITS
) -> list[Difference]:
    """Every two scorers of each group, the better one first; empty without a bootstrap."""
    found: list[Difference] = []
    groups: dict[tuple[str, float, Rules], list[tuple[Cell, Values]]] = {}
    for cell in cells:
        if cell.replicates is None:
            continue
        key = (cell.recogniser, cell.curve.fmr, cell.curve.rules)
        drawn = grid_areas(cell.curve, cell.replicates, limits)[area]
        for better, of_better in groups.setdefault(key, []):
            value = better.areas[area] - cell.areas[area]
            found.append(Difference(better, cell, area, value, *interval(of_better - drawn)))
        groups[key].append((cell, drawn))
    return found


def choose_images(
    identities: npt.NDArray[np.integer],
    usable: Mask,
    max_per_id: int | None = None,
    min_per_id: int = 2,
    seed: int = 0,
) -> Mask:
    """(N,) which images take part.

    Args:
        identities: (N,) any integers.
        usable: (N,) images that have all they need.
        max_per_id: draw at most so many of each identity, seeded: one person's pairs grow with the
            square of the images.
        min_per_id: leave out identities with fewer usable images: without a mate an image has no
            genuine pair, and discarding it would count and change nothing.
        seed: of the draw.
    """
    chosen = usable.copy()
    dense = np.unique(identities, return_inverse=True)[1]
    if max_per_id is not None:
        order = np.random.default_rng(seed).permutation(len(dense))
        order = order[chosen[order]]
        by_identity = order[np.argsort(dense[order], kind="stable")]
        counts = np.bincount(dense[order], minlength=int(dense.max()) + 1)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        chosen[by_identity[np.arange(len(order)) - starts >= max_per_id]] = False
    counts = np.bincount(dense[chosen], minlength=int(dense.max(initial=0)) + 1)
    return np.asarray(chosen & (counts[dense] >= min_per_id))


def _cell(
    source: PairSource,
    recogniser: str,
    scorer: str,
    curve: Curve,
    limits: Sequence[float],
    replicates: int,
    seed: int,
) -> Cell:
    drawn = resampled(source, curve, replicates, seed) if replicates else None
    intervals: dict[str, tuple[float, float]] = {}
    if drawn is not None:
        intervals = {
            name: interval(values) for name, values in grid_areas(curve, drawn, limits).items()
        }
    reason = refusal(curve, FULL_LIMIT)
    return Cell(recogniser, scorer, curve, areas(curve, limits), intervals, drawn, reason)


def _rank(cell: Cell, area: str) -> tuple[float, ...]:
    """Lower is better: by the area; where it is refused or equal, by the others in their order."""

    def rank(name: str) -> float:
        value = cell.areas[name]
        if np.isnan(value):
            return np.inf
        return -value if name in HIGHER_IS_BETTER else value

    return tuple(map(rank, [area, *cell.areas]))
