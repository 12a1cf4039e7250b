"""What every format of containers offers. A container is one file that holds many images."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

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
        single_identities: whether the identity of one image can be read without all others.
    """

    single_identities = False

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

    def pairs(self) -> Iterator[tuple[str, str, bool]]:
        """The pairs of a verification set: (member, member, same person); none in other formats."""
        return iter(())

    def open_index(self) -> None:
        """Does now what the first `read` would have to wait for."""
        return None

    def read_run(self, members: Sequence[str]) -> Iterable[Content | None]:
        """What one read of the file gives of several images; None: `read` must be used."""
        return repeat(None, len(members))
