"""The 1-Wasserstein distance of two one-dimensional samples, by their quantile functions.

P is the sample of intra-class similarities, N that of inter-class ones; P^-1 and N^-1 are their
quantile functions (SDD-FIQA, Eq. 7). All estimators use this identity:

    W1(P, N) = integral |P^-1 - N^-1| du = mean(P) - mean(N) + 2 * negative_excess(P, N)
    negative_excess(P, N) = integral (N^-1 - P^-1)+ du

The excess is zero where every positive is more similar than every negative. Two means are enough
there.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.array_backend import Array, Arrays, Indices
from generate_pseudo_labels.distance.blocks import counted

_MARGIN = 4.0  # standard deviations of a rank


@lru_cache(maxsize=4096)
def merged_quantiles(a: int, b: int) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """The steps on which both quantile functions of samples of sizes a and b are constant.

    Returns:
        For each of the (at most a + b) steps between the merged breakpoints {i/a} and {j/b}: the
        index into the sorted first sample, the index into the sorted second, and the step's width.
        They depend on the sizes alone, so a whole block of images shares them.
    """
    # In units of 1 / (a b) the breakpoints are whole numbers.
    ends = np.union1d(np.arange(1, a + 1) * b, np.arange(1, b + 1) * a)
    begins = np.concatenate([[0], ends[:-1]])
    return begins // b, begins // a, (ends - begins) / (a * b)


def negative_excess(arrays: Arrays, p: Array, n: Array) -> Array:
    """Integral of (N^-1 - P^-1)+ of sorted rows p (r, a) and n (r, b): (r,) float32."""
    i, j, weights = merged_quantiles(p.shape[1], n.shape[1])
    if not len(i) == p.shape[1] == n.shape[1]:
        p, n = p[:, arrays.device(i)], n[:, arrays.device(j)]
    gaps = n - p
    return gaps.clip(0) @ arrays.device(weights.astype(np.float32))


def may_cross(arrays: Arrays, p: Array, counts: Indices, n: Array, absent: Indices) -> Array:
    """(r,) whether N^-1 may be above P^-1 somewhere, where only a random sample of N is known.

    Over the quantiles of one positive, N^-1 is largest at their end, u. There the sample's quantile
    is taken _MARGIN standard deviations of its rank higher, so that a crossing of the whole N is
    almost never missed. Arguments as in `negative_excess_ragged`.
    """
    xp = arrays.xp
    rows, width = n.shape
    row_of, place = counted(0, counts)
    u = (place + 1) / counts[row_of]
    present = (width - absent)[row_of]
    ranks = u * present + _MARGIN * np.sqrt(u * (1 - u) * present)
    at = absent[row_of] + np.minimum(np.ceil(ranks).astype(np.int64), present) - 1
    row = arrays.device(row_of)
    above = xp.asarray(n[row, arrays.device(at)] > p, dtype=xp.float64)
    return xp.bincount(row, weights=above, minlength=rows) > 0


def negative_excess_ragged(
    arrays: Arrays, p: Array, counts: Indices, n: Array, absent: Indices
) -> Array:
    """(r,) float64 integral of (N^-1 - P^-1)+ for rows whose sample sizes differ.

    Over the quantiles of one positive, N^-1 is above it from the positive's rank among the
    negatives on. The integral of N^-1 is a running sum.

    Args:
        arrays: the array library.
        p: (counts.sum(),) the rows' sorted positives, one row after the other, in [-1, 1].
        counts: (r,) how many positives each row has.
        n: (r, M) sorted negatives, in [-1, 1]; a row's absent ones come first, as -inf.
        absent: (r,) how many of each row are absent, fewer than M.
    """
    xp = arrays.xp
    rows, width = n.shape
    row_of, place = counted(0, counts)
    size = counts[row_of]
    begins, ends = arrays.device(place / size), arrays.device((place + 1) / size)
    skipped, present = arrays.device(absent[row_of]), arrays.device((width - absent)[row_of])
    row = arrays.device(row_of)
    p, n = xp.asarray(p, dtype=xp.float64), xp.asarray(n, dtype=xp.float64).clip(-2.0)
    # Rows are shifted 4 apart and make one ascending sequence, so one search serves all rows.
    offsets = 4.0 * arrays.device(np.arange(rows, dtype=np.float64))
    below = xp.searchsorted((n + offsets[:, None]).ravel(), p + offsets[row])
    # float64, since torch divides whole numbers in float32.
    below = xp.asarray(below - row * width - skipped, dtype=xp.float64)
    begins = xp.minimum(xp.maximum(below / present, begins), ends)
    n = xp.where(n < -1.5, 0.0, n)
    sums = n.cumsum(1)

    def integral(u: Array) -> Array:  # of N^-1 from 0 to u
        whole = xp.minimum(xp.asarray(u * present, dtype=xp.int64), present - 1)
        value = n[row, skipped + whole]
        return (sums[row, skipped + whole] - value + (u * present - whole) * value) / present

    shares = (integral(ends) - integral(begins) - p * (ends - begins)).clip(0)
    return xp.bincount(row, weights=shares, minlength=rows)
