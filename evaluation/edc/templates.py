"""Set-to-set verification: several images of a person are compared as one template.

The vector of a template is the mean of its unit embeddings f_i, brought to unit length:

    plain:     sum_i f_i            weighted:     sum_i w_i f_i,   w_i the score of image i

(SDD-FIQA's second experiment.) All pairs of templates are compared. TAR is the share of genuine
pairs that match at the threshold of the target FMR (thresholds.py). A useful score raises it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.embeddings import EmbeddingsFile
from dataset.lists import ImageList
from evaluation.edc.areas import FEW_ERRORS
from evaluation.edc.bootstrap import interval
from evaluation.edc.curves import Rules
from evaluation.edc.gather import Notes
from evaluation.edc.pairs import (
    AnyFloats,
    Floats,
    Mask,
    PairSource,
    Rows,
    Values,
    all_pairs,
    unit_rows,
)
from evaluation.edc.results import between, counted, short, table
from evaluation.edc.study import study
from evaluation.edc.verification_lists import read_fields, rows_of_names
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of

PLAIN = "plain mean"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Templates:
    """T templates of M images (an image may be in several templates).

    Attributes:
        rows: (M,) rows of the image list.
        of_row: (M,) 0 to T - 1, the template of each of these.
        person: (T,) 0 to P - 1, who is on a template.
    """

    rows: Rows
    of_row: Rows
    person: Rows


@dataclass(frozen=True)
class TemplateResult:
    """One way to average, on one recogniser at one FMR.

    Attributes:
        recogniser: which embeddings.
        mean: PLAIN, or the scorer whose scores are the weights.
        fmr: the target.
        tar: true accept rate.
        ends: its 95 % interval; NaN without a bootstrap.
        gain: TAR minus that of the plain mean.
        gain_ends: its 95 % interval, with the same people drawn for both.
        errors: genuine pairs of templates that do not match.
        genuine: how many genuine pairs there are.
    """

    recogniser: str
    mean: str
    fmr: float
    tar: float
    ends: Interval
    gain: float
    gain_ends: Interval
    errors: int
    genuine: int


def read_templates(path: Path, images: ImageList, usable: Mask, notes: Notes) -> Templates:
    """Reads lines `path template person`, between TABs, commas, semicolons or spaces.

    An image is named as in a verification list. Of `usable`, (N,), the others are left out, with a
    note.

    Raises:
        UserError: another form, a template of two people, an image twice in a template, or fewer
            than two usable templates.
    """
    lines = read_fields(path, "path template person")
    known = rows_of_names(path, {fields[0] for _, fields in lines}, images)
    people: dict[str, str] = {}
    found: dict[str, dict[int, None]] = {}
    missing = unusable = 0
    for number, (name, template, person) in lines:
        if people.setdefault(template, person) != person:
            raise UserError(
                f"{path}:{number}: template {template} is of {people[template]} and of {person}"
            )
        row = known.get(name)
        if row is None:
            missing += 1
        elif not usable[row]:
            unusable += 1
        elif row in found.setdefault(template, {}):
            raise UserError(f"{path}:{number}: {name} is in template {template} twice")
        else:
            found[template][row] = None
    notes.leave_out(missing, "image", f"of {path} not in {images.file}")
    notes.leave_out(unusable, "image", f"of {path} without a score or embedding")
    lost = len(people) - len(found)
    notes.leave_out(lost, "template", f"of {path} without a usable image")
    if len(found) < 2:
        raise UserError(
            f"{path}: has {count_of(len(found), 'template')} with a usable image; 2 are needed"
        )
    number_of = np.unique([people[name] for name in found], return_inverse=True)[1]
    rows = np.array([row for own in found.values() for row in own], np.int32)
    of_row = np.repeat(np.arange(len(found), dtype=np.int32), list(map(len, found.values())))
    own = images.values[rows]
    first = own[np.unique(of_row, return_index=True)[1]]
    if mixed := len(np.unique(of_row[own != first[of_row]])):
        notes.append(
            f"several identities of {images.file} in {count_of(mixed, 'template')} of {path}"
        )
    return Templates(rows, of_row, number_of.astype(np.int32))


def template_vectors(rows: Floats, templates: Templates, weights: Values) -> Floats:
    """(T, D) weighted sums of the (M, D) unit rows; weights (M,), 0 or more.

    A template whose weights are all 0 gets the plain mean.
    """
    totals = np.bincount(templates.of_row, weights, minlength=len(templates.person))
    weights = np.where(totals[templates.of_row] > 0, weights, 1.0)
    sums = np.zeros((len(templates.person), rows.shape[1]), np.float64)
    np.add.at(sums, templates.of_row, rows * weights[:, None])
    return sums.astype(np.float32)


def template_pairs(
    features: EmbeddingsFile | AnyFloats,
    templates: Templates,
    scores: Mapping[str, Values],
    notes: Notes,
) -> dict[str, PairSource]:
    """All pairs of templates: by PLAIN, and by each scorer whose scores are the weights.

    Scores below 0 cannot be weights; such a scorer is shifted so that its lowest score is 0. One
    that lacks a score of these images is left out. Both get a note.

    Raises:
        ValueError: as pairs.all_pairs.
    """
    rows = unit_rows(features[templates.rows.astype(np.int64)])
    weights = {PLAIN: np.ones(len(rows))}
    for name, values in scores.items():
        own = values[templates.rows]
        if not np.isfinite(own).all():
            notes.append(f"{name} weights no templates: some of their images have no score")
            continue
        if own.min() < 0:
            notes.append(f"{name} has scores below 0: as weights they are shifted to start at 0")
        weights[name] = own - min(0.0, float(own.min()))
    return {
        name: all_pairs(template_vectors(rows, templates, own), templates.person)
        for name, own in weights.items()
    }


def compare_templates(
    recogniser: str,
    pairs: Mapping[str, PairSource],
    fmrs: Sequence[float],
    replicates: int,
    seed: int,
) -> list[TemplateResult]:
    """TAR of each mean at each FMR, FMR by FMR; the plain mean comes first.

    `pairs` are from template_pairs; without `replicates` there is no bootstrap over people.

    Raises:
        ValueError: no genuine or no impostor pair of templates.
    """
    rules = Rules("fixed", "images")
    none = np.full(1, np.nan)
    found: dict[tuple[str, float], tuple[float, Values, int, int]] = {}
    for name, source in pairs.items():
        same = {name: np.zeros(len(source.identities))}  # nothing is discarded
        for one in study(recogniser, source, same, fmrs, [rules], replicates=replicates, seed=seed):
            drawn = none if one.replicates is None else 1 - one.replicates[:, 0]
            tar = 1 - float(one.curve.fnmr[0])
            counts = int(one.curve.errors[0]), int(one.curve.genuine[0])
            found[name, one.curve.fmr] = (tar, drawn, *counts)
    results = []
    for fmr in fmrs:
        plain, plain_drawn, *_ = found[PLAIN, fmr]
        for name in pairs:
            tar, drawn, errors, genuine = found[name, fmr]
            gain = tar - plain, interval(drawn - plain_drawn)
            result = recogniser, name, fmr, tar, interval(drawn), *gain, errors, genuine
            results.append(TemplateResult(*result))
    return results


def template_section(templates: Templates, results: Sequence[TemplateResult]) -> str:
    """The results of one recogniser in Markdown; gains are in percentage points."""
    people = int(templates.person.max()) + 1
    about = (
        f"{count_of(len(templates.person), 'template')} of {count_of(people, 'person')},"
        f" {count_of(len(templates.rows), 'image')},"
        f" {count_of(results[0].genuine, 'genuine pair')} of templates;"
        f" * fewer than {FEW_ERRORS} errors."
    )
    rows = [["FMR", "weights", "errors", "TAR", "gain in points", "significant"]]
    for one in results:
        gain = significant = ""
        if one.mean != PLAIN:
            gain = f"{100 * one.gain:+.2f}" + between(one.gain_ends, _points)
            if not np.isnan(one.gain_ends[0]):
                significant = "yes" if one.gain_ends[0] > 0 or one.gain_ends[1] < 0 else "no"
        tar = f"{one.tar:.3%}" + between(one.ends, _points)
        fmr, errors = f"{one.fmr:g}", counted(one.errors)
        rows.append([fmr, short(one.mean), errors, tar, gain, significant])
    return f"## Templates: {results[0].recogniser}\n\n{about}\n\n{table(rows)}"


def _points(share: float) -> str:
    return f"{100 * share:.2f}"
