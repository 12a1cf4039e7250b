"""Error-versus-discard curves.

The quality of a pair is the lower of its two images' scores. g(phi) is the FNMR at a target FMR on
what remains after the fraction phi of lowest quality is discarded. Published work differs on three
axes, so a number means nothing without them:

- The threshold is `recomputed` on what remains, so that the FMR stays at the target (SDD-FIQA;
  SER-FIQ's authors; MagFace; CR-FIQA's code), or `fixed` at phi = 0 (ISO/IEC 29794-1; Schlett et
  al., "Considerations on the Evaluation of Biometric Quality Assessment Algorithms", 2023).
- `images` are discarded with all their pairs (SDD-FIQA, SER-FIQ's authors), or `pairs` are (the
  others). With a fixed threshold, phi then counts genuine pairs (Schlett et al.). With a recomputed
  one, it counts genuine and impostor pairs together (CR-FIQA's code).
- The area: see areas.py.

FMR and FNMR: a pair matches if its similarity s >= the threshold t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from evaluation.edc.pairs import (
    AnyFloats,
    Floats,
    Ints,
    Mask,
    PairSource,
    Rows,
    Values,
    pairs_by_level,
    worse_level_counts,
)
from evaluation.edc.thresholds import Subsets, allowed_false_matches, exact_thresholds

ThresholdRule = Literal["recomputed", "fixed"]
DiscardRule = Literal["images", "pairs"]
GRID = 96  # phi = 0, .01, ..., .95


class Rules(NamedTuple):
    """Two of the three axes: how a curve is computed."""

    threshold: ThresholdRule
    discard: DiscardRule


@dataclass(frozen=True)
class Curve:
    """g(phi) at S points, phi rising from 0.

    A level is one of the distinct scores of n images, 0 for the lowest: images on one level are
    discarded together.

    Attributes:
        rules: threshold and discard rule.
        fmr: the target.
        level: (n,) int32, of each image.
        cuts: (S,) int, the lowest level kept.
        scores: (S,) float64, the lowest score kept.
        shares: (S,) the actual share discarded.
        coarse: (S,) True on the points of phi = 0, .05, ..., .95.
        fnmr: (S,) NaN from the first point that has too few impostor pairs for the target FMR.
        errors: (S,) genuine pairs below the threshold.
        genuine: (S,) genuine pairs that remain.
        impostors: (S,) impostor pairs that remain, of those compared.
        thresholds: (S,) the decision threshold of each point; NaN where it has none.
        steps: shares and FNMR of the step function: at every level if the threshold is fixed,
            otherwise at the points above.
    """

    rules: Rules
    fmr: float
    level: Rows
    cuts: Ints
    scores: Values
    shares: Values
    coarse: Mask
    fnmr: Values
    errors: Ints
    genuine: Ints
    impostors: Ints
    thresholds: Floats
    steps: tuple[Values, Values]

    @property
    def reach(self) -> float:
        """Largest share whose FMR target is measurable; 1 if all are, NaN if none is."""
        refused = np.flatnonzero(np.isnan(self.fnmr))
        if len(refused) == 0:
            return 1.0
        return float(self.shares[refused[0] - 1]) if refused[0] else np.nan


def evaluate(
    source: PairSource,
    scores: Mapping[str, AnyFloats],
    fmrs: Sequence[float],
    rules: Sequence[Rules],
) -> dict[tuple[str, float, Rules], Curve]:
    """Every curve of several scorers on one set of pairs, in two passes over them.

    Scores are (n,) by scorer, on any scale; higher is better. Target FMRs are in (0, 1).

    Raises:
        ValueError: a target outside (0, 1), no genuine or no impostor pair, a score that is not
            finite, or another number of scores than images.
    """
    for fmr in fmrs:
        if not 0 < fmr < 1:
            raise ValueError(f"FMR {fmr:g}: must lie between 0 and 1")
    if len(source.genuine.similarity) == 0:
        raise ValueError("there is no genuine pair: no identity has two images")
    if source.impostors == 0:
        raise ValueError("there is no impostor pair: at least two identities are needed")
    images = len(source.identities)
    builders = []
    for name, values in scores.items():
        if values.shape != (images,):
            raise ValueError(f"{name}: {values.shape} scores for {images} images")
        if not np.isfinite(values).all():
            raise ValueError("a score is not a finite number")
        builders.append(_CurveBuilder(source, values, fmrs, rules))
    found = exact_thresholds(source, [builder.subsets() for builder in builders])
    return {
        (name, fmr, rule): builder.curve(rule, column, thresholds)
        for name, builder, thresholds in zip(scores, builders, found, strict=True)
        for rule in rules
        for column, fmr in enumerate(fmrs)
    }


class _CurveBuilder:
    """One scorer's levels, counts and cuts, from which its curves are computed.

    Counts are (levels + 1,): how many images or pairs a cut at each level keeps.
    """

    def __init__(
        self, source: PairSource, scores: AnyFloats, fmrs: Sequence[float], rules: Sequence[Rules]
    ) -> None:
        self.source, self.fmrs = source, fmrs
        self.scores, level = np.unique(np.asarray(scores, np.float64), return_inverse=True)
        self.level: Rows = level.astype(np.int32)
        of_levels = self.level, len(self.scores)
        images = _kept(np.bincount(self.level))
        self.genuine = _kept(worse_level_counts(source.genuine, *of_levels))
        self.impostors = _kept(source.impostors_by_level(*of_levels))
        kept = {
            Rules("recomputed", "images"): images,
            Rules("fixed", "images"): images,
            Rules("fixed", "pairs"): self.genuine,
            Rules("recomputed", "pairs"): _kept(pairs_by_level(source, *of_levels)),
        }
        self.kept = {rule: kept[rule] for rule in rules}
        self.grid = {rule: grid_cuts(self.kept[rule]) for rule in rules}
        moving = [self.grid[rule] for rule in rules if rule.threshold == "recomputed"]
        self.states: Ints = np.unique(np.concatenate([[0], *moving]))

    def subsets(self) -> Subsets:
        """The states that need a threshold, and the ranks of these thresholds."""
        survived = np.searchsorted(self.states, self.level, side="right")
        left = self.impostors[self.states]
        allowed = np.stack([allowed_false_matches(fmr, left) for fmr in self.fmrs], axis=1)
        return Subsets(survived.astype(np.uint8), np.where(allowed >= 1, allowed + 1, 0))

    def curve(self, rule: Rules, column: int, thresholds: Floats) -> Curve:
        """One curve, from the (states, fmrs) thresholds."""
        cuts, first = np.unique(self.grid[rule], return_index=True)
        last = np.append(first[1:], GRID)
        coarse = (first + 4) // 5 * 5 < last  # whether a multiple of 5 % leads to this cut
        fixed = rule.threshold == "fixed"
        states = np.zeros_like(cuts) if fixed else np.searchsorted(self.states, cuts)
        chosen = thresholds[states, column]
        genuine, errors = self.genuine[cuts], self._errors(cuts, chosen)
        fnmr, shares = _rates(errors, genuine, chosen), _discarded(self.kept[rule])[cuts]
        steps = self._every_level(rule, float(chosen[0])) if fixed else (shares, fnmr)
        points = (cuts, self.scores[cuts], shares, coarse, fnmr, errors, genuine)
        bounds = self.impostors[cuts], chosen
        return Curve(rule, self.fmrs[column], self.level, *points, *bounds, steps)

    def _errors(self, cuts: Ints, thresholds: Floats) -> Ints:
        """(S,) genuine pairs on or above each cut with a similarity below its threshold."""
        highest = float(np.nanmax(thresholds, initial=-2.0))
        similarity, worse, _ = failing(self.source, self.level, highest)
        both = zip(cuts, thresholds, strict=True)
        fails = (np.count_nonzero((worse >= cut) & (similarity < bound)) for cut, bound in both)
        return np.fromiter(fails, np.int64, len(cuts))

    def _every_level(self, rule: Rules, threshold: float) -> tuple[Values, Values]:
        """Shares and FNMR of every level that keeps a genuine pair, at one threshold."""
        if np.isnan(threshold):
            return np.zeros(1), np.full(1, np.nan)
        worse = failing(self.source, self.level, threshold)[1]
        errors = _kept(np.bincount(worse, minlength=len(self.scores)))
        some = self.genuine > 0
        return _discarded(self.kept[rule])[some], errors[some] / self.genuine[some]


def failing(source: PairSource, level: Rows, threshold: float) -> tuple[Floats, Rows, Rows]:
    """Genuine pairs below a threshold: similarities, levels of the worse images, identities."""
    pairs = source.genuine
    found = np.flatnonzero(pairs.similarity < np.float32(threshold))
    first, second = pairs.first[found], pairs.second[found]
    worse = np.minimum(level[first], level[second])
    return pairs.similarity[found], worse, source.identities[first]


def grid_cuts(kept: Ints) -> Ints:
    """(96,) for phi = 0, .01, ..., .95, the highest cut that discards no more than phi.

    At most floor(phi n) are discarded. A level that is only partly among them is kept whole.

    Args:
        kept: (levels + 1,) how many of n a cut at each level keeps.
    """
    below = kept[0] - kept[:-1]
    cuts: Ints = np.searchsorted(below * 100, np.arange(GRID) * kept[0], side="right") - 1
    cuts[below[cuts] == 0] = 0  # a level without any of what is counted is kept
    return cuts


def _kept(by_level: Ints) -> Ints:
    """(levels + 1,) how many are on each level and above."""
    return np.append(np.cumsum(by_level[::-1])[::-1], 0).astype(np.int64)


def _discarded(kept: Ints) -> Values:
    """(levels + 1,) the share that a cut at each level discards."""
    return np.asarray((kept[0] - kept) / kept[0])


def _rates(errors: Ints, genuine: Ints, thresholds: Floats) -> Values:
    """FNMR of each point; a point without a genuine pair takes the value before it."""
    known = (genuine > 0) & ~np.isnan(thresholds)
    fnmr = np.where(known, errors / np.maximum(genuine, 1), np.nan)
    for point in range(1, len(fnmr)):
        if genuine[point] == 0 or np.isnan(fnmr[point - 1]):
            fnmr[point] = fnmr[point - 1]  # NaN too: all points after a refused one are refused
    return fnmr
