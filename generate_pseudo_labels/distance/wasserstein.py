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

from generate_pseudo_labels.distance import Float32, Float64, Indices, Mask

_MARGIN = 4.0  # standard deviations of a rank


@lru_cache(maxsize=4096)
def merged_quantiles(a: int, b: int) -> tuple[Indices, Indices, Float64]:
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


def ragged(counts: Indices) -> tuple[Indices, Indices]:
    """For rows of different lengths, one after the other: row and place in it, of each entry."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]


def negative_excess(p: Float32, n: Float32) -> Float32:
    """Integral of (N^-1 - P^-1)+ for rows of samples of two sizes.

    Args:
        p: (r, a) sorted rows.
        n: (r, b) sorted rows.

    Returns:
        (r,) float32.
    """
    i, j, weights = merged_quantiles(p.shape[1], n.shape[1])
    if not len(i) == p.shape[1] == n.shape[1]:
        p, n = p[:, i], n[:, j]
    excess: Float32 = (n - p).clip(0) @ weights.astype(np.float32)
    return excess


def may_cross(p: Float32, counts: Indices, n: Float32, absent: Indices) -> Mask:
    """Whether N^-1 may be above P^-1 somewhere, where only a random sample of N is known.

    Over the quantiles of one positive, N^-1 is largest at their end, u. There the sample's quantile
    is taken _MARGIN standard deviations of its rank higher, so that a crossing of the whole N is
    almost never missed. Arguments as in `negative_excess_ragged`.

    Returns:
        (r,) bool.
    """
    rows, width = n.shape
    row, place = ragged(counts)
    u = (place + 1) / counts[row]
    present = (width - absent)[row]
    ranks = u * present + _MARGIN * np.sqrt(u * (1 - u) * present)
    at = absent[row] + np.minimum(np.ceil(ranks).astype(np.int64), present) - 1
    return np.bincount(row, weights=n[row, at] > p, minlength=rows) > 0


def negative_excess_ragged(p: Float32, counts: Indices, n: Float32, absent: Indices) -> Float64:
    """Integral of (N^-1 - P^-1)+ for rows whose sample sizes differ from row to row.

    Over the quantiles of one positive, N^-1 is above it from the positive's rank among the
    negatives on. The integral of N^-1 is a running sum.

    Args:
        p: (counts.sum(),) the rows' sorted positives, one row after the other, in [-1, 1].
        counts: (r,) how many positives each row has.
        n: (r, M) sorted negatives, in [-1, 1]; a row's absent ones come first, as -inf.
        absent: (r,) how many of each row are absent, fewer than M.

    Returns:
        (r,) float64.
    """
    rows, width = n.shape
    row, place = ragged(counts)
    size = counts[row]
    begins, ends = place / size, (place + 1) / size
    skipped, present = absent[row], (width - absent)[row]
    p, sample = p.astype(np.float64), n.astype(np.float64).clip(-2.0)
    # Rows are shifted 4 apart and make one ascending sequence, so one search serves all rows.
    offsets = 4.0 * np.arange(rows)
    below = np.searchsorted((sample + offsets[:, None]).ravel(), p + offsets[row])
    begins = np.minimum(np.maximum((below - row * width - skipped) / present, begins), ends)
    sample = np.where(sample < -1.5, 0.0, sample)
    sums = sample.cumsum(1)

    def integral(u: Float64) -> Float64:  # of N^-1 from 0 to u
        whole = np.minimum((u * present).astype(np.int64), present - 1)
        value = sample[row, skipped + whole]
        total = sums[row, skipped + whole] - value + (u * present - whole) * value
        found: Float64 = total / present
        return found

    shares = (integral(ends) - integral(begins) - p * (ends - begins)).clip(0)
    return np.bincount(row, weights=shares, minlength=rows).astype(np.float64)
