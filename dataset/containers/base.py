"""What every format of containers offers. A container is one file that holds many images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import ClassVar

from dataset.left_out import Skipped
from sdd_fiqa.images import Content
from sdd_fiqa.storage import File


class Container(ABC):
    """One open container. A process opens it once, and all of its threads read it.

    A member is the name of an image inside the file. All methods raise UnreadableImage where the
    file or a member cannot be read; the message is the reason, without the path.

    Attributes:
        path: the file.
        file: the same, open.
        in_shards: whether one data set may be divided over several such files.
        single_identities: whether the identity of one image can be read without all others.
        writable: whether new files of the format can be written.
    """

    in_shards: ClassVar[bool] = False
    single_identities: ClassVar[bool] = False
    writable: ClassVar[bool] = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.file = File(path)

    @abstractmethod
    def read(self, member: str) -> bytes:
        """The bytes of one image file."""

    @abstractmethod
    def images(self, skipped: Skipped) -> Iterator[str]:
        """The members that are images, in the order of the file.

        Damaged ones that have a name are among them: whoever reads them reports them.
        """

    @abstractmethod
    def identified(self, skipped: Skipped) -> Iterator[tuple[str, str]]:
        """Images and their identities, (member, identity), in the order of the file.

        What is damaged or has no identity goes to `skipped`.
        """

    def identity(self, member: str) -> str:
        """The identity of one image, where the format has `single_identities`."""
        raise NotImplementedError

    @staticmethod
    def write(path: Path, images: Iterable[tuple[int, bytes]]) -> int:
        """Writes (identity, bytes of an image file), where the format is `writable`.

        The images of one identity are together. Returns how many images were written.
        """
        raise NotImplementedError

    def pairs(self) -> Iterator[tuple[str, str, bool]] | None:
        """The pairs of a verification set: (member, member, same person); None: it is none."""
        return None

    def open_index(self) -> None:
        """Does now what the first `read` would have to wait for."""
        return None

    def read_run(self, members: Sequence[str]) -> Iterable[Content | None]:
        """What one read of the file gives of several images; None: `read` must be used."""
        return repeat(None, len(members))
