"""Sets of pairs: every way they were pickled, and pickles that want more than bytes."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset.containers.listing import container_pairs
from dataset.containers.pair_bin import PairBin
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError

A, B = b"\xff\xd8\xff image a" * 50, b"\xff\xd8\xff image b"
C, D = b"\xff\xd8 image c \x00\xe9", b"d"
IMAGES = [A, B, A, C, C, D]  # pairs (A, B), (A, C), (C, D)
SAME = [True, False, True]

# A pair file as Python 2 wrote it: protocol 2, bytes as (SHORT_)BINSTRING.
PYTHON_2 = (
    b"\x80\x02]q\x00("
    + b"".join(b"U" + bytes([len(image)]) + image for image in (B, C, C, D))
    + b"e]q\x01(\x88\x89e\x86q\x02."
)


def save(folder: Path, value: Any, protocol: int = 4) -> Path:
    path = folder / "set.bin"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "form",
    [
        lambda: (IMAGES, SAME),
        lambda: [IMAGES, [1, 0, 1]],
        lambda: ([np.frombuffer(image, np.uint8) for image in IMAGES], np.array(SAME)),
        lambda: ([np.frombuffer(image, np.uint8).copy() for image in IMAGES], [*np.array(SAME)]),
        lambda: (np.array(IMAGES, object), np.array(SAME, np.int64)),
        lambda: ([bytearray(image) for image in IMAGES], tuple(SAME)),
        lambda: (np.array(IMAGES), np.array(SAME, np.float64)),
        lambda: ([np.bytes_(image) for image in IMAGES], [float(same) for same in SAME]),
        lambda: (IMAGES, [*np.array(SAME, np.float32)]),
    ],
)
def test_every_way_to_pickle_pairs(tmp_path: Path, form: Any, protocol: int) -> None:
    value = form()
    if protocol < 5 and isinstance(value[0][0], bytearray):
        value = ([bytes(image) for image in value[0]], value[1])
    pairs = PairBin(save(tmp_path, value, protocol))
    assert list(pairs.images(Skipped())) == ["0", "1", "3", "5"]
    assert list(pairs.pairs()) == [("0", "1", True), ("0", "3", False), ("3", "5", True)]
    assert [pairs.read(str(entry)) for entry in range(6)] == IMAGES


def test_as_python_2_wrote_it(tmp_path: Path) -> None:
    pairs = PairBin(save(tmp_path, PYTHON_2))
    assert [pairs.read(member) for member in pairs.images(Skipped())] == [B, C, D]
    assert [same for _, _, same in pairs.pairs()] == [True, False]


def test_names_and_identities(tmp_path: Path) -> None:
    pairs = PairBin(save(tmp_path, (IMAGES, SAME)))
    whose = [("0", "0"), ("1", "0"), ("3", "1"), ("5", "1")]
    assert list(pairs.identified(Skipped())) == whose
    contradicting = PairBin(save(tmp_path, ([A, B, B, C, A, C], [1, 1, 0])))
    with pytest.raises(UserError, match="pair 2 is said to show two persons"):
        list(contradicting.identified(Skipped()))


@pytest.mark.parametrize("member", ["6", "-1", "x", "\u0661"])
def test_no_such_entry(tmp_path: Path, member: str) -> None:
    with pytest.raises(UnreadableImage, match="go from 0 to 5"):
        PairBin(save(tmp_path, (IMAGES, SAME))).read(member)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *values: Any) -> None:
        self.call = function, values

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function",
    [os.mkdir, eval, getattr, np.load, np.frombuffer, type(np.arange(0).flat), io.open, map],
    ids=lambda function: function.__name__,
)
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, function: Any, protocol: int) -> None:
    target = tmp_path / "made"
    path = save(tmp_path, (IMAGES, Calls(function, str(target))), protocol)
    with pytest.raises(UnreadableImage, match=r"its pickle names \w+\.\w+.* should not be trusted"):
        PairBin(path)
    assert not target.exists()


def test_a_real_unpickler_would_have_run_it(tmp_path: Path) -> None:
    target = tmp_path / "made"
    pickle.loads(pickle.dumps((IMAGES, Calls(os.mkdir, str(target)))))
    assert target.exists()


def array_state(shape: bytes, content: bytes) -> bytes:
    """A pickle of a set whose images are an array with this state, of single bytes."""
    make = b"\x80\x02(cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape
    return make + b"cnumpy\ndtype\nU\x02u1\x85R\x89" + content + b"tb](K\x01et."


NESTED = b"]" * 9999 + b"a" * 9998


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        array_state(b"K\x03\x85", b"K\x03"),  # 3 as the array's bytes
        array_state(b"\x8b\x00\x20\x00\x00" + b"\x7f" * 8192 + b"\x85", b"U\x03abc"),
        array_state(NESTED + b"\x85", b"U\x03abc"),
        b"\x80\x02c_codecs\nencode\nK\x07X\x06\x00\x00\x00latin1\x86R.",
        pickle.dumps((IMAGES, SAME))[:-20],
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # claims 2**63 bytes
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.",  # a bytearray of 2**40
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # object number 2**31 of none
        b"\x80\x02cnumpy\ndtype\n}b.",  # a state for a name
        b"\x80\x02cnumpy\ndtype\nN\x86R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00utf8\x86R.",
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, content) if content else tmp_path / "set.bin"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"^is (not a pickled set|a pickle of something)"):
        PairBin(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "something else than"),
        ((IMAGES, SAME, 1), "something else than"),
        ((IMAGES, SAME[:2]), "6 images for 2 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [1, 0, 2]), "pair 2 is marked neither"),
        ((IMAGES, [1, 0, "x"]), "pair 2 is marked neither"),
        (([*IMAGES[:5], "text"], SAME), "entry 5 is no image file's bytes"),
        (([*IMAGES[:5], np.arange(3.0)], SAME), "entry 5 is no image file's bytes"),
        ((IMAGES, np.array([1, 0, 0.5])), "pair 2 is marked neither"),
        ((np.zeros((6, 4, 4, 3), np.uint8), SAME), r"array of uint8 of shape \(6, 4, 4, 3\)"),
        (([np.zeros((4, 4, 3), np.uint8)] * 6, SAME), "entry 0 is no image file's bytes"),
        (([bytes(48)] * 6, SAME), "no entry is an image file's bytes, which cv2.imencode makes"),
        (([np.zeros(48, np.uint8)] * 6, SAME), "no entry is an image file's bytes"),
        ((np.arange(6.0), SAME), "entry 0 is no image file's bytes"),
        (([*IMAGES[:5], np.str_("text")], SAME), "is not a pickled set"),
        (
            (np.array(["a"] * 6), SAME),
            "or is damaged .values of the type U1",
        ),
        ((5, SAME), "something else than a list"),
        ((IMAGES, None), "something else than a list"),
    ],
)
def test_other_contents(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        PairBin(save(tmp_path, value))


def test_entries_without_bytes_are_no_images(tmp_path: Path) -> None:
    """Two empty entries, in pairs of two different people, would join these."""
    images = [A, b"", C, None, A, B, C, D]
    pairs = PairBin(save(tmp_path, (images, [True, True, False, False])))
    skipped = Skipped()
    assert list(pairs.images(skipped)) == ["0", "2", "5", "7"]
    assert skipped.problems == {"entries without bytes": 2}
    assert skipped.examples["entries without bytes"] == [f"{pairs.path}#1", f"{pairs.path}#3"]
    assert list(pairs.pairs()) == [("0", "5", False), ("2", "7", False)]
    whose = dict(pairs.identified(Skipped()))
    assert len(set(whose.values())) == 4
    assert pairs.read("6") == C
    with pytest.raises(UnreadableImage, match="entry 3 has no bytes"):
        pairs.read("3")
    contradicting = PairBin(save(tmp_path, ([A, b"", A, B, A, B], [1, 1, 0])))
    with pytest.raises(UserError, match="pair 2 is said to show two persons"):
        list(contradicting.identified(Skipped()))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.bin: cannot be read \(No such file or directory"):
        container_pairs(str(tmp_path / "none.bin"))
