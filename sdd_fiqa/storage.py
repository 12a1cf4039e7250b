"""Reads from storage that may be slow or fail for a while, such as a network file system.

A read that fails for a temporary reason is tried again, a few times, with pauses. Then the image
counts as unreadable. If many reads in a row fail, the storage is gone, and the run ends.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import OpenFile

# Temporary reasons. A network file system gives EIO and ETIMEDOUT if its server does not answer in
# time, ESTALE if the server was restarted, and the network group if the connection is down. EMFILE,
# ENFILE, ENOMEM, ENOBUFS and EAGAIN say that this machine is short of something. All other reads
# (no such file, no permission, a folder, ...) would fail again. EINTR is missing because Python
# itself repeats an interrupted call.
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ETIMEDOUT", "ESTALE", "EREMOTEIO", "ECONNRESET", "ECONNREFUSED", "ECONNABORTED"),
        *("ENOTCONN", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH"),
        *("EAGAIN", "EBUSY", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
    )
    if hasattr(errno, name)  # only Linux has EREMOTEIO
)
PAUSES = (0.1, 0.3, 0.9, 1.7)  # seconds before the second, third, ... try; 3 s in total
MAX_BYTES = 1 << 30  # a larger file is not an image
MOST_OPEN = 256  # containers at a time; the usual limit of a process is 1,024 files
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_READ |= getattr(os, "O_BINARY", 0)  # of Windows, which lacks the other two
GONE_AFTER = 64  # this many failed reads in a row mean that the storage is gone

_Result = TypeVar("_Result")
_lock = threading.Lock()
_given_up = 0  # in a row
_open_files: OrderedDict[int, File] = OrderedDict()


def retried(action: Callable[[], _Result], what: str | os.PathLike[str]) -> _Result:
    """Runs `action`, and repeats it after a pause if it fails for a temporary reason.

    `what` is the file, for the message if the storage is gone.

    Raises:
        UnreadableImage: it failed for a permanent reason, or at every try.
        UserError: the last `GONE_AFTER` reads failed at every try.
    """
    global _given_up
    for pause in (*PAUSES, None):
        try:
            result = action()
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno not in TRANSIENT:
                raise UnreadableImage(reason) from error
            if pause is not None:
                time.sleep(pause)
                continue
            with _lock:
                _given_up += 1
                gone = _given_up >= GONE_AFTER
            if gone:
                raise UserError(
                    f"{os.fspath(what)}: {reason}, as the {GONE_AFTER} reads before it, each tried "
                    f"{len(PAUSES) + 1} times; is the storage there? then run the same command"
                ) from error
            tries = f"{len(PAUSES) + 1} tries in {sum(PAUSES):.0f} s"
            raise UnreadableImage(f"{reason} ({tries})") from error
        if _given_up:
            with _lock:
                _given_up = 0
        return result
    raise AssertionError("the last try returns or raises")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: missing, not a file (a folder, a pipe), larger than MAX_BYTES, or
            unreadable.
        UserError: as `retried`.
    """

    def read() -> bytes:
        descriptor, size = _open_regular(path)
        with open(descriptor, "rb", buffering=0) as file:
            if size > MAX_BYTES:
                raise UnreadableImage(f"has {size} bytes, too many for an image")
            content = file.read(size + 1)  # usually the only read
            while more := file.read(1 << 20):  # it has grown, or its size is unknown
                content += more
                if len(content) > MAX_BYTES:
                    raise UnreadableImage(f"has more than {MAX_BYTES} bytes, too many")
            return content

    return retried(read, path)


class File:
    """A large file that many threads read at any place.

    If more than MOST_OPEN are open, the descriptor of the oldest one is closed. Its next read opens
    it again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._handle: OpenFile | None = None
        self._seen: tuple[int, int] | None = None  # size and time of the last change
        retried(self._open, path)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer at the end of the file.

        Raises:
            UnreadableImage: the storage fails, or the file was replaced after it was opened.
            UserError: as `retried`.
        """
        # This reference keeps the descriptor open during the read.
        handle = self._handle
        if handle is not None and not _given_up:
            with suppress(OSError):
                content = os.pread(handle.number, size, offset)
                if len(content) == size:  # nearly always
                    return content
        return retried(lambda: self._read(offset, size), self.path)

    def _read(self, offset: int, size: int) -> bytes:
        handle = self._handle or self._open()
        parts = []
        try:
            while size > 0 and (part := os.pread(handle.number, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError:
            self._handle = None  # it may be stale: the next try opens the file again
            raise
        return b"".join(parts)

    def stream(self, buffer: int = 1 << 20) -> io.BufferedReader:
        """A seekable stream over the file, whose reads are repeated as in `read`."""
        return io.BufferedReader(_Stream(self), buffer)

    def _open(self) -> OpenFile:
        descriptor, self.size = _open_regular(self.path)
        handle = OpenFile(descriptor)
        seen = (self.size, os.fstat(descriptor).st_mtime_ns)
        if self._seen not in (None, seen):
            raise UnreadableImage("the file has changed since it was opened; run again")
        self._seen = seen
        with _lock:
            self._handle = handle
            _open_files[id(self)] = self
            _open_files.move_to_end(id(self))
            while len(_open_files) > MOST_OPEN:
                _open_files.popitem(last=False)[1]._handle = None
        return handle


class _Stream(io.RawIOBase):
    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _open_regular(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Descriptor and size of a regular file. A blocking open of a pipe would wait for a writer."""
    descriptor = os.open(path, _READ)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImage(os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("is not a file but a pipe, a socket or a device")
        return descriptor, status.st_size
    except BaseException:
        os.close(descriptor)
        raise
