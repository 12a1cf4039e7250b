"""Verification sets as InsightFace ships them: `lfw.bin`, `cfp_fp.bin`, ...

Such a file is a pickle of (images, same): 2 P images as the bytes of image files, and P booleans;
images 2 i and 2 i + 1 are pair i. A pickle can name any function of any module and have it called,
so this reader gives it none: names that numpy's arrays and Python's bytes need lead to inert
stand-ins in this file, and every other name is refused.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.containers.base import Container
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.storage import File

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairBin(Container):
    """A set of pairs; an image that stands in several pairs is one image here.

    Attributes:
        path: the file.
        images: U different images, the bytes of an image file each.
        entries: (U,) int64, where in the file each image stands first; its path is
            `<file>#<entry>`.
        first: (P,) int64, the first image of each pair, 0 to U - 1.
        second: (P,) int64, the second.
        same: (P,) bool, whether they show one person.
    """

    path: str
    images: Sequence[bytes]
    entries: Rows
    first: Rows
    second: Rows
    same: npt.NDArray[np.bool_]

    def image_path(self, image: int) -> str:
        """The path of an image, as lists name it."""
        return f"{self.path}#{self.entries[image]}"

    def named_pairs(self) -> Iterator[tuple[str, str, bool]]:
        """The pairs as (path, path, same)."""
        for first, second, same in zip(
            self.first.tolist(), self.second.tolist(), self.same.tolist(), strict=True
        ):
            yield self.image_path(first), self.image_path(second), same

    def read(self, member: str) -> bytes:
        """The bytes of the image at an entry, 0 to 2 P - 1, given as text.

        Raises:
            UnreadableImage: no such entry.
        """
        pairs = len(self.first)
        if not (member.isascii() and member.isdigit() and int(member) < 2 * pairs):
            raise UnreadableImage(f"has no entry {member!r}; they go from 0 to {2 * pairs - 1}")
        pair, side = divmod(int(member), 2)
        return self.images[int((self.second if side else self.first)[pair])]


def read_pair_bin(path: str | os.PathLike[str]) -> PairBin:
    """Reads a set of pairs without running anything that the file could name.

    Raises:
        UserError: unreadable, not such a pickle, names something else than arrays, or the numbers
            of images and pairs do not fit.
    """
    name = os.fspath(path)
    try:
        with File(name).stream() as stream:
            content = stream.read()
    except UnreadableImage as error:
        raise UserError(f"{name}: cannot be read ({error})") from error
    value = _load(name, content)
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise UserError(f"{name}: is a pickle of something else than (images, same or not)")
    images = [_image_bytes(name, number, entry) for number, entry in enumerate(_items(value[0]))]
    same = _booleans(name, _items(value[1]))
    if not len(same) or len(images) != 2 * len(same):
        raise UserError(
            f"{name}: holds {len(images)} images for {len(same)} pairs; expected two a pair"
        )
    numbers: dict[bytes, int] = {}
    which = np.fromiter((numbers.setdefault(i, len(numbers)) for i in images), np.int64)
    _, entries = np.unique(which, return_index=True)
    return PairBin(name, list(numbers), entries, which[::2], which[1::2], same)


def identities_of(pairs: PairBin) -> Rows:
    """(U,) int64 identity of each image, as far as the pairs tell: 0, 1, ... by first image.

    Images joined by a chain of pairs of one person are one identity. The same person may have
    several, where no pair says so: good for grouping, not for impostor pairs beyond those listed.

    Raises:
        UserError: a pair of different persons lies within such an identity.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = pairs.first[pairs.same], pairs.second[pairs.same]
    shape = (len(pairs.images), len(pairs.images))
    links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=shape)
    _, group = connected_components(links, directed=False)
    against = np.flatnonzero(~pairs.same & (group[pairs.first] == group[pairs.second]))
    if len(against):
        raise UserError(
            f"{pairs.path}: pair {against[0]} is said to show two persons, but other pairs make "
            "them one"
        )
    _, seen, identity = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(seen), np.int64)
    rank[np.argsort(seen)] = np.arange(len(seen))
    out: Rows = rank[identity]
    return out


def _load(name: str, content: bytes) -> Any:
    try:
        _check_memo(content)
        return _Inert(io.BytesIO(content), encoding="bytes").load()
    except _NotAllowed as error:
        raise UserError(
            f"{name}: its pickle names {error}, which a set of pairs has no use for; it was not "
            "opened, and should not be trusted"
        ) from error
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise UserError(
            f"{name}: is not a pickled set of pairs, or is damaged ({error})"
        ) from error


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

    code, shape, content = "", (), b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, content = state
        self.code, self.shape, self.content = dtype.code, shape, content


def _array_from_buffer(content: Any, dtype: _DType, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.code, array.shape, array.content = dtype.code, shape, bytes(content)
    return array


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in old pickles: as the text of their Latin-1 characters."""
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"an encoding, {encoding}, where latin1 is expected")
    return bytes(text, "latin1") if isinstance(text, str) else bytes(text)


_MEANINGS: dict[str, Callable[..., Any]] = {
    "_reconstruct": lambda *_: _Array(),
    "_frombuffer": _array_from_buffer,
    "scalar": lambda _, content: any(content),
    "dtype": lambda code, *_: _DType(_text(code).lstrip("|<=")),
    "encode": _encode,
    "bytes": lambda *_: b"",  # the empty one: others go through encode
    "ndarray": lambda *_: _Array(),
}
_KNOWN = {
    ("_codecs", "encode"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _StandIn:
    """What a pickle gets for a name: it can be called, and not be changed."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *values: Any) -> Any:
        return _MEANINGS[self._name](*values)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{self._name} is given a state")


class _Inert(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (_text(module), _text(name)) not in _KNOWN:
            raise _NotAllowed(f"{_text(module)}.{_text(name)}")
        return _StandIn(_text(name))

    def persistent_load(self, number: Any) -> Any:
        raise _NotAllowed("an object outside the file")


def _items(value: Any) -> Sequence[Any]:
    """The entries of a list, or of an array of booleans, whole numbers or objects."""
    if isinstance(value, _Array) and isinstance(value.content, bytes):
        if value.code not in ("b1", "u1", "i1", "i4", "i8"):
            return []
        items: list[Any] = np.frombuffer(value.content, value.code).tolist()
        return items
    value = value.content if isinstance(value, _Array) else value
    return value if isinstance(value, list | tuple) else []


def _image_bytes(name: str, number: int, entry: Any) -> bytes:
    if isinstance(entry, _Array) and entry.code == "u1":
        entry = entry.content
    if not isinstance(entry, bytes | bytearray):
        raise UserError(f"{name}: entry {number} is no image file's bytes; expected bytes")
    return bytes(entry)


def _booleans(name: str, entries: Sequence[Any]) -> npt.NDArray[np.bool_]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, bool | int) or entry not in (0, 1):
            raise UserError(f"{name}: pair {number} is marked neither same (1) nor different (0)")
    return np.array(entries, bool)
