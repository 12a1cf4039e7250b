"""Areas under an error-versus-discard curve, under all the names that the literature uses.

| name | definition | who |
| --- | --- | --- |
| `aoc` | 1 - (1/g(0)) integral_0^.95 g dphi; a useless score gets .05, a perfect 1 | SDD |
| `pauc_<L>` | integral_0^L g / (L g(0)); a useless score gets 1 | DifFIQA, FROQ |
| `pauc_raw_<L>` | 1000 integral_0^L g | papers of 2025 on, L = 0.3 |
| `auc` | trapezoid over phi = 0, .05, ..., .95 | CR-FIQA's code |
| `stepwise_<L>` | sum of e_i (min(d_{i+1}, L) - d_i) | Schlett et al. |
| `best_line_<L>`, `best_<L>` | of a perfect score: see `theoretical_best` | Schlett et al. |

The integrals are trapezoids between the shares actually discarded. The value at the last share
within the limit holds up to the limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.edc.curves import Curve, Rules
from evaluation.edc.pairs import Values

FULL_LIMIT = 0.95
LIMITS = (0.2, 0.3)
FEW_ERRORS = 30  # a result with fewer at phi = 0 is marked
HIGHER_IS_BETTER = frozenset({"aoc"})


def areas(curve: Curve, limits: Sequence[float] = LIMITS) -> dict[str, float]:
    """Every area of one curve; NaN where it covers a refused point (see `refusal`).

    With a fixed threshold, `stepwise` uses every level of the score, otherwise the grid.
    """
    found = {name: float(value) for name, value in grid_areas(curve, curve.fnmr, limits).items()}
    for limit in limits:
        shares, values = curve.steps
        found[f"stepwise_{limit:g}"] = float(_dot(values, step_widths(shares, limit)))
        if curve.rules == Rules("fixed", "pairs"):
            line, best = theoretical_best(float(curve.fnmr[0]), limit)
            found[f"best_line_{limit:g}"], found[f"best_{limit:g}"] = line, best
    return found


def grid_areas(curve: Curve, fnmr: Values, limits: Sequence[float] = LIMITS) -> dict[str, Values]:
    """The areas of other FNMR on a curve's points: fnmr (..., S), each area (...).

    All are sums over the points with fixed weights, so a bootstrap is cheap.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        start = np.where(fnmr[..., 0] > 0, fnmr[..., 0], np.nan)
    found = {"aoc": 1 - _dot(fnmr, quadrature(curve.shares, FULL_LIMIT)) / start}
    for limit in limits:
        part = _dot(fnmr, quadrature(curve.shares, limit))
        found[f"pauc_{limit:g}"] = part / (limit * start)
        found[f"pauc_raw_{limit:g}"] = 1000 * part
    coarse = quadrature(curve.shares[curve.coarse], FULL_LIMIT)
    found["auc"] = _dot(fnmr[..., curve.coarse], coarse)
    for limit in limits:
        found[f"stepwise_{limit:g}"] = _dot(fnmr, step_widths(curve.shares, limit))
    return found


def refusal(curve: Curve) -> str | None:
    """Why an area up to FULL_LIMIT is not computed, in words; None if it is."""
    reach = curve.reach
    if reach == 1:
        return None
    remaining = int(curve.impostors[0 if np.isnan(reach) else -1])
    few, beyond = "too few impostor pairs", f" beyond {100 * reach:.0f} % discarded"
    if np.isnan(reach):
        few, beyond = f"{few} ({remaining:,})", ""
    return f"{few} for FMR {curve.fmr:g}{beyond}; {use_fmr(remaining)}"


def use_fmr(impostors: int) -> str:
    """What to do where an FMR needs more impostor pairs: the smallest FMR of one digit that works.

    >>> use_fmr(28_080), use_fmr(10), use_fmr(3), use_fmr(1)
    ('use 4e-05', 'use 0.1', 'use 0.4', 'use more images')
    """
    if impostors < 2:
        return "use more images"
    digits = len(str(impostors - 1))
    return f"use {-(-(10**digits) // impostors) / 10**digits:g}"


def theoretical_best(start: float, limit: float) -> tuple[float, float]:
    """The area of a perfect score, for a fixed threshold and pairs discarded; e0 = g(0).

    Returns:
        As Schlett et al. draw it, a line that falls by the share discarded,
        e0^2/2 - max(0, e0 - L)^2/2; and by the definition of g, where the denominator shrinks,
        integral_0^a (e0 - phi)/(1 - phi) dphi = a + (1 - e0) ln(1 - a), a = min(e0, L).
    """
    line = start**2 / 2 - max(0.0, start - limit) ** 2 / 2
    end = min(start, limit)
    return line, end + ((1 - start) * float(np.log1p(-end)) if end < 1 else 0.0)


def quadrature(shares: Values, limit: float) -> Values:
    """(S,) weights of the trapezoid rule up to `limit`: the integral is weights @ values."""
    weights = np.zeros(len(shares))
    count = int(np.searchsorted(shares, limit + 1e-12, side="right"))
    inside = shares[:count]
    half = np.diff(inside) / 2
    weights[: count - 1] += half
    weights[1:count] += half
    weights[count - 1] += limit - inside[-1]
    return weights


def step_widths(shares: Values, limit: float) -> Values:
    """(S,) how far each value holds: until the next share or the limit."""
    ends = np.minimum(np.append(shares[1:], limit), limit)
    widths: Values = np.maximum(ends - shares, 0.0)
    return widths


def _dot(values: Values, weights: Values) -> Values:
    """Values @ weights; values with weight 0 may be NaN."""
    used = weights != 0
    return np.asarray(values[..., used] @ weights[used], np.float64)
