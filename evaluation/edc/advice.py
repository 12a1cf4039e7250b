"""From a curve to a decision: what to discard, at which score, and what error remains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.curves import Curve, Rules
from evaluation.edc.pairs import Ints, Values
from evaluation.edc.study import EdcResult
from sdd_fiqa.files import write_json

CONFIDENCE = 0.975
MIN_EXPECTED_ERRORS = 3.0  # minimum expected errors before observing zero counts as evidence


@dataclass(frozen=True)
class Advice:
    """Score thresholds and their effect, one entry a share: keep images of score >= threshold.

    Attributes:
        shares: the share of images (or pairs) discarded, rising.
        thresholds: the lowest score kept.
        fnmr: what remains.
        errors: the genuine pairs that still fail.
        enough: the position from which discarding more does not help; None if that is unknown.
        unknown: why it is unknown, as a sentence; empty if it is known.
        sign: -1 if the user's scores were negated (--lower-is-better), otherwise 1.
    """

    shares: Values
    thresholds: Values
    fnmr: Values
    errors: Ints
    enough: int | None
    unknown: str
    sign: int = 1

    def as_json(self) -> dict[str, Any]:
        """Shares, thresholds on the user's scale, FNMR, and the share that is enough."""
        return {
            "shares": self.shares.tolist(),
            "thresholds": (self.sign * self.thresholds).tolist(),
            "fnmr": self.fnmr.tolist(),
            "enough": None if self.enough is None else float(self.shares[self.enough]),
            **({"lower_is_better": True} if self.sign < 0 else {}),
        }


def advise(curve: Curve, replicates: Values | None = None, sign: int = 1) -> Advice:
    """The thresholds of one curve, up to its first refused point.

    Discarding stops helping at the first point that no later point improves significantly. With a
    bootstrap, a later point is better if its FNMR is lower in 97.5 % of the replicates. Without
    one, it must be more than two binomial standard errors lower; this takes pairs for independent,
    so the point is found late. A later point counts only if at least 3 of its genuine pairs would
    fail at the present rate. With fewer, an FNMR of 0 proves nothing (rule of three: no error in n
    trials is compatible with a rate of 3/n). The point is unknown if fewer than 30 errors remain
    there, which are too few to show an improvement, and if it is the last one.

    `replicates`, (B, S), are from bootstrap.resampled; `sign`: see Advice.

    Raises:
        ValueError: every point of the curve is refused.
    """
    count = int(np.count_nonzero(~np.isnan(curve.fnmr)))
    if count == 0:
        raise ValueError(f"FMR {curve.fmr:g} cannot be shown: no advice")
    fnmr, genuine = curve.fnmr[:count], np.maximum(curve.genuine[:count], 1)
    for point in range(count):
        rate, later = fnmr[point], slice(point + 1, count)
        if replicates is None:
            error = np.sqrt(rate * (1 - rate) / genuine[later])
            lower = rate - fnmr[later] > 2 * error
        else:
            lower = np.mean(replicates[:, later] < replicates[:, point, None], axis=0) >= CONFIDENCE
        better = lower & (fnmr[later] < rate) & (genuine[later] * rate >= MIN_EXPECTED_ERRORS)
        if not better.any():
            break
    unknown = ""
    if curve.errors[point] < FEW_ERRORS:
        unknown = (
            f"It is unknown where discarding more stops helping: errors left at "
            f"{curve.shares[point]:.1%}: {curve.errors[point]}."
        )
    elif point == count - 1 > 0:
        unknown = f"Discarding more helps up to the last share, {curve.shares[point]:.1%}."
    points = curve.shares[:count], curve.scores[:count], fnmr, curve.errors[:count]
    return Advice(*points, None if unknown else point, unknown, sign)


def advise_scorers(
    results: Sequence[EdcResult], scorers: Sequence[str], fmr: float, rules: Rules, sign: int
) -> dict[str, tuple[EdcResult, Advice]]:
    """By scorer, the advice on the first recogniser at one FMR under one pair of rules.

    `sign`: of these scorers, see Advice.
    """
    wanted = results[0].recogniser, fmr, rules
    return {
        result.scorer: (result, advise(result.curve, result.replicates, sign))
        for result in results
        if (result.recogniser, result.curve.fmr, result.curve.rules) == wanted
        and result.scorer in scorers
        and not np.isnan(result.curve.fnmr[0])
    }


def write_calibrations(
    folder: Path, advice: dict[str, tuple[EdcResult, Advice]], scorers: Sequence[str]
) -> None:
    """calibration.json for the first of these scorers, calibration_<name>.json for the others.

    Each holds shares of images discarded, score thresholds and the FNMR that remains. A file of an
    earlier run is removed where this run has no advice.
    """
    (folder / "calibration.json").unlink(missing_ok=True)
    for scorer in scorers:
        name = "" if scorer == scorers[0] else "_" + scorer.replace("/", "_")
        path = folder / f"calibration{name}.json"
        if scorer not in advice:
            path.unlink(missing_ok=True)
            continue
        result, own = advice[scorer]
        about = {
            "fmr": result.curve.fmr,
            "recogniser": result.recogniser,
            "scorer": scorer,
            "threshold_at": result.curve.rules.threshold,
            "discard": result.curve.rules.discard,
        }
        write_json(path, own.as_json() | about)
