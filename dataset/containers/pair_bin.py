"""Verification sets as InsightFace ships them: `lfw.bin`, `cfp_fp.bin`, ...

Such a file is a pickle of (images, same): 2 P images as the bytes of image files, and P booleans.
Images 2 i and 2 i + 1 are pair i. A pickle can call any function of any module, so this reader
gives it none: the names that numpy's arrays and Python's bytes need get harmless replacements from
this file, and every other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle  # nosec B403 # the unpickler below allows bytes, numbers and arrays alone
import pickletools  # nosec B403 # reads opcodes, runs nothing
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.cli import is_count
from dataset.containers.base import Container
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import format_of

_PLAIN = re.compile(r"b1|[iu][1248]|f[248]|S[1-9][0-9]{0,8}")  # types of numbers and bytes

Rows = npt.NDArray[np.int64]


class PairBin(Container):
    """A set of P pairs; an image that is in several pairs is one image here.

    An entry without bytes is no image, and a pair with such an entry is left out.

    Attributes:
        empty: entries without bytes.
        contents: U different images, the bytes of an image file each.
        entries: (U,) int64, where in the file each image is first; this is its member name.
        first: (P,) int64, the first image of each pair, 0 to U - 1.
        second: (P,) int64, the second.
        pair_numbers: (P,) int64, the number of each pair in the file.
        same: (P,) bool, whether they show one person.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the whole file, without running anything that it could name.

        Raises:
            UnreadableImage: not such a pickle, names something else than arrays, or the numbers of
                images and pairs do not fit.
        """
        super().__init__(path)
        with self.file.stream() as stream:
            value = _load(stream.read())
        if not (isinstance(value, tuple | list) and len(value) == 2):
            raise UnreadableImage("is a pickle of something else than (images, same or not)")
        images = [_image_bytes(number, entry) for number, entry in enumerate(_items(value[0]))]
        same = _booleans(_items(value[1]))
        if not len(same) or len(images) != 2 * len(same):
            raise UnreadableImage(
                f"holds {len(images)} images for {len(same)} pairs; expected two a pair"
            )
        numbers: dict[bytes, int] = {}
        self._which = np.array(
            [numbers.setdefault(i, len(numbers)) if i else -1 for i in images], np.int64
        )
        self.empty = np.flatnonzero(self._which < 0).tolist()
        self.contents = list(numbers)
        if self.contents and not any(format_of(content[:64]) for content in self.contents):
            raise UnreadableImage(
                "no entry is an image file's bytes, which cv2.imencode makes of pixels"
            )
        found, entries = np.unique(self._which, return_index=True)
        self.entries: Rows = entries[found >= 0]
        whole = (self._which.reshape(-1, 2) >= 0).all(axis=1)
        self.pair_numbers = np.flatnonzero(whole)
        self.first, self.second = self._which[::2][whole], self._which[1::2][whole]
        self.same = same[whole]

    def read(self, member: str) -> bytes:
        """The image at an entry, 0 to 2 P - 1."""
        count = len(self._which)
        if not (is_count(member) and int(member) < count):
            raise UnreadableImage(f"has no entry {member!r}; they go from 0 to {count - 1}")
        number = int(self._which[int(member)])
        if number < 0:
            raise UnreadableImage(f"entry {member} has no bytes")
        return self.contents[number]

    def images(self, skipped: Skipped) -> Iterator[str]:
        """The entries of the U images."""
        for number in self.empty:
            skipped.problem("entries without bytes", f"{self.path}#{number}")
        return map(str, self.entries.tolist())

    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """The images with their identities, as far as the pairs tell: 0, 1, ... by first image.

        Images joined by a chain of pairs of one person are one identity. A person may have several
        identities, where no pair joins them: good for grouping, not for impostor pairs beyond those
        of the set.

        Raises:
            UserError: a pair of two persons within one such identity.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        first, second = self.first[self.same], self.second[self.same]
        shape = (len(self.contents), len(self.contents))
        links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=shape)
        _, group = connected_components(links, directed=False)
        against = np.flatnonzero(~self.same & (group[self.first] == group[self.second]))
        if len(against):
            raise UserError(
                f"{self.path}: pair {self.pair_numbers[against[0]]} is said to show two persons, "
                "but other pairs make them one"
            )
        numbers: dict[int, int] = {}
        for member, own in zip(self.images(skipped), group.tolist(), strict=True):
            yield member, str(numbers.setdefault(own, len(numbers)))

    def pairs(self) -> Iterator[tuple[str, str, bool]]:
        """The pairs, in the order of the file."""
        names = list(map(str, self.entries.tolist()))
        for first, second, same in zip(
            self.first.tolist(), self.second.tolist(), self.same.tolist(), strict=True
        ):
            yield names[first], names[second], same


def _load(content: bytes) -> Any:
    try:
        _check_memo(content)
        return _Inert(io.BytesIO(content), encoding="bytes").load()
    except _NotAllowed as error:
        raise UnreadableImage(
            f"its pickle names {error}, which a set of pairs has no use for; it was not opened, "
            "and should not be trusted"
        ) from error
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise UnreadableImage(f"is not a pickled set of pairs, or is damaged ({error})") from error


def _check_memo(content: bytes) -> None:
    """Refuses what would have the unpickler set aside memory for objects that do not exist."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"object number {argument} among {count}")


class _NotAllowed(pickle.UnpicklingError):
    pass


@dataclass
class _DType:
    code: str

    def __setstate__(self, state: Any) -> None:
        """Byte order, fields and the like: nothing that arrays of single bytes need."""


class _Array:
    """The state of an array of bytes or booleans."""

    code = ""
    shape: Any = ()
    content: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, content = state
        if any(not 0 <= side < 1 << 48 for side in shape):
            raise pickle.UnpicklingError("an array of an impossible shape")
        self.code, self.shape = dtype.code, tuple(shape)
        self.content = content if isinstance(content, list) else _bytes(content)


def _array_from_buffer(content: Any, dtype: _DType, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, False, content))
    return array


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    """Bytes that a pickle holds; of a number, `bytes` would make as many zeros."""
    if not isinstance(value, bytes | bytearray):
        raise pickle.UnpicklingError(f"{type(value).__name__} where bytes are expected")
    return bytes(value)


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in old pickles: as the text of their Latin-1 characters."""
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"an encoding, {encoding}, where latin1 is expected")
    return bytes(text, "latin1") if isinstance(text, str) else _bytes(text)


def _scalar(dtype: _DType, content: Any) -> Any:
    """A number or byte string of numpy, as Python's."""
    content = bytes(content, "latin1") if isinstance(content, str) else _bytes(content)
    if not _PLAIN.fullmatch(dtype.code):
        raise pickle.UnpicklingError(f"a value of the type {dtype.code}")
    return content if dtype.code[0] == "S" else np.frombuffer(content, dtype.code)[0].item()


_CORES = ("numpy.core", "numpy._core")
# What a pickle may name, and what it gets.
_MEANINGS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda *_: b"",  # the empty one: others go through encode
    ("builtins", "bytes"): lambda *_: b"",
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): lambda code, *_: _DType(_text(code).lstrip("|<=")),
    **{(f"{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array_from_buffer for core in _CORES},
}


class _StandIn:
    """What a pickle gets for a name: it can be called, and not be changed."""

    __slots__ = ("_name",)

    def __init__(self, name: tuple[str, str]) -> None:
        self._name = name

    def __call__(self, *values: Any) -> Any:
        return _MEANINGS[self._name](*values)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{self._name[1]} is given a state")


class _Inert(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        named = _text(module), _text(name)
        if named not in _MEANINGS:
            raise _NotAllowed(".".join(named))
        return _StandIn(named)

    def persistent_load(self, number: Any) -> Any:
        raise _NotAllowed("an object outside the file")


def _items(value: Any) -> Sequence[Any]:
    """The entries of a list, or of an array of numbers, byte strings or objects."""
    if isinstance(value, _Array) and isinstance(value.content, bytes):
        plain = _PLAIN.fullmatch(value.code)
        size = int(value.code[1:]) if plain else 1
        count, rest = divmod(len(value.content), size)
        if not plain or rest or value.shape != (count,):
            raise UnreadableImage(
                f"holds an array of {value.code} of shape {value.shape}; expected the bytes of an "
                "image file for each image (cv2.imencode makes them), or a boolean for each pair"
            )
        if value.code[0] == "S":  # zeros fill each up to the longest
            starts = range(0, len(value.content), size)
            return [value.content[start : start + size].rstrip(b"\0") for start in starts]
        items: list[Any] = np.frombuffer(value.content, value.code).tolist()
        return items
    value = value.content if isinstance(value, _Array) else value
    if not isinstance(value, list | tuple):
        raise UnreadableImage("holds something else than a list of images and one of booleans")
    return value


def _image_bytes(number: int, entry: Any) -> bytes:
    if entry is None:
        return b""
    if isinstance(entry, _Array) and entry.code in ("u1", "i1"):
        entry = entry.content if entry.shape == (len(entry.content),) else None
    if not isinstance(entry, bytes | bytearray):
        raise UnreadableImage(
            f"entry {number} is no image file's bytes, which cv2.imencode makes of pixels"
        )
    return bytes(entry)


def _booleans(entries: Sequence[Any]) -> npt.NDArray[np.bool_]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, bool | int | float) or entry not in (0, 1):
            raise UnreadableImage(f"pair {number} is marked neither same (1) nor different (0)")
    return np.array(entries, bool)
