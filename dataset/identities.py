"""Who is on an image, by its path: the part of it that `--id-key-index` names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dataset.lists import Identities, ImageList
from sdd_fiqa.errors import UserError


def identity_in(path: str, index: int) -> str | None:
    """The folder in a path that names the identity; None where the path has no such folder.

    >>> identity_in("faces/ann/01.jpg", -2), identity_in("faces/ann/01.jpg", 0)
    ('ann', 'faces')
    >>> identity_in("faces/ann/01.jpg", 2) is None  # the image's own name
    True
    """
    parts = path.split("/")
    place = index if index < 0 else index - len(parts)
    return parts[place] if -len(parts) <= place < -1 else None


def identities_in(table: ImageList, index: int) -> Identities:
    """(N,) int32 identities by the paths of a list, numbered from 0 in the order they come.

    Raises:
        UserError: a path without that folder; says which index to try.
    """
    numbers: dict[str, int] = {}
    identities = np.empty(len(table), np.int32)
    for row, path in enumerate(table.paths()):
        name = identity_in(path, index)
        if name is None:
            raise UserError(
                f"{table.file}:{row + 1}: {path} has no part {index} to name its identity; "
                f"{other_index(table.paths())}"
            )
        identities[row] = numbers.setdefault(name, len(numbers))
    return identities


def other_index(paths: Iterable[str], how: str = "try") -> str:
    """The --id-key-index to try, by what some of them take of the first and the last path.

    `how` says where the flag is to be given.
    """
    taken: dict[int, set[str | None]] = {-2: set(), -3: set(), -4: set()}
    count, first, last = 0, "", ""
    for last in paths:
        first = first or last
        count += 1
        for index, names in taken.items():
            names.add(identity_in(last, index))
    known = {index: names for index, names in taken.items() if None not in names}
    better = [index for index, names in known.items() if 1 < len(names) < count]
    if not better:
        return "put each person's images into a folder of their own"
    shown = (f"{one} takes {identity_in(first, one)} and {identity_in(last, one)}" for one in known)
    return f"{how} --id-key-index {better[0]} (of {first} and {last}, {', '.join(shown)})"
