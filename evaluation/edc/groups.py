"""Results by group of people: does one score threshold treat them alike?

One decision threshold and one score threshold hold for all groups; both come from the whole set.
For each group: the FNMR of its genuine pairs at the decision threshold, the share of its images
that the score threshold discards, and the AOC of the group's images evaluated alone (pairs within
the group). A pair of images of two groups belongs to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dataset.lists import ImageList
from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.bootstrap import ratio_interval
from evaluation.edc.gather import Notes
from evaluation.edc.pairs import Mask, PairSource, Values, within
from evaluation.edc.results import between, counted, short, show, table
from evaluation.edc.study import EdcResult, study
from evaluation.edc.verification_lists import read_fields, rows_of_names
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of

DISCARDED = 0.1  # the share of all images that the common score threshold discards


@dataclass(frozen=True)
class GroupResult:
    """One group of people, one scorer, at the thresholds of the whole set.

    Attributes:
        scorer: which scores.
        group: its name.
        images: how many images it has.
        fnmr: the share of its genuine pairs below the decision threshold; NaN without a pair.
        errors: how many these are.
        discarded: the share of its images below the score threshold.
        aoc: of its images alone; NaN if it is refused.
        intervals: by `fnmr`, `discarded` and `aoc`, the middle 95 % of the bootstrap over its
            identities; NaN without one.
    """

    scorer: str
    group: str
    images: int
    fnmr: float
    errors: int
    discarded: float
    aoc: float
    intervals: dict[str, tuple[float, float]]


def read_groups(
    path: Path | None, images: ImageList, chosen: Mask, notes: Notes
) -> dict[str, Mask]:
    """Reads lines `path group`, between TABs, commas, semicolons or spaces.

    An image is named as in a verification list. Images that are left out get a note.

    Returns:
        By group, (n,) which of the images that take part, (N,) `chosen`, belong to it.

    Raises:
        UserError: another form, an image of two groups, or no chosen image named.
    """
    if path is None:
        return {}
    lines = read_fields(path, "path group")
    rows = rows_of_names(path, {fields[0] for _, fields in lines}, images)
    group_of: dict[int, str] = {}
    for number, (name, group) in lines:
        row = rows.get(name)
        if row is not None and group_of.setdefault(row, group) != group:
            raise UserError(f"{path}:{number}: {name} is in {group_of[row]} and in {group}")
    if strangers := sum(fields[0] not in rows for _, fields in lines):
        notes.append(f"{count_of(strangers, 'image')} of {path} not in {images.file}")
    names = np.array([group_of.get(int(row), "") for row in np.flatnonzero(chosen)])
    without = int(np.count_nonzero(names == ""))
    if without == len(names):
        raise UserError(f"{path}: names none of the images that are evaluated; add them")
    notes.leave_out(without, "image", f"without a group in {path}", len(names))
    return {str(group): names == group for group in np.unique(names) if group}


def compare_groups(
    source: PairSource,
    scores: Values,
    whole: EdcResult,
    groups: dict[str, Mask],
    replicates: int,
    seed: int,
) -> list[GroupResult]:
    """Each group's results at the common thresholds, and its own bootstrap over identities.

    `scores` are the (n,) of one scorer, `whole` is its result on the pairs of all n images.
    """
    curve = whole.curve
    threshold = common_threshold(whole)[0]
    decision = curve.thresholds[0]
    results = []
    for name, images in groups.items():
        part, own = within(source, images), scores[images]
        count = int(part.identities.max()) + 1
        identity = part.identities[part.genuine.first]
        fails = part.genuine.similarity < decision
        pairs = np.bincount(identity, minlength=count)
        errors = np.bincount(identity[fails], minlength=count)
        low = np.bincount(part.identities[own < threshold], minlength=count)
        sizes = np.bincount(part.identities, minlength=count)
        aoc, aoc_ends = np.nan, (np.nan, np.nan)
        if pairs.sum() and part.impostors:
            alone = study(
                "", part, {"": own}, [curve.fmr], [curve.rules], "aoc", (), replicates, seed
            )
            aoc, aoc_ends = alone[0].areas["aoc"], alone[0].intervals.get("aoc", aoc_ends)
        intervals = {
            "fnmr": ratio_interval(errors, pairs, replicates, seed),
            "discarded": ratio_interval(low, sizes, replicates, seed),
            "aoc": aoc_ends,
        }
        fnmr = errors.sum() / pairs.sum() if pairs.sum() else np.nan
        counts = len(own), fnmr, int(errors.sum()), low.sum() / len(own)
        results.append(GroupResult(whole.scorer, name, *counts, aoc, intervals))
    return results


def common_threshold(whole: EdcResult) -> tuple[float, float]:
    """The score threshold nearest to DISCARDED of all images, and the share that it discards."""
    curve = whole.curve
    point = int(np.abs(curve.shares - DISCARDED).argmin())
    return float(curve.scores[point]), float(curve.shares[point])


def group_section(whole: EdcResult, results: Sequence[GroupResult], sign: int) -> str:
    """The groups of one scorer in Markdown; `sign`: see Advice."""
    threshold, share = common_threshold(whole)
    curve, side = whole.curve, "below" if sign > 0 else "above"
    about = (
        f"{whole.recogniser}, FMR {curve.fmr:g}. FNMR: at the decision threshold of all images;"
        f" * fewer than {FEW_ERRORS} errors.\nDiscarded: score {side} {sign * threshold!r}, as for"
        f" {share:.1%} of all images. AOC: of the group alone."
    )
    rows = [["group", "images", "FNMR", "errors", "discarded", "AOC"]]
    for one in results:
        ends = one.intervals
        fnmr = "-" if np.isnan(one.fnmr) else f"{one.fnmr:.1%}" + between(ends["fnmr"], _points)
        discarded = f"{one.discarded:.1%}" + between(ends["discarded"], _points)
        aoc = show("aoc", one.aoc) + between(ends["aoc"], partial(show, "aoc"))
        images, errors = f"{one.images:,}", counted(one.errors)
        rows.append([short(one.group), images, fnmr, errors, discarded, aoc])
    return f"## Groups: {whole.scorer}\n\n{about}\n\n{table(rows)}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
