"""The formats of containers, and reading images by path, in a container or in files of their own.

faces/ann/01.jpg       a file
train.rec#17           the record of key 17 (rec.py)
shards/00.tar#17.jpg   the member 17.jpg (tar.py)
lfw.bin#17             the entry 17 of a set of pairs (pair_bin.py)

A new format is a file here with a subclass of `Container`, and an entry in FORMATS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import repeat

from dataset.containers.base import Container
from dataset.containers.pair_bin import PairBin
from dataset.containers.rec import RecordFile
from dataset.containers.tar import TarImages
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import Content
from sdd_fiqa.storage import read_file, retried

FORMATS: dict[str, type[Container]] = {".rec": RecordFile, ".tar": TarImages, ".bin": PairBin}


_opened: dict[str, Container] = {}  # by path
_opening: dict[str, threading.Lock] = {}


def is_container(path: str) -> bool:
    """Whether a file holds many images, by its name."""
    return os.path.splitext(path)[1] in FORMATS


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a listed image, wherever they are.

    Raises:
        UnreadableImage: missing, damaged or unreadable; the message is the reason.
        UserError: the storage is gone.
    """
    name = os.fspath(path)
    file, _, member = name.rpartition("#")
    if (container := _opened.get(file)) is not None:  # nothing to find out
        return container.read(member)
    parts = split_member(name)
    if parts is None:
        return read_file(name)
    return open_container(parts[0]).read(parts[1])


def read_run(paths: Sequence[str]) -> Iterable[Content | None]:
    """What one read of a container gives of images that are next to each other in a list.

    None for an image that needs `read_bytes`, as images in files of their own do.
    """
    file, _, member = paths[0].rpartition("#")
    if (container := _opened.get(file)) is not None:
        members = "\0".join(paths).split(f"\0{file}#")  # at once: no path holds a zero byte
        if len(members) == len(paths):
            members[0] = member
            return container.read_run(members)
    return repeat(None, len(paths))


def split_member(path: str) -> tuple[str, str] | None:
    """The container and the member that a path names; None where it names a file.

    >>> split_member("faces/ann/01.jpg") is None
    True
    """
    at = path.find("#")
    while at >= 0:
        container, member = path[:at], path[at + 1 :]
        if member and is_container(container):
            # A plain file may have such a name too.
            plain = not (container in _opened or _is_file(container)) and _is_file(path)
            return None if plain else (container, member)
        at = path.find("#", at + 1)
    return None


def open_container(path: str) -> Container:
    """Opens a container, once a process.

    Raises:
        UnreadableImage: missing, or not what its name says.
        UserError: the storage is gone, or a file that belongs to it is damaged.
    """
    with _opening.setdefault(path, threading.Lock()):  # opened once; does not hold up the others
        if path not in _opened:
            _opened[path] = FORMATS[os.path.splitext(path)[1]](path)
        return _opened[path]


def open_ahead(path: str) -> None:
    """Opens the container that a listed path names, if it names one.

    A large one without an index takes minutes. This must not count against the loader's stall
    timeout.
    """
    parts = split_member(path)
    if parts is not None:
        with suppress(UnreadableImage):  # reported where a member is read
            open_container(parts[0]).open_index()


def close_container(path: str) -> None:
    """Forgets a container, so that another file can take its place."""
    _opened.pop(path, None)


def _is_file(path: str) -> bool:
    try:
        retried(lambda: os.stat(path), path)
    except UnreadableImage:
        return False
    return True
