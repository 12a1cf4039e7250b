"""Is a list what train.py expects: two columns, labels of 0..100 that vary, images that exist."""

from __future__ import annotations

import shlex

import numpy as np

from common.cli import note
from dataset.lists import LABELPATH, ImageList
from dataset.path_lists import refuse_missing
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import sha256_of
from training.data import TrainingList, find_identities, label_remedy

_FEW_POINTS = 5  # a spread below this is noted
_MOST = 0.9  # so many labels within one point are noted
_MOSTLY = 0.75  # so many numbers that follow the identities are a list of them


def check_labels(data: TrainingList, id_key_index: int) -> None:
    """Refuses a list whose second column is not labels; notes labels that look odd.

    Raises:
        UserError: more than two columns, identities, a label outside 0..100, no label above 1,
            constant labels, or no image that exists; the message says what to do.
    """
    table, labels = data.table, data.table.values
    remedy = label_remedy(table.file)
    _check_columns(table, remedy)
    if _are_identities(table, id_key_index):
        raise UserError(f"{table.file}: holds identities, not labels; {remedy}")
    bad = np.flatnonzero(~((labels >= 0) & (labels <= 100)))
    if len(bad):
        label = f"label {labels[bad[0]]:g}"
        raise UserError(f"{table.file}:{bad[0] + 1}: {label} is outside 0..100; {remedy}")
    low, high = float(labels.min()), float(labels.max())
    if low == high:
        alike = f"every label is {low:g}, so there is nothing to learn"
        raise UserError(f"{table.file}: {alike}; {remedy}")
    if high <= 1:
        command = f"awk -F '\\t' '{{print $1 \"\\t\" 100 * $2}}' {shlex.quote(str(table.file))}"
        raise UserError(
            f"{table.file}: its labels span {low:g}..{high:g}, expected 0..100; multiply them by "
            f"100: {command} > labels_100.txt, then use --img-list labels_100.txt"
        )
    refuse_missing(table.file, table.paths(), "--img-list", table.file)
    _note_odd_labels(table, low, high)


def _check_columns(table: ImageList, remedy: str) -> None:
    with open(table.file, "rb") as file:
        for row, line in enumerate(file, 1):
            columns = 1 + line.count(b"\t")
            if columns > 2:
                seems = "it seems to be a w_distances.txt (W1 distances); " * (columns == 5)
                raise UserError(
                    f"{table.file}:{row}: has {columns} columns, expected two, `<path> TAB "
                    f"<label>`; {seems}{remedy}"
                )


def _are_identities(table: ImageList, id_key_index: int) -> bool:
    """Whether the labels number the identities, a few images of another number aside."""
    beside = table.file.with_name(LABELPATH)
    if table.file.name == LABELPATH or (
        beside.exists() and sha256_of(beside) == table.sha256  # a copy
    ):
        return True
    if np.any(table.values != np.round(table.values)):
        return False
    try:
        identities = find_identities(table, id_key_index)[0]
    except UserError:  # the paths are too short to hold identities
        return False
    people, who = np.unique(identities, return_inverse=True)
    if not 1 < len(people) < len(table):
        return False
    pairs, counts = np.unique(np.stack([who, table.values], 1), axis=0, return_counts=True)
    pairs = pairs[np.argsort(counts, kind="stable")]  # of a person, the most frequent comes last
    usual = np.empty(len(people))
    usual[pairs[:, 0].astype(np.intp)] = pairs[:, 1]
    follow = np.count_nonzero(usual[who] == table.values) - len(people)  # one of each does always
    share = min(follow / (len(table) - len(people)), len(np.unique(usual)) / len(people))
    numbers = np.unique(table.values)
    return share == 1 or (share >= _MOSTLY and bool(np.ptp(numbers) < len(numbers)))


def _note_odd_labels(table: ImageList, low: float, high: float) -> None:
    ordered = np.sort(table.values)
    count = int(np.ceil(_MOST * len(ordered)))
    widths = ordered[count - 1 :] - ordered[: len(ordered) - count + 1]
    narrow = int(widths.argmin())
    if high - low < _FEW_POINTS or high <= 10:
        span = f"its labels span only {low:g}..{high:g} of 0..100"
        note(f"note: {table.file}: {span}; so will the scores")
    elif widths[narrow] <= 1:
        first, last = ordered[narrow], ordered[narrow + count - 1]
        most = f"are {first:g}" if first == last else f"lie between {first:g} and {last:g}"
        most = f"{_MOST:.0%} of its labels {most}"
        note(f"note: {table.file}: {most}; --balanced trains on the others as often")
