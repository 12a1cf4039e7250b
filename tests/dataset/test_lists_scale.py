"""Joining lists in any order, and what a list costs in memory a row."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.lists import join, read_labelpath, read_table

names = st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True)


@settings(max_examples=60)
@given(names, names)
def test_join_equals_a_dictionary(
    tmp_path_factory: "object", left: list[int], right: list[int]
) -> None:
    folder = Path(tmp_path_factory.mktemp("join"))  # type: ignore[attr-defined]
    tables = []
    for name, numbers in (("left", left), ("right", right)):
        (folder / name).write_text("".join(f"p/{number}/a.jpg\n" for number in numbers))
        tables.append(read_table(folder / name))
    rows = {number: row for row, number in enumerate(right)}
    assert join(*tables).tolist() == [rows.get(number, -1) for number in left]


def test_a_row_costs_numbers_not_objects(tmp_path: Path) -> None:
    count = 20_000
    lines = (f"faces/{n // 40:07}/{n % 40:04}.jpg\t{n // 40}\n" for n in range(count))
    (tmp_path / "DATA.labelpath").write_text("".join(lines))
    table, identities = read_labelpath(tmp_path / "DATA.labelpath")
    arrays: list[np.ndarray[Any, Any]] = [table.starts, table.path_sizes, table.values, identities]
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays)
    assert sum(array.nbytes for array in arrays) == 24 * count
