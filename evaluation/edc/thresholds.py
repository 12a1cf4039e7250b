"""Exact decision thresholds of many subsets of one stream of impostor similarities.

A quality score puts the images in an order, and discarding from the bottom leaves nested subsets:
state 0 keeps all, state 1 fewer, ... Every state has its own impostor pairs and so its own
threshold for a false match rate. Sorting each subset would read the pairs once a state; instead

1. a sample of pairs gives a guess of a similarity below every wanted threshold,
2. one pass over the pairs above it fills, for every score, a histogram (the last state that a pair
   survives) x (a fine bin of similarity); its cumulative sums count every subset at once,
3. a second pass collects the few similarities in the bins that hold a threshold.

Step 2 checks the guess of step 1: a wrong guess is detected and only costs another pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from evaluation.edc.pairs import Floats, Ints, Pairs, PairSource, joined

MAX_STATES = 255  # a state number fits a byte, which saves memory traffic over 5e9 pairs
_BINS = 1 << 15
_SAMPLE_IMAGES = 2048
_FLUSH = 1 << 21

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.uint32]
Collected = tuple[Floats, Bytes, npt.NDArray[np.uint16]]  # similarities, last states, bins


@dataclass(frozen=True)
class Subsets:
    """The nested subsets that one quality score makes.

    Attributes:
        survived: (n,) uint8, in how many states, counted from state 0, each image is kept.
        ranks: (states, fmrs) int64: the threshold is just above the rank-th largest impostor
            similarity of the state; 0 where no threshold is wanted.
    """

    survived: Bytes
    ranks: Ints


def allowed_false_matches(fmr: float, pairs: Ints) -> Ints:
    """floor(fmr * pairs), exact: fmr is taken as the decimal number that was written."""
    target = Fraction(repr(float(fmr)))
    return np.array([target.numerator * int(n) // target.denominator for n in pairs], np.int64)


def exact_thresholds(source: PairSource, subsets: list[Subsets]) -> list[Floats]:
    """For each `Subsets`, (states, fmrs) float32 thresholds; NaN where none was wanted.

    A threshold is the next float above the rank-th largest similarity of the state's impostor
    pairs, so that a match, s >= t, is a similarity above it.
    """
    for widening in (2.0, 8.0, np.inf):
        floor = _floor(source, subsets, widening)
        places = _places(source, subsets, floor)
        both = zip(subsets, places, strict=True)
        if all(np.all(bins[one.ranks > 0] >= 0) for one, (bins, _) in both):
            return _refine(source, subsets, floor, places)
    raise AssertionError("a state has fewer impostor pairs than its source counted")


def _floor(source: PairSource, subsets: list[Subsets], widening: float) -> float:
    """A similarity very likely below every wanted threshold; -2 if none is found."""
    if widening == np.inf:
        return -2.0
    sample = source.sample_impostors(_SAMPLE_IMAGES, seed=0)
    order = np.argsort(-sample.similarity)
    similarity, first, second = (array[order] for array in sample)
    lowest = 2.0
    for one in subsets:
        last = np.minimum(one.survived[first], one.survived[second]).astype(np.int64)
        by_state = source.impostors_by_level(one.survived.astype(np.int32), len(one.ranks) + 1)
        totals = np.cumsum(by_state[::-1])[::-1][1:]  # the impostor pairs that each state keeps
        for state, ranks in enumerate(one.ranks):
            rank = int(ranks.max(initial=0))
            if rank == 0:
                continue
            inside = np.flatnonzero(last > state)
            place = int(np.ceil(widening * rank / int(totals[state]) * len(inside))) + 20
            if place >= len(inside):
                return -2.0
            lowest = min(lowest, float(similarity[inside[place]]))
    return lowest


def _bins(similarity: Floats, floor: float) -> npt.NDArray[np.intp]:
    """Bin numbers; they never fall as the similarity rises, whatever float32 rounding does."""
    scale = np.float32(_BINS / (1.001 - floor))
    bins = ((similarity - np.float32(floor)) * scale).astype(np.intp)
    return np.clip(bins, 0, _BINS - 1, out=bins)


def _places(source: PairSource, subsets: list[Subsets], floor: float) -> list[tuple[Ints, Ints]]:
    """For each `Subsets`, where the wanted similarities are: see `_locate`."""
    # (states * bins,) the pairs of each bin whose last state is this one
    counts = [np.zeros(len(one.ranks) * _BINS, np.uint32) for one in subsets]
    for pairs in _gathered(source, floor):
        bins = _bins(pairs.similarity, floor)
        for count, one in zip(counts, subsets, strict=True):
            last = np.minimum(one.survived[pairs.first], one.survived[pairs.second])
            np.add.at(count, (last.astype(np.intp) - 1) * _BINS + bins, np.uint32(1))
    both = zip(counts, subsets, strict=True)
    return [_locate(count.reshape(-1, _BINS), one.ranks) for count, one in both]


def _locate(counts: Counts, ranks: Ints) -> tuple[Ints, Ints]:
    """The bin of each wanted similarity (-1: below the floor), and its rank in the bin."""
    bins = np.full(ranks.shape, -1, np.int64)
    inner = np.zeros(ranks.shape, np.int64)
    row = np.zeros(_BINS, np.int64)
    for state in range(len(ranks) - 1, -1, -1):
        row += counts[state]
        from_top = np.cumsum(row[::-1])  # from_top[b]: pairs in the b + 1 highest bins
        for column, rank in enumerate(ranks[state]):
            if 0 < rank <= from_top[-1]:
                place = int(np.searchsorted(from_top, rank))
                bins[state, column] = _BINS - 1 - place
                inner[state, column] = rank - (from_top[place - 1] if place else 0)
    return bins, inner


def _refine(
    source: PairSource, subsets: list[Subsets], floor: float, places: list[tuple[Ints, Ints]]
) -> list[Floats]:
    """Collects the pairs of these bins, and takes from each bin the similarity of its rank."""
    from_state = []  # of each bin: the first state with a threshold in it
    for bins, _ in places:
        first = np.full(_BINS, MAX_STATES, np.uint8)
        np.minimum.at(first, bins[bins >= 0], np.nonzero(bins >= 0)[0].astype(np.uint8))
        from_state.append(first)
    collected: list[list[Collected]] = [[] for _ in subsets]
    for pairs in _gathered(source, floor):
        bins = _bins(pairs.similarity, floor)
        for one, first, kept in zip(subsets, from_state, collected, strict=True):
            last = np.minimum(one.survived[pairs.first], one.survived[pairs.second])
            inside = np.flatnonzero(last > first[bins])
            kept.append((pairs.similarity[inside], last[inside], bins[inside].astype(np.uint16)))
    return [
        _thresholds(kept, bins, inner)
        for kept, (bins, inner) in zip(collected, places, strict=True)
    ]


def _thresholds(kept: list[Collected], bins: Ints, inner: Ints) -> Floats:
    """(states, fmrs) thresholds, from the similarities, last states and bins collected."""
    thresholds = np.full(bins.shape, np.nan, np.float32)
    if not kept:
        return thresholds
    similarity, last, bin_of = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.argsort(bin_of, kind="stable")
    similarity, last, bin_of = similarity[order], last[order], bin_of[order]
    for state, column in np.argwhere(bins >= 0).tolist():
        low, high = np.searchsorted(bin_of, [bins[state, column], bins[state, column] + 1])
        inside = similarity[low:high][last[low:high] > state]
        place = len(inside) - int(inner[state, column])
        largest = np.partition(inside, place)[place]
        thresholds[state, column] = np.nextafter(largest, np.float32(np.inf))
    return thresholds


def _gathered(source: PairSource, floor: float) -> Iterator[Pairs]:
    """Impostor pairs above the floor, joined to about two million: small updates are slow."""
    waiting: list[Pairs] = []
    size = 0
    for pairs in source.impostors_above(floor):
        waiting.append(pairs)
        size += len(pairs.similarity)
        if size >= _FLUSH:
            yield joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield joined(waiting)
