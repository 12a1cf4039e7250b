"""The 1-Wasserstein distance of two one-dimensional samples, by their quantile functions.

P is the sample of intra-class similarities, N that of inter-class ones; P^-1 and N^-1 are their
quantile functions (SDD-FIQA, Eq. 7). Everything rests on

    W1(P, N) = integral |P^-1 - N^-1| du = mean(P) - mean(N) + 2 * wrong_way(P, N)
    wrong_way(P, N) = integral (N^-1 - P^-1)+ du

so that two means are enough wherever every positive is more similar than every negative.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.array_backend import Array, Arrays

_MARGIN = 4.0

Indices = npt.NDArray[np.int64]


def wasserstein(p: npt.ArrayLike, n: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """W1 of samples along the last axis; any two sizes.

    Args:
        p: (..., a) numbers.
        n: (..., b) numbers; the axes before the last broadcast.

    Returns:
        (...) the distances, in the numbers' own unit.

    Example:
        >>> float(wasserstein([0, 1], [1, 2]))
        1.0
        >>> float(wasserstein([0], [0, 0, 3]))
        1.0
    """
    p, n = np.sort(np.asarray(p, np.float64)), np.sort(np.asarray(n, np.float64))
    i, j, weights = merged_quantiles(p.shape[-1], n.shape[-1])
    distances: npt.NDArray[np.float64] = np.abs(p[..., i] - n[..., j]) @ weights
    return distances


@lru_cache(maxsize=4096)
def merged_quantiles(a: int, b: int) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """Where both quantile functions of samples of sizes a and b are constant.

    Returns:
        For each of the (at most a + b) steps between the merged breakpoints {i/a} and {j/b}: the
        index into the sorted first sample, into the sorted second, and the step's width. They
        depend on the sizes alone, so a whole block of images shares them.
    """
    # In units of 1 / (a b) the breakpoints are whole numbers.
    ends = np.union1d(np.arange(1, a + 1) * b, np.arange(1, b + 1) * a)
    begins = np.concatenate([[0], ends[:-1]])
    return begins // b, begins // a, (ends - begins) / (a * b)


def wrong_way(arrays: Arrays, p: Array, n: Array) -> Array:
    """Integral of (N^-1 - P^-1)+ for rows of samples of two sizes.

    Args:
        arrays: the array library.
        p: (r, a) sorted rows.
        n: (r, b) sorted rows.

    Returns:
        (r,) float32.
    """
    i, j, weights = merged_quantiles(p.shape[1], n.shape[1])
    if not len(i) == p.shape[1] == n.shape[1]:
        p, n = p[:, arrays.device(i)], n[:, arrays.device(j)]
    gaps = n - p
    return gaps.clip(0) @ arrays.device(weights.astype(np.float32))


def may_cross(arrays: Arrays, p: Array, counts: Indices, n: Array, absent: Indices) -> Array:
    """Whether N^-1 may lie above P^-1 somewhere, N being known by a random sample.

    Over the quantiles of one positive N^-1 is largest at their end, u. The sample's quantile there
    is taken MARGIN standard deviations of its rank further up, so that a crossing of the whole N
    is missed hardly ever. Arguments as in `wrong_way_ragged`.

    Returns:
        (r,) bool.
    """
    xp = arrays.xp
    rows, width = n.shape
    row_of = np.repeat(np.arange(rows), counts)
    u = (np.arange(len(row_of)) - (np.cumsum(counts) - counts)[row_of] + 1) / counts[row_of]
    present = (width - absent)[row_of]
    ranks = u * present + _MARGIN * np.sqrt(u * (1 - u) * present)
    at = absent[row_of] + np.minimum(np.ceil(ranks).astype(np.int64), present) - 1
    row = arrays.device(row_of)
    above = arrays.double(n[row, arrays.device(at)] > p)
    return xp.bincount(row, weights=above, minlength=rows) > 0


def wrong_way_ragged(arrays: Arrays, p: Array, counts: Indices, n: Array, absent: Indices) -> Array:
    """Integral of (N^-1 - P^-1)+ for rows whose sample sizes differ from row to row.

    Walks through the positives: over the quantiles of one of them, N^-1 lies above it from its own
    rank among the negatives on, and the integral of N^-1 is a running sum.

    Args:
        arrays: the array library.
        p: (counts.sum(),) the rows' sorted positives, one row after the other, in [-1, 1].
        counts: (r,) how many positives each row has.
        n: (r, M) sorted negatives, in [-1, 1]; a row's absent ones come first, as -inf.
        absent: (r,) how many of each row are absent, fewer than M.

    Returns:
        (r,) float64.
    """
    xp = arrays.xp
    rows, width = n.shape
    first = np.cumsum(counts) - counts
    row_of = np.repeat(np.arange(rows), counts)
    place = np.arange(len(row_of)) - first[row_of]
    size = counts[row_of]
    begins, ends = arrays.device(place / size), arrays.device((place + 1) / size)
    skipped, present = arrays.device(absent[row_of]), arrays.device((width - absent)[row_of])
    row = arrays.device(row_of)
    p, n = arrays.double(p), arrays.double(n).clip(-2.0)
    # Rows set 4 apart make one ascending sequence, so one search serves all rows.
    shelves = 4.0 * arrays.device(np.arange(rows, dtype=np.float64))
    below = xp.searchsorted((n + shelves[:, None]).ravel(), p + shelves[row])
    below = arrays.double(below - row * width - skipped)  # torch would divide in float32
    begins = xp.minimum(xp.maximum(below / present, begins), ends)
    n = xp.where(n < -1.5, 0.0, n)
    sums = n.cumsum(1)

    def integral(u: Array) -> Array:  # of N^-1 from 0 to u
        whole = xp.minimum(
            (u * present).astype(np.int64) if xp is np else (u * present).long(), present - 1
        )
        value = n[row, skipped + whole]
        return (sums[row, skipped + whole] - value + (u * present - whole) * value) / present

    shares = (integral(ends) - integral(begins) - p * (ends - begins)).clip(0)
    return xp.bincount(row, weights=shares, minlength=rows)
