"""Error versus discard: the curves, and every area under them that the literature prints.

The quality of a pair is the lower of its two images' scores. g(phi) is the FNMR at a target FMR on
what remains after the fraction phi of lowest quality is discarded. Published work differs on three
axes, so a number means nothing without them:

- the threshold is `recomputed` on what remains, so that the FMR stays at the target (SDD-FIQA;
  SER-FIQ's authors; MagFace; CR-FIQA's code), or `fixed` at phi = 0 (ISO/IEC 29794-1; Schlett et
  al., "Considerations on the Evaluation of Biometric Quality Assessment Algorithms", 2023);
- `images` are discarded, and with them their pairs (SDD-FIQA, SER-FIQ's authors), or `pairs` (the
  rest). With the fixed threshold phi counts genuine pairs (Schlett et al.), with the recomputed one
  genuine and impostor pairs together (CR-FIQA's code);
- the area: see areas.py.

fmr and fnmr everywhere: a pair matches if s >= t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.edc.pairs import Ints, PairSource, Rows, worse_level_counts
from evaluation.edc.thresholds import Subsets, allowed_false_matches, exact_thresholds

ThresholdRule = Literal["recomputed", "fixed"]
DiscardRule = Literal["images", "pairs"]
GRID = 96  # phi = 0, .01, ..., .95

Values = npt.NDArray[np.float64]


class Rules(NamedTuple):
    """How a curve is drawn: two of the three axes."""

    threshold: ThresholdRule
    discard: DiscardRule


@dataclass(frozen=True)
class Levels:
    """The distinct scores of n images: images on one level are discarded together.

    Attributes:
        of_image: (n,) int32, 0 for the lowest score.
        score: (levels,) float64, rising.
    """

    of_image: Rows
    score: Values

    def __len__(self) -> int:
        """How many different scores there are."""
        return len(self.score)


@dataclass(frozen=True)
class Curve:
    """g(phi) at the points that the scores can reach: S points, phi rising from 0.

    Attributes:
        rules: threshold and discard rule.
        fmr: the target.
        cuts: (S,) int, the lowest level kept.
        shares: (S,) the share really discarded.
        coarse: (S,) True on the points of phi = 0, .05, ..., .95.
        fnmr: (S,) NaN from the first point on at which the target FMR cannot be shown.
        errors: (S,) genuine pairs below the threshold.
        genuine: (S,) genuine pairs that remain.
        impostors: (S,) impostor pairs that remain, of those looked at.
        thresholds: (S,) float32, the decision threshold of each point; NaN as fnmr.
        steps: shares and FNMR of the step function: every level where the threshold is fixed,
            otherwise the points above.
        levels: the score levels it was drawn from.
    """

    rules: Rules
    fmr: float
    cuts: Ints
    shares: Values
    coarse: npt.NDArray[np.bool_]
    fnmr: Values
    errors: Ints
    genuine: Ints
    impostors: Ints
    thresholds: npt.NDArray[np.float32]
    steps: tuple[Values, Values]
    levels: Levels

    @property
    def reach(self) -> float:
        """The largest phi that can be had; 1 where nothing stands in the way, NaN for none."""
        refused = np.flatnonzero(np.isnan(self.fnmr))
        if len(refused) == 0:
            return 1.0
        return float(self.shares[refused[0] - 1]) if refused[0] else np.nan


def levels_of(scores: npt.NDArray[np.floating]) -> Levels:
    """The levels of (n,) scores.

    Raises:
        ValueError: a score that is not finite.
    """
    if not np.all(np.isfinite(scores)):
        raise ValueError("a score is not a finite number")
    score, of_image = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    return Levels(of_image.astype(np.int32), score)


def evaluate(
    source: PairSource,
    scores: Mapping[str, npt.NDArray[np.floating]],
    fmrs: Sequence[float],
    rules: Sequence[Rules],
) -> dict[tuple[str, float, Rules], Curve]:
    """Every curve of several scorers on one set of pairs, in two passes over them.

    Args:
        source: the pairs (pairs.py).
        scores: by the scorer's name, (n,) one score an image, higher is better, any scale.
        fmrs: target FMRs, each in (0, 1).
        rules: which curves.

    Raises:
        ValueError: a target outside (0, 1), no genuine pair, no impostor pair, a score not finite,
            or scores of another length.
    """
    for fmr in fmrs:
        if not 0 < fmr < 1:
            raise ValueError(f"FMR {fmr:g}: must lie between 0 and 1")
    if len(source.genuine.similarity) == 0:
        raise ValueError("there is no genuine pair: no identity has two images")
    if source.impostors == 0:
        raise ValueError("there is no impostor pair: at least two identities are needed")
    images = len(source.identities)
    drawers = []
    for name, values in scores.items():
        if values.shape != (images,):
            raise ValueError(f"{name}: {values.shape} scores for {images} images")
        drawers.append(_Drawer(source, levels_of(values), fmrs, rules))
    found = exact_thresholds(source, [drawer.subsets() for drawer in drawers])
    curves: dict[tuple[str, float, Rules], Curve] = {}
    for name, drawer, thresholds in zip(scores, drawers, found, strict=True):
        for rule in rules:
            for column, fmr in enumerate(fmrs):
                curves[name, fmr, rule] = drawer.curve(rule, column, thresholds)
    return curves


class _Drawer:
    """One scorer's levels, counts and cuts: what its curves are drawn from."""

    def __init__(
        self, source: PairSource, levels: Levels, fmrs: Sequence[float], rules: Sequence[Rules]
    ) -> None:
        self.source, self.levels, self.fmrs = source, levels, fmrs
        of_image, count = levels.of_image, len(levels)
        images = np.bincount(of_image, minlength=count).astype(np.int64)
        self.genuine_below = _below(worse_level_counts(source.genuine, of_image, count))
        self.impostors_below = _below(source.impostors_by_level(of_image, count))
        below = {
            Rules("recomputed", "images"): _below(images),
            Rules("fixed", "images"): _below(images),
            Rules("fixed", "pairs"): self.genuine_below,
            Rules("recomputed", "pairs"): _below(source.pairs_by_level(of_image, count)),
        }
        self.below = {rule: below[rule] for rule in rules}
        self.grid = {rule: grid_cuts(self.below[rule]) for rule in rules}
        moving = [self.grid[rule] for rule in rules if rule.threshold == "recomputed"]
        self.states: Ints = np.unique(np.concatenate([[0], *moving]))

    def subsets(self) -> Subsets:
        """The states whose thresholds are needed, and the ranks of those thresholds."""
        survived = np.searchsorted(self.states, self.levels.of_image, side="right")
        left = self.impostors_below[-1] - self.impostors_below[self.states]
        allowed = np.stack([allowed_false_matches(fmr, left) for fmr in self.fmrs], axis=1)
        return Subsets(survived.astype(np.uint8), np.where(allowed >= 1, allowed + 1, 0))

    def curve(self, rule: Rules, column: int, thresholds: npt.NDArray[np.float32]) -> Curve:
        """One curve, from the (states, fmrs) thresholds."""
        cuts, first = np.unique(self.grid[rule], return_index=True)
        last = np.append(first[1:], GRID)
        coarse = (first + 4) // 5 * 5 < last  # some multiple of 5 per cent leads to this cut
        below = self.below[rule]
        if rule.threshold == "fixed":
            chosen = np.repeat(thresholds[0, column], len(cuts))
        else:
            chosen = thresholds[np.searchsorted(self.states, cuts), column]
        genuine = self.genuine_below[-1] - self.genuine_below[cuts]
        errors = self._errors(cuts, chosen)
        fnmr = _rates(errors, genuine, chosen)
        shares = below[cuts] / below[-1]
        steps = (shares, fnmr)
        if rule.threshold == "fixed":
            steps = self._every_level(rule, float(chosen[0]))
        return Curve(
            rule,
            self.fmrs[column],
            cuts,
            shares,
            coarse,
            fnmr,
            errors,
            genuine,
            self.impostors_below[-1] - self.impostors_below[cuts],
            chosen,
            steps,
            self.levels,
        )

    def _errors(self, cuts: Ints, thresholds: npt.NDArray[np.float32]) -> Ints:
        """(S,) genuine pairs on or above each cut whose similarity is below its threshold."""
        highest = float(np.nanmax(thresholds, initial=-2.0))
        similarity, worse, _ = failing(self.source, self.levels, highest)
        return np.array(
            [
                np.count_nonzero((worse >= cut) & (similarity < threshold))
                for cut, threshold in zip(cuts, thresholds, strict=True)
            ],
            np.int64,
        )

    def _every_level(self, rule: Rules, threshold: float) -> tuple[Values, Values]:
        """Shares and FNMR of every level that keeps a genuine pair, at one threshold."""
        if np.isnan(threshold):
            return np.zeros(1), np.full(1, np.nan)
        worse = failing(self.source, self.levels, threshold)[1]
        errors_below = _below(np.bincount(worse, minlength=len(self.levels)))
        genuine = self.genuine_below[-1] - self.genuine_below[:-1]
        kept = genuine > 0
        below = self.below[rule]
        errors = (errors_below[-1] - errors_below[:-1])[kept]
        return below[:-1][kept] / below[-1], errors / genuine[kept]


def failing(
    source: PairSource, levels: Levels, threshold: float
) -> tuple[npt.NDArray[np.float32], Rows, Rows]:
    """Genuine pairs below a threshold: similarities, levels of the worse images, identities."""
    pairs = source.genuine
    found = np.flatnonzero(pairs.similarity < np.float32(threshold))
    first, second = pairs.first[found], pairs.second[found]
    worse = np.minimum(levels.of_image[first], levels.of_image[second])
    return pairs.similarity[found], worse, source.identities[first]


def grid_cuts(below: Ints) -> Ints:
    """(96,) for phi = 0, .01, ..., .95, the highest cut that discards no more than phi.

    Args:
        below: (levels + 1,) how many lie below each level; the last entry is their number.

    m = floor(phi n) in whole numbers; where that would part images of one score, the whole level
    stays.
    """
    targets = np.arange(GRID) * below[-1]
    cuts: Ints = np.searchsorted(below[:-1] * 100, targets, side="right") - 1
    cuts[below[cuts] == 0] = 0  # a level that holds none of what is counted is not discarded for it
    return cuts


def _below(by_level: Ints) -> Ints:
    """(levels + 1,) how many lie below each level."""
    return np.concatenate([[0], np.cumsum(by_level)]).astype(np.int64)


def _rates(errors: Ints, genuine: Ints, thresholds: npt.NDArray[np.float32]) -> Values:
    """FNMR of each point; the last value is carried where no genuine pair is left."""
    fnmr = np.where(genuine > 0, errors / np.maximum(genuine, 1), np.nan)
    fnmr[np.isnan(thresholds) & (genuine > 0)] = np.nan
    for point in range(1, len(fnmr)):
        if genuine[point] == 0 or np.isnan(fnmr[point - 1]):
            fnmr[point] = fnmr[point - 1]  # NaN too: what follows a refused point is refused
    return fnmr
