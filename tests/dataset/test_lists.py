"""List files: against a plain parser, and the rules of joining."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset import lists
from dataset.columns import write_columns
from dataset.lists import join, last_parts, read_labelpath, read_table
from sdd_fiqa.errors import UserError

# Any text that a line may hold before its TAB.
NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\0"),
    min_size=1,
    max_size=30,
).filter(lambda name: not name.startswith("\ufeff"))
NUMBERS = st.one_of(
    st.integers(-(2**31) + 1, 2**31 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
RECORDS = st.lists(st.tuples(NAMES, NUMBERS, st.sampled_from(["", "\tmore", "\t1\t2"])), min_size=1)


def write(folder: Path, content: bytes | str, name: str = "list.txt") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def plain(content: str) -> list[list[str]]:
    """The reference: split, and no more."""
    lines = content.split("\n")
    return [line.removesuffix("\r").split("\t") for line in (lines if lines[-1] else lines[:-1])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


@given(
    records=RECORDS,
    newline=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    mark=st.booleans(),
    block=st.sampled_from([1, 3, 16, 1 << 24]),
)
def test_table_is_what_a_plain_parser_reads(
    folder: Path, records: Any, newline: Any, last: Any, mark: Any, block: Any
) -> None:
    content = newline.join("\t".join(record[:2]) + record[2] for record in records)
    content += newline if last else ""
    file = write(folder, ("\ufeff" if mark else "") + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "_BLOCK", block)
        table = read_table(file, "label")
        expected = plain(content)
        assert list(table.paths()) == [line[0] for line in expected]
        assert table.values.tolist() == [float(line[1]) for line in expected]
    rows = list(range(len(table)))[::-2]
    assert list(table.paths_at(rows)) == [expected[row][0] for row in rows]
    assert [table.path(row) for row in rows] == [expected[row][0] for row in rows]
    kept = table.subset(np.arange(len(table)) % 2 == 1)
    assert list(kept.paths()) == [line[0] for line in expected[1::2]]
    assert kept.values.tolist() == [float(line[1]) for line in expected[1::2]]
    assert table.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(read_table(file).values) == 0


@pytest.mark.parametrize(
    ("content", "value", "message"),
    [
        ("", None, "list.txt: is empty"),
        ("\ufeff", None, "list.txt: is empty"),
        ("\n\n", None, "list.txt: is empty"),
        ("a\n\n\n\nb\n", None, "list.txt:2: has no path"),
        ("a\n\nb\n", None, "list.txt:2: has no path"),
        ("a\r\n\r\nb\r\n", None, "list.txt:2: has no path"),
        ("a\t1\n\t2\n", "label", "list.txt:2: has no path; expected `<path> TAB <label>`"),
        ("a\t1\nb\n", "label", "list.txt:2: expected `<path> TAB <label>`"),
        ("a\t1\nb\t1_000\n", "label", "list.txt:2: expected `<path> TAB <label>`"),
        ("a_b\t1\nb\t1_0x\n", "label", "list.txt:2: expected `<path> TAB <label>`"),
        ("a\t1\nb 2\n", "label", "list.txt:2: expected"),
        ("a\t1\nb\t\n", "label", "list.txt:2: expected"),
        ("a\t1\nb\tx\nc\ty\n", "label", "list.txt:2: expected"),
        ("a\t1\nb\t" + "1" * 41 + "\n", "label", "list.txt:2: expected"),
        ("a\nb\0c\n", None, "list.txt:2: holds a zero byte"),
        (b"a\nb\n\xff\xfe\n", None, "list.txt:3: is not UTF-8 text"),
        ("Zo\u00eb\n".encode("latin-1"), None, "list.txt:1: is not UTF-8 text"),
        ("a\n".encode("utf-16"), None, "list.txt:1: is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 24])
def test_bad_lines_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    value: Any,
    message: Any,
    block: Any,
) -> None:
    monkeypatch.setattr(lists, "_BLOCK", block)
    with pytest.raises(UserError) as caught:
        read_table(write(tmp_path, content), value)
    assert message in str(caught.value)


@pytest.mark.parametrize("block", [4, 1 << 24])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n", "\n" * 9])
def test_blank_lines_at_the_end_are_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, block: int
) -> None:
    monkeypatch.setattr(lists, "_BLOCK", block)
    table = read_table(write(tmp_path, f"a b\t1\nc\t2{end}"), "label")
    assert list(table.paths()) == ["a b", "c"] and table.values.tolist() == [1, 2]


def test_missing_lists_say_what_makes_them(tmp_path: Path) -> None:
    for name, maker in [
        ("DATA.labelpath", "gen_datalist.py"),
        ("quality_pseudo_labels.txt", "gen_pseudo_labels.py"),
        ("mine.txt", "check its name"),
    ]:
        with pytest.raises(UserError, match=f"{name}: does not exist; .*{maker}"):
            read_table(tmp_path / name)
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_table(tmp_path)


@pytest.mark.parametrize("index", ["1.5", "nan", "inf", "-inf", "2147483648", "1e300"])
def test_identities_are_32_bit_integers(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, index: Any
) -> None:
    file = write(tmp_path, f"a\t0\nb\t-5\nc\t{index}\n")
    with pytest.raises(UserError, match=r"list\.txt:3: identity index .* is not a 32-bit integer"):
        read_labelpath(file)
    assert not recwarn.list
    table, identities = read_labelpath(write(tmp_path, "a\t0\nb\t-5\nc\t2147483647\n"))
    assert len(table) == 3
    assert identities.dtype == np.int32
    assert identities.tolist() == [0, -5, 2**31 - 1]


def plain_join(left: list[str], right: list[str]) -> list[int]:
    """The reference, as docs/data.md states it."""
    rows = [right.index(path) if path in right else -1 for path in left]
    if any(row >= 0 for row in rows):
        return rows
    short = [last_parts(path) for path in left]
    others = [last_parts(path) for path in right]
    if len(set(short)) < len(short) or len(set(others)) < len(others):
        return rows
    return [others.index(path) if path in others else -1 for path in short]


PATHS = st.lists(
    st.tuples(
        st.sampled_from(["", "r/", "s/t/"]), st.sampled_from("ab"), st.sampled_from("xyz")
    ).map(lambda parts: f"{parts[0]}{parts[1]}/{parts[2]}.jpg"),
    min_size=1,
    max_size=8,
)


@given(left=PATHS, right=PATHS.map(lambda paths: list(dict.fromkeys(paths))))
def test_join_is_the_plain_one(folder: Path, left: Any, right: Any) -> None:
    one = read_table(write(folder, "\n".join(left), "left"))
    other = read_table(write(folder, "\n".join(right), "right"))
    assert join(one, other).tolist() == plain_join(left, right)


def test_join_by_the_last_two_parts(tmp_path: Path) -> None:
    right = read_table(write(tmp_path, "/data/a/1.jpg\n/data/b/1.jpg\n", "right"))
    left = read_table(write(tmp_path, "faces/b/1.jpg\nfaces/c/1.jpg\n", "left"))
    assert join(left, right).tolist() == [1, -1]
    one_matches = read_table(write(tmp_path, "faces/b/1.jpg\n/data/a/1.jpg\n", "left"))
    assert join(one_matches, right).tolist() == [-1, 0]
    not_unique = read_table(write(tmp_path, "x/b/1.jpg\ny/b/1.jpg\n", "left"))
    assert join(not_unique, right).tolist() == [-1, -1]
    nothing = right.subset(np.zeros(2, bool))
    assert join(left, nothing).tolist() == [-1, -1]
    assert join(nothing, right).tolist() == []


def test_join_refuses_a_path_listed_twice(tmp_path: Path) -> None:
    left = read_table(write(tmp_path, "a/1\na/1\n", "left"))
    right = read_table(write(tmp_path, "a/2\na/1\na/3\na/1\n", "right"))
    with pytest.raises(UserError, match="right:4: a/1 is listed twice"):
        join(left, right)
    assert join(right, left.subset(np.array([0]))).tolist() == [-1, 0, -1, 0]


def test_a_list_that_takes_its_place_is_never_read_for_it(tmp_path: Path) -> None:
    file = write(tmp_path, "a/1.jpg\t0\nb/2.jpg\t1\n")
    table = read_table(file, "index")
    write(tmp_path, "b/2.jpg\t1\na/1.jpg\t0\n", "other.txt").replace(file)
    assert list(table.paths()) == ["a/1.jpg", "b/2.jpg"]
    assert table.path(1) == "b/2.jpg" and list(table.paths_at([1, 0])) == ["b/2.jpg", "a/1.jpg"]
    assert table.subset(np.array([1])).path(0) == "b/2.jpg"
    write_columns(tmp_path / "out", table, np.array([0, 1]), [(table.values, 1)])
    assert (tmp_path / "out").read_text() == "a/1.jpg\t0.0\nb/2.jpg\t1.0\n"


@given(
    values=st.lists(st.floats(-999999999, 999999999) | st.floats(-2, 2), min_size=1, max_size=8),
    decimals=st.integers(1, 9),
)
def test_columns_are_numbers_in_fixed_point(
    folder: Path, values: list[float], decimals: int
) -> None:
    table = read_table(write(folder, "".join(f"{row}.jpg\n" for row in range(len(values))), "a"))
    write_columns(folder / "b", table, np.arange(len(values)), [(np.array(values), decimals)])
    for line, value in zip((folder / "b").read_text().splitlines(), values, strict=True):
        number = line.split("\t")[1]
        assert re.fullmatch(rf"-?(0|[1-9][0-9]*)\.[0-9]{{{decimals}}}", number)
        assert abs(float(number) - value) <= 0.500001 * 10**-decimals + 1e-15 * abs(value)
