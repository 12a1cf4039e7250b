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
        if not any(format_of(image[:64]) for image in images):
            raise UnreadableImage(
                "no entry is an image file's bytes, which cv2.imencode makes of pixels"
            )
        # Where in the file the image of each entry is first: this is its name as a member.
        firsts: dict[bytes, int] = {}
        entries = [firsts.setdefault(image, at) if image else -1 for at, image in enumerate(images)]
        self._entries = np.array(entries, np.int64)
        self._images = {first: image for image, first in firsts.items()}
        whole = np.flatnonzero((self._entries.reshape(-1, 2) >= 0).all(axis=1))
        self._pairs = self._entries.reshape(-1, 2)[whole]
        self._numbers, self._same = whole, same[whole]  # of these pairs in the file

    def read(self, member: str) -> bytes:
        """The image at an entry, 0 to 2 P - 1."""
        count = len(self._entries)
        if not (is_count(member) and int(member) < count):
            raise UnreadableImage(f"has no entry {member!r}; they go from 0 to {count - 1}")
        first = int(self._entries[int(member)])
        if first < 0:
            raise UnreadableImage(f"entry {member} has no bytes")
        return self._images[first]

    def images(self, skipped: Skipped) -> Iterator[str]:
        """The first entry of each image."""
        for number in np.flatnonzero(self._entries < 0).tolist():
            skipped.problem("entries without bytes", f"{self.path}#{number}")
        return map(str, self._images)

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

        first, second = self._pairs[self._same].T
        shape = (len(self._entries), len(self._entries))
        links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=shape)
        _, group = connected_components(links, directed=False)
        first, second = group[self._pairs.T]
        against = np.flatnonzero(~self._same & (first == second))
        if len(against):
            raise UserError(
                f"{self.path}: pair {self._numbers[against[0]]} is said to show two persons, "
                "but other pairs make them one"
            )
        numbers: dict[int, int] = {}
        for member in self.images(skipped):
            yield member, str(numbers.setdefault(int(group[int(member)]), len(numbers)))

    def pairs(self) -> Iterator[tuple[str, str, bool]]:
        """The pairs without empty entries, in the order of the file."""
        for (first, second), same in zip(self._pairs.tolist(), self._same.tolist(), strict=True):
            yield str(first), str(second), same


def _load(content: bytes) -> Any:
    try:
        _check_memo(content)
        return _Inert(io.BytesIO(content), encoding="bytes").load()
    except UnreadableImage:
        raise
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise UnreadableImage(f"is not a pickled set of pairs, or is damaged ({error})") from error


def _check_memo(content: bytes) -> None:
    """Refuses what would have the unpickler set aside memory for objects that do not exist."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise pickle.UnpicklingError(f"object number {argument} among {count}")


@dataclass
class _DType:
    code: str

    def __setstate__(self, state: Any) -> None:
        """Byte order, fields and the like: nothing that arrays of single bytes need."""


class _Array:
    """An array: `value` is one of numbers or byte strings, or a list of objects."""

    value: Any = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, content = state
        self.value = content
        if not isinstance(content, list):
            self.value = _plain(dtype, _bytes(content)).reshape(shape)


def _array_from_buffer(content: Any, dtype: _DType, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, False, content))
    return array


def _plain(dtype: _DType, content: bytes) -> npt.NDArray[Any]:
    if not _PLAIN.fullmatch(dtype.code):
        raise pickle.UnpicklingError(f"values of the type {dtype.code}")
    return np.frombuffer(content, dtype.code)


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
    content = _encode(content, "latin1")
    numbers = _plain(dtype, content)
    return content if dtype.code[0] == "S" else numbers[0].item()


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


class _Inert(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        named = _text(module), _text(name)
        if named not in _MEANINGS:
            raise UnreadableImage(
                f"its pickle names {'.'.join(named)}, which a set of pairs has no use for; it was "
                "not opened, and should not be trusted"
            )
        # A function of its own, so that nothing else changes where a pickle gives it a state.
        return lambda *values: _MEANINGS[named](*values)


def _items(value: Any) -> Sequence[Any]:
    """The entries of a list, or of an array of numbers, byte strings or objects."""
    value = value.value if isinstance(value, _Array) else value
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise UnreadableImage(
                f"holds an array of {value.dtype} of shape {value.shape}; expected the bytes of an "
                "image file for each image (cv2.imencode makes them), or a boolean for each pair"
            )
        items: list[Any] = value.tolist()
        return items
    if not isinstance(value, list | tuple):
        raise UnreadableImage("holds something else than a list of images and one of booleans")
    return value


def _image_bytes(number: int, entry: Any) -> bytes:
    if entry is None:
        return b""
    array = entry.value if isinstance(entry, _Array) else None
    if isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.name in ("uint8", "int8"):
        entry = array.tobytes()
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
