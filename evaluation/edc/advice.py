"""From a curve to a decision: what to discard, at which score, and what error is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.edc.curves import Curve, Values

_SURE = 0.975
_TELLING = 3.0  # errors to be expected of a point before its having none says anything


@dataclass(frozen=True)
class Advice:
    """Score thresholds and what they buy, one entry a share: keep images of score >= threshold.

    Attributes:
        shares: rising, the share of images (or pairs) discarded.
        thresholds: the lowest score kept.
        fnmr: what is left.
        enough: position of the point past which discarding stops helping.
    """

    shares: Values
    thresholds: Values
    fnmr: Values
    enough: int


def advise(curve: Curve, replicates: Values | None = None) -> Advice:
    """The table of one curve, as far as it can be had.

    Discarding stops helping at the first point s that no later point s' betters for sure: with a
    bootstrap, no s' has the lower FNMR in 97.5 % of the replicates; without one, no s' lies more
    than two binomial standard errors below (which takes pairs for independent, so the point comes
    out late). A later point counts only if some 3 of its genuine pairs would fail at the rate of s:
    where fewer would, an FNMR of 0 proves nothing (the rule of three: no error in n trials is
    compatible with a rate of 3/n).

    Args:
        curve: from edc.evaluate.
        replicates: (B, S) from bootstrap.resampled.

    Raises:
        ValueError: no point of the curve can be had.
    """
    count = int(np.count_nonzero(~np.isnan(curve.fnmr)))
    if count == 0:
        raise ValueError(f"FMR {curve.fmr:g} cannot be shown: no advice")
    fnmr, genuine = curve.fnmr[:count], np.maximum(curve.genuine[:count], 1)
    enough = count - 1
    for point in range(count):
        rate, later = fnmr[point], slice(point + 1, count)
        if replicates is None:
            error = np.sqrt(rate * (1 - rate) / genuine[later])
            lower = rate - fnmr[later] > 2 * error
        else:
            lower = np.mean(replicates[:, later] < replicates[:, point, None], axis=0) >= _SURE
        betters = lower & (fnmr[later] < rate) & (genuine[later] * rate >= _TELLING)
        if not betters.any():
            enough = point
            break
    return Advice(curve.shares[:count], curve.levels.score[curve.cuts[:count]], fnmr, enough)
