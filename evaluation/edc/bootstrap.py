"""Confidence intervals: the bootstrap over identities.

Pairs that share a person are not independent. One person can own most genuine pairs of a set, and
one bad photo fails against all its mates. So identities are drawn, not pairs (Bolle, Ratha and
Pankanti, "Error analysis of pattern recognition systems: the subsets bootstrap", 2004): C
identities with replacement. Identity c is drawn w_c times, and each of its genuine pairs counts w_c
times. Copies of one person are not compared with each other.

The decision thresholds keep their values on the whole set, and so do the score cuts and the shares
that they discard. Only the FNMR varies:

    g_b(phi) = sum_c w_c errors_c(phi) / sum_c w_c genuine_c(phi)

A threshold depends on many more pairs than the errors do, so it would vary little.
docs/evaluation.md compares the interval with one where everything varies. The draws depend on the
seed and the number of identities only. So scorers, recognisers and protocols on one set are paired,
and the difference of two areas has its own interval.
"""

from __future__ import annotations

import numpy as np

from evaluation.edc.curves import Curve, failing
from evaluation.edc.pairs import Ints, PairSource, Values

LEVEL = 0.95
_REPLICATES = 64
_PAIRS = 1 << 16


def resampled(source: PairSource, curve: Curve, replicates: int, seed: int = 0) -> Values:
    """(replicates, S) the FNMR of each point of a curve, on redrawn identities.

    NaN where the curve is. A point without a genuine pair takes the value before it.
    """
    identities = int(source.identities.max()) + 1
    errors = _errors_by_identity(source, curve, identities)
    drawn = _ratios(errors, _genuine_by_identity(source, curve, identities), replicates, seed)
    for point in range(1, drawn.shape[1]):
        empty = np.isnan(drawn[:, point])
        drawn[empty, point] = drawn[empty, point - 1]
    drawn[:, np.isnan(curve.fnmr)] = np.nan
    return drawn


def ratio_interval(part: Ints, whole: Ints, replicates: int, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of sum_c w_c part_c / sum_c w_c whole_c, for (C,) counts of identities.

    (NaN, NaN) without replicates, with one identity, or if too few of them have a value (see
    `interval`).
    """
    if len(part) < 2:
        return np.nan, np.nan
    return interval(_ratios(part[:, None], whole[:, None], replicates, seed)[:, 0])


def _ratios(part: Ints | Values, whole: Ints | Values, replicates: int, seed: int) -> Values:
    """(replicates, S) weighted sums of (C, S) `part` over those of `whole`; NaN for 0 / 0."""
    ratios = np.empty((replicates, part.shape[1]))
    for start in range(0, replicates, _REPLICATES):
        stop = min(start + _REPLICATES, replicates)
        weights = draws(len(part), start, stop, seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[start:stop] = (weights @ part) / (weights @ whole)
    return ratios


def draws(identities: int, start: int, stop: int, seed: int) -> Values:
    """(stop - start, identities) how often each identity is drawn, in replicates start to stop."""
    seeds = ((seed, replicate) for replicate in range(start, stop))
    drawn = (np.random.default_rng(one).integers(identities, size=identities) for one in seeds)
    return np.array([np.bincount(one, minlength=identities) for one in drawn], np.float64)


def interval(values: Values) -> tuple[float, float]:
    """The middle 95 % of replicates; (NaN, NaN) where fewer than 90 % of them have a value.

    A replicate without an error at phi = 0 has no relative area.
    """
    known = values[np.isfinite(values)]
    if len(known) < 0.9 * len(values) or len(known) < 2:
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _errors_by_identity(source: PairSource, curve: Curve, identities: int) -> Values:
    """(C, S) genuine pairs of each identity that fail at each point."""
    highest = float(np.nanmax(curve.thresholds, initial=-2.0))
    similarity, worse, identity = failing(source, curve.level, highest)
    counts = np.zeros((identities, len(curve.cuts)))
    for start in range(0, len(worse), _PAIRS):
        part = slice(start, start + _PAIRS)
        fails = (worse[part, None] >= curve.cuts) & (similarity[part, None] < curve.thresholds)
        np.add.at(counts, identity[part], fails)
    return counts


def _genuine_by_identity(source: PairSource, curve: Curve, identities: int) -> Values:
    """(C, S) genuine pairs of each identity that each point keeps."""
    pairs, points = source.genuine, len(curve.cuts)
    counts = np.zeros(identities * (points + 1))
    survived = np.searchsorted(curve.cuts, curve.level, side="right")
    for start in range(0, len(pairs.first), _PAIRS):
        first, second = pairs.first[start : start + _PAIRS], pairs.second[start : start + _PAIRS]
        last = np.minimum(survived[first], survived[second])
        place = source.identities[first].astype(np.int64) * (points + 1) + last
        counts += np.bincount(place, minlength=len(counts))
    by_last = counts.reshape(identities, points + 1)
    return np.asarray(np.cumsum(by_last[:, ::-1], axis=1)[:, ::-1][:, 1:], np.float64)
