"""From a curve to a decision: what to discard, at which score, and what error is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.edc import Curve, Values


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

    Discarding stops helping at the first point that no later point betters by more than the point's
    own standard error: the one-standard-error rule (Breiman et al., "Classification and regression
    trees", 1984, section 3.4.3).

    Args:
        curve: from edc.evaluate.
        replicates: (B, S) from bootstrap.resampled: the standard error is their deviation. Without
            them it is the binomial one, which takes pairs for independent and so comes out small.

    Raises:
        ValueError: no point of the curve can be had.
    """
    count = int(np.count_nonzero(~np.isnan(curve.fnmr)))
    if count == 0:
        raise ValueError(f"FMR {curve.fmr:g} cannot be shown: no advice")
    fnmr = curve.fnmr[:count]
    if replicates is None:
        error = np.sqrt(fnmr * (1 - fnmr) / np.maximum(curve.genuine[:count], 1))
    else:
        error = replicates[:, :count].std(axis=0, ddof=1)
    lowest_from_here = np.minimum.accumulate(fnmr[::-1])[::-1]
    enough = int(np.flatnonzero(lowest_from_here >= fnmr - error)[0])
    return Advice(curve.shares[:count], curve.levels.score[curve.cuts[:count]], fnmr, enough)
