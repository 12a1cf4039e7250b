"""Where the bytes of a listed image are: in a file of its own, or in a container among others.

faces/ann/01.jpg       a file
train.rec#17           the record of key 17 (recordio.py)
shards/00.tar#17.jpg   the member 17.jpg (tars.py)
lfw.bin#17             the entry 17 of a set of pairs (pair_bins.py)
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import repeat

from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import Content
from sdd_fiqa.storage import read_file, retried

CONTAINER_SUFFIXES = (".rec", ".tar", ".bin")

_MEMBER = re.compile(r"(.+?\.(?:rec|tar|bin))#(.+)", re.DOTALL)


class Container(ABC):
    """What is opened once a process and read by all of its threads."""

    @abstractmethod
    def read(self, member: str) -> bytes:
        """The bytes of one image; raises UnreadableImage."""

    def read_run(self, members: Sequence[str]) -> Iterable[Content | None]:
        """What one read gives of several images; None: `read` must be asked."""
        return repeat(None, len(members))


class _Slot:
    """A container, or the place where the first thread that needs it will put it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.container: Container | None = None


_slots: dict[str, _Slot] = {}
_slots_lock = threading.Lock()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a listed image, wherever they are.

    Raises:
        UnreadableImage: missing, damaged or unreadable; the message is the reason.
        UserError: the storage is gone.
    """
    name = os.fspath(path)
    file, _, member = name.rpartition("#")
    slot = _slots.get(file)
    if slot is not None and slot.container is not None:  # open already: nothing to find out
        return slot.container.read(member)
    parts = split_member(name)
    if parts is None:
        return read_file(name)
    return open_container(parts[0]).read(parts[1])


def read_run(paths: Sequence[str]) -> Iterable[Content | None]:
    """Of images listed one after the other, what their container gives in one read.

    None for every image that is to be had by `read_bytes`, as those in files of their own are.
    """
    file, _, member = paths[0].rpartition("#")
    slot = _slots.get(file)
    if slot is not None and slot.container is not None:
        members = "\0".join(paths).split(f"\0{file}#")  # at once: no path holds a zero byte
        if len(members) == len(paths):
            members[0] = member
            return slot.container.read_run(members)
    return repeat(None, len(paths))


def split_member(path: str) -> tuple[str, str] | None:
    """The container and the member that a path names, or None where it names a file.

    >>> split_member("faces/ann/01.jpg") is None
    True
    """
    if "#" not in path or (match := _MEMBER.fullmatch(path)) is None:
        return None
    container, member = match.groups()
    # A plain file may have such a name too.
    if container in _slots or _is_file(container) or not _is_file(path):
        return container, member
    return None


def is_container(path: str) -> bool:
    """Whether a file holds many images, by its name."""
    return path.endswith(CONTAINER_SUFFIXES)


def open_container(path: str) -> Container:
    """Opens a container, once a process.

    Raises:
        UnreadableImage: missing, or not what its name says.
        UserError: the storage is gone.
    """
    slot = _slots.get(path)
    if slot is None:
        with _slots_lock:
            slot = _slots.setdefault(path, _Slot())
    container = slot.container
    if container is None:
        with slot.lock:  # the index of a container is read once, and does not hold up the others
            container = slot.container = slot.container or _open(path)
    return container


def open_ahead(path: str) -> None:
    """Opens the container that a listed path names, if it names one.

    A large one without an index takes minutes; a reader's patience must not be spent on that.
    """
    parts = split_member(path)
    if parts is not None:
        with suppress(UnreadableImage):  # whoever reads a member is told
            open_container(parts[0])


def close_container(path: str) -> None:
    """Forgets a container, whose file may then be replaced by another."""
    with _slots_lock:
        _slots.pop(path, None)


def _open(path: str) -> Container:
    if not _is_file(path):
        raise UnreadableImage(f"{path}: no such file")
    if path.endswith(".rec"):
        from dataset.containers.rec import RecordFile

        return RecordFile(path)
    if path.endswith(".tar"):
        from dataset.containers.tar import TarImages

        return TarImages(path)
    from dataset.containers.pair_bin import read_pair_bin

    try:
        return read_pair_bin(path)
    except UserError as error:
        raise UnreadableImage(str(error)) from error


def _is_file(path: str) -> bool:
    def is_file() -> bool:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    return retried(is_file, path)
