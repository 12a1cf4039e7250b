"""WebDataset tars: the files of a sample are neighbours that share their name up to the first dot.

000017.cls   000017.jpg        or        n0001/0002.json   n0001/0002.png
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
import threading
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from itertools import groupby
from tarfile import TarInfo

import numpy as np

from dataset.containers.base import Container
from dataset.left_out import Skipped, why_left_out
from dataset.video import START
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import FORMATS
from sdd_fiqa.storage import MAX_BYTES, File

# In the order of preference where a sample has several.
IMAGE_KINDS = tuple(suffix[1:] for kind in FORMATS for suffix in kind.suffixes)
# Keys of a .json that hold an identity, in the order of preference.
IDENTITY_KEYS = ("identity", "id", "label", "cls", "class")
_NO_IDENTITY = "samples without .cls or .json (unpack a tar of folders of people)"
_MOST_META = 1 << 20  # bytes of a .cls, a .json or a long name
_MOST_LINKS = 8  # that lead from one to the next
_NOWHERE = "links to nothing in the tar, and files with holes"
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.[^/]*", re.DOTALL)  # the name up to the first dot


class TarImages(Container):
    """A tar read at random, by any number of threads: 20 bytes of memory a member."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        self._indexed = False

    def open_index(self) -> None:
        """Reads through the headers of the tar, once."""
        with self._lock:
            if self._indexed:
                return
            keys, offsets, sizes = array("q"), array("q"), array("I")
            self._targets: dict[int, str] = {}  # of links, by their key
            for member in members(self.file):
                if isinstance(member, str):
                    continue
                target = _target(member)
                keys.append(_key(member.name))
                offsets.append(member.offset_data if target is None else -1)
                sizes.append(min(member.size, MAX_BYTES + 1))
                if target is not None:
                    self._targets[keys[-1]] = target
            order = np.argsort(np.array(keys, np.int64), kind="stable")
            # As memoryviews, because numpy takes longer for one number.
            self._keys, self._offsets, self._sizes = (
                memoryview(np.array(column)[order].data) for column in (keys, offsets, sizes)
            )
            self._indexed = True

    def _row(self, name: str) -> int:
        """The last row of a name, -1 if there is none."""
        key = _key(name)
        row = bisect_right(self._keys, key) - 1
        return row if row >= 0 and self._keys[row] == key else -1

    def _find(self, member: str) -> tuple[int, int] | None:
        """Where the bytes of a member begin, or of the file that a link leads to; and how many.

        Of several members of one name it is the last, as tar itself has it. None: there are none.
        """
        self.open_index()
        row = self._row(member)
        for _ in range(_MOST_LINKS):
            if row < 0 or self._offsets[row] >= 0:
                break
            target = self._targets[self._keys[row]]
            row = max(self._row(target), self._row(f"./{target}"))
        if row < 0 or self._offsets[row] < 0:
            return None
        return self._offsets[row], self._sizes[row]

    def read(self, member: str) -> bytes:
        """The bytes of a member; of several of one name the last.

        Raises:
            UnreadableImage: no such member, or cut off.
        """
        place = self._find(member)
        if place is None:
            raise UnreadableImage(
                f"the tar has no member {member!r}, or it is a link to nothing in the tar"
            )
        offset, size = place
        if size > MAX_BYTES:
            raise UnreadableImage("is too large for an image")
        content = self.file.read(offset, size)
        if len(content) < size:
            raise UnreadableImage(f"is cut off: the tar ends {size - len(content)} bytes early")
        return content

    def images(self, skipped: Skipped) -> Iterator[str]:
        """The members that are images, by their names."""
        return (member.name for member in self._wanted(IMAGE_KINDS, skipped))

    def _other_file(self, member: TarInfo, skipped: Skipped) -> bool:
        """As `Skipped.other_file`, but text and the like is not counted."""
        reason = why_left_out(self._start(member, START), member.name)
        path = f"{self.path}#{member.name}"
        return reason is not None and skipped.picture_or_video(path, reason)

    def _start(self, member: TarInfo, most: int) -> bytes:
        """The first bytes of a file, or of the file that a link leads to."""
        if _target(member) is None:
            return self.file.read(member.offset_data, min(member.size, most))
        return self.read(member.name)[:most]

    def _wanted(self, kinds: tuple[str, ...], skipped: Skipped) -> Iterator[TarInfo]:
        """Members of some kinds; what is damaged, hidden or leads nowhere goes to `skipped`."""
        for member in members(self.file):
            if isinstance(member, str):
                skipped.problem("damaged places", f"{self.path}: {member}")
            elif any(part.startswith(".") and part.strip(".") for part in member.name.split("/")):
                skipped.expected["hidden files"] += 1  # as in a folder
            elif _target(member) is not None and self._find(member.name) is None:
                skipped.problem(_NOWHERE, f"{self.path}#{member.name}")
            elif _kind(member.name) in kinds or self._other_file(member, skipped):
                yield member

    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """The images of the samples with their identities."""

        def shared(member: TarInfo) -> str:
            match = _SAMPLE.fullmatch(member.name)
            return match[1] if match else ""

        wanted = self._wanted((*IMAGE_KINDS, "cls", "json"), skipped)
        for sample, group in groupby(wanted, shared):
            parts: dict[str, TarInfo] = {}
            for member in group if sample else ():
                kind = member.name[len(sample) + 1 :].lower()
                if kind in parts:
                    problem = f"{self.path}: {member.name}: duplicate file name"
                    skipped.problem("damaged places", problem)
                parts.setdefault(kind, member)
            images = [kind for kind in parts if _kind(kind) in IMAGE_KINDS]
            if not images:
                continue
            image = parts[min(images, key=lambda kind: IMAGE_KINDS.index(_kind(kind)))].name
            if "cls" in parts:
                identity = self._start(parts["cls"], _MOST_META).decode("utf-8", "replace").strip()
                problem = "samples whose .cls is empty"
            elif "json" in parts:
                identity = _json_identity(self._start(parts["json"], _MOST_META))
                problem = f"samples whose .json has no identity (one of {', '.join(IDENTITY_KEYS)})"
            else:
                identity, problem = "", _NO_IDENTITY
            if identity:
                yield image, identity
            else:
                skipped.problem(problem, f"{self.path}#{image}")


def members(file: File) -> Iterator[TarInfo | str]:
    """The files and links of a tar in its order; where it is damaged, what is wrong, and no more.

    An archive that was appended to another, as `cat` does, is read too.

    Raises:
        UnreadableImage: it is no tar at all.
    """
    start: int | None = 0
    with _Headers(file.stream().detach(), _MOST_META) as stream:
        while start is not None:
            start = yield from _archive(file, stream, start)


def _archive(
    file: File, stream: _Headers, start: int
) -> Generator[TarInfo | str, None, int | None]:
    """One archive of a file; returns where the next one begins, None if there is none."""
    seen = start
    try:
        stream.seek(start)
        tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115  (over a stream)
        while (entry := tar.next()) is not None:
            end = entry.offset_data + entry.size
            if entry.size < 0 or tar.offset <= seen:
                raise tarfile.ReadError(f"{entry.name!r} has a size of {entry.size} bytes")
            seen = tar.offset
            if entry.isreg() or entry.islnk() or entry.issym():
                yield entry
            if entry.isreg() and end > file.size:
                raise tarfile.ReadError(f"{entry.name!r} ends {end - file.size} bytes later")
            # Else it keeps every entry. Its types do not list this attribute, which is public.
            tar.members.clear()  # type: ignore[attr-defined]
        # tarfile takes garbage in place of a header for the end; a tar ends with zeros.
        following = _first_byte(file, tar.offset)
        if following == tar.offset:
            raise tarfile.ReadError("no header there")
        return following
    except (UnreadableImage, UserError):  # of the storage
        raise
    except Exception as error:  # a damaged header raises a dozen kinds
        if not seen:
            raise UnreadableImage(
                "is no tar that can be read at random (a compressed one must be unpacked)"
            ) from error
        yield f"is damaged at offset {seen} ({error or type(error).__name__})"
        return None


def _target(member: TarInfo) -> str | None:
    """Of a link, the member that it leads to; of a file with holes none, ""; of others None."""
    if member.issparse():
        return ""
    if member.issym():
        beside = posixpath.join(posixpath.dirname(member.name), member.linkname)
        return posixpath.normpath(beside)
    return member.linkname if member.islnk() else None


class _Headers(io.BufferedReader):
    """A stream for tarfile, which would set aside as much memory as a header says."""

    def read(self, size: int | None = None) -> bytes:
        if size is None or not 0 <= size <= _MOST_META:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _first_byte(file: File, offset: int) -> int | None:
    """The block of 512 bytes from `offset` on that is the first not to be zero."""
    while content := file.read(offset, _MOST_META):
        if rest := content.lstrip(b"\0"):
            return offset + (len(content) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(content)
    return None


def _kind(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _json_identity(content: bytes) -> str:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, dict):
        value = next((value[key] for key in IDENTITY_KEYS if key in value), None)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ""
    return str(value).strip()


def _key(name: str) -> int:
    """A 64-bit hash of a name; among a million names, two agree once in 37 million tars."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
