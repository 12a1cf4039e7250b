"""Several scorers on the embeddings of one recogniser: curves, areas, intervals, order.

A protocol is the two rules of curves.Rules, and the area by which a paper compares (areas.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.edc.areas import FEW_ERRORS, HIGHER_IS_BETTER, LIMITS, areas, grid_areas, refusal
from evaluation.edc.bootstrap import interval, resampled
from evaluation.edc.curves import Curve, DiscardRule, Rules, ThresholdRule, evaluate
from evaluation.edc.pairs import AnyFloats, AnyInts, PairSource, Values, all_pairs

PROTOCOLS: dict[str, tuple[ThresholdRule, DiscardRule, str]] = {
    "sdd-fiqa": ("recomputed", "images", "aoc"),
    "iso": ("fixed", "pairs", "stepwise_0.3"),  # ISO/IEC 29794-1 and Schlett et al.
    "cr-fiqa": ("recomputed", "pairs", "auc"),
    "fraunhofer": ("recomputed", "pairs", "pauc_raw_0.3"),  # CR-FIQA's authors, 2025 on
}


@dataclass(frozen=True)
class EdcResult:
    """One scorer on one recogniser at one FMR under one pair of rules.

    Attributes:
        recogniser: which embeddings.
        scorer: which scores.
        curve: g(phi).
        areas: by name (areas.py), NaN where refused.
        intervals: by the area's name, the middle 95 % of the bootstrap; empty without one.
        replicates: (B, S) bootstrapped g(phi); None without a bootstrap.
        refused: why the area over the whole range is not computed; None if it is.
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
        """Fewer than 30 genuine errors at phi = 0: not reliable."""
        return bool(self.curve.errors[0] < FEW_ERRORS) and not np.isnan(self.curve.fnmr[0])


@dataclass(frozen=True)
class Difference:
    """Two scorers on the same pairs: area of the better minus area of the other, and its interval.

    Attributes:
        better: the result that comes first in its group.
        other: one that comes after it.
        value: the difference of the areas.
        low: the lower end of the bootstrap's interval; both scorers share the identities drawn.
        high: its upper end.
    """

    better: EdcResult
    other: EdcResult
    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """The interval does not contain zero."""
        return bool(self.low > 0 or self.high < 0)


def error_versus_discard(
    embeddings: AnyFloats,
    identities: AnyInts,
    scores: AnyFloats,
    fmr: float = 1e-3,
    *,
    threshold: ThresholdRule = "recomputed",
    discard: DiscardRule = "images",
    replicates: int = 0,
) -> EdcResult:
    """How the FNMR of all pairs falls as the images of lowest score are discarded.

    Args:
        embeddings: (N, D), any float type; no row is zero.
        identities: (N,) any integers: which person an image shows.
        scores: (N,) finite, any scale; higher is better.
        fmr: target false match rate, in (0, 1).
        threshold: recomputed on what remains, or fixed at no discard.
        discard: images with all their pairs, or pairs by their worse image.
        replicates: of the bootstrap over identities, for `intervals`; 0 for none.

    Returns:
        The curve (`.curve.shares` and `.curve.fnmr`), its areas (`.areas["aoc"]`, ...), and why an
        area is missing (`.refused`).

    Raises:
        ValueError: no genuine or no impostor pair, or a value outside its range.
    """
    source = all_pairs(embeddings, identities)
    rules = Rules(threshold, discard)
    return study("", source, {"": scores}, [fmr], [rules], replicates=replicates)[0]


def study(
    recogniser: str,
    source: PairSource,
    scores: Mapping[str, AnyFloats],
    fmrs: Sequence[float],
    rules: Sequence[Rules],
    area: str = "aoc",
    limits: Sequence[float] = LIMITS,
    replicates: int = 0,
    seed: int = 0,
) -> list[EdcResult]:
    """Every result, grouped by rules and FMR; in each group the best by `area` comes first.

    `scores` are (n,) by scorer, higher is better; `limits` are L of the partial areas; without
    `replicates` there is no bootstrap over identities.

    Raises:
        ValueError: as curves.evaluate.
    """
    curves = evaluate(source, scores, fmrs, rules)

    def result(scorer: str, curve: Curve) -> EdcResult:
        drawn, intervals = None, {}
        if replicates:
            drawn = resampled(source, curve, replicates, seed)
            of_area = grid_areas(curve, drawn, limits)
            intervals = {name: interval(values) for name, values in of_area.items()}
        found = areas(curve, limits)
        return EdcResult(recogniser, scorer, curve, found, intervals, drawn, refusal(curve))

    results: list[EdcResult] = []
    for rule in rules:
        for fmr in fmrs:
            group = [result(name, curves[name, fmr, rule]) for name in scores]
            results += sorted(group, key=lambda one: _rank(one, area))
    return results


def differences(
    results: Sequence[EdcResult], area: str, limits: Sequence[float] = LIMITS
) -> list[Difference]:
    """Every two scorers of each group, the better one first; empty without a bootstrap."""
    found: list[Difference] = []
    groups: dict[tuple[str, float, Rules], list[tuple[EdcResult, Values]]] = {}
    for result in results:
        if result.replicates is None:
            continue
        group = groups.setdefault((result.recogniser, result.curve.fmr, result.curve.rules), [])
        drawn = grid_areas(result.curve, result.replicates, limits)[area]
        for better, of_better in group:
            value = better.areas[area] - result.areas[area]
            found.append(Difference(better, result, value, *interval(of_better - drawn)))
        group.append((result, drawn))
    return found


def _rank(result: EdcResult, area: str) -> tuple[float, ...]:
    """Sort key, lower is better: the area; if it is refused or equal, the others in order."""
    ordered = {area: result.areas[area]} | result.areas
    signed = (-value if name in HIGHER_IS_BETTER else value for name, value in ordered.items())
    return tuple(np.inf if np.isnan(value) else value for value in signed)
