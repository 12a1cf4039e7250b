"""Identities as ranges of positions, and the fixed blocks of images that work is cut into.

Images are counted by *position*: the usable images ordered by identity, so that an identity is a
range. A block is a range of positions. It depends on the identities alone, so results that are
computed by blocks do not depend on how the work is split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance import Indices, Mask

BLOCK = 4096  # images that are worked on together
OWN_BLOCK = 256  # an identity with more images than this has blocks of its own


@dataclass(frozen=True)
class Groups:
    """Images ordered by identity.

    Attributes:
        rows: (n,) the row of the embeddings at each position; None where position and row agree.
        starts: (C + 1,) int64, identity c is the positions starts[c] .. starts[c + 1].
    """

    rows: Indices | None
    starts: Indices

    def __len__(self) -> int:
        """The number of images."""
        return int(self.starts[-1])

    def rows_of(self, positions: Indices) -> Indices:
        """Rows of the embeddings."""
        return positions if self.rows is None else self.rows[positions]

    def all_rows(self) -> Indices:
        """(n,) the row of each position."""
        return self.rows_of(np.arange(len(self)))

    def sizes(self) -> Indices:
        """(C,) images of each identity."""
        return np.diff(self.starts)


def group_by_identity(identities: npt.NDArray[np.int32], usable: Mask | None = None) -> Groups:
    """Orders images by identity; keeps their order within one.

    Where each identity is one run of the list already, nothing is reordered and nothing is stored.

    Args:
        identities: (N,) identity of each image.
        usable: (N,) False for images to leave out altogether; None keeps all.
    """
    rows: Indices | None = None
    if usable is not None and not usable.all():
        rows = np.flatnonzero(usable)
        identities = identities[rows]
    starts = _run_starts(identities)
    firsts = identities[starts]
    if len(np.unique(firsts)) != len(firsts):
        order = np.argsort(identities, kind="stable")
        rows = order if rows is None else rows[order]
        starts = _run_starts(identities[order])
    return Groups(rows, np.append(starts, len(identities)))


def _run_starts(identities: npt.NDArray[np.int32]) -> Indices:
    changes = np.flatnonzero(identities[1:] != identities[:-1]) + 1
    return np.concatenate([np.zeros(min(1, len(identities)), np.int64), changes])


@dataclass(frozen=True)
class Block:
    """Images that are worked on together: whole identities, or a piece of one large identity.

    Attributes:
        start, stop: their positions; a block's row 0 is at `start`.
        starts: (c + 1,) int64, where each of its identities starts, and the end of the last one;
            for a piece, the whole identity's start and end.
        whole: whether it holds whole identities.
    """

    start: int
    stop: int
    starts: Indices
    whole: bool

    def owners(self) -> Indices:
        """(R,) which of its identities each row belongs to."""
        bounds = self.starts.clip(self.start, self.stop)
        return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


@dataclass(frozen=True)
class BlockPlan:
    """All blocks of a set, as arrays.

    Attributes:
        groups: the identities.
        bounds: (B + 1,) positions; block b is bounds[b] .. bounds[b + 1].
        firsts: (B,) the identity that holds bounds[b].
    """

    groups: Groups
    bounds: Indices
    firsts: Indices

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.firsts)

    def block(self, number: int) -> Block:
        """One of the blocks."""
        start, stop = int(self.bounds[number]), int(self.bounds[number + 1])
        last = int(np.searchsorted(self.groups.starts, stop, side="left"))
        starts = self.groups.starts[int(self.firsts[number]) : last + 1]
        return Block(start, stop, starts, bool(starts[0] == start and starts[-1] == stop))

    def share(self, rank: int, size: int) -> range:
        """The blocks of one of `size` processes: about equally many images each."""
        cuts = np.searchsorted(self.bounds, np.arange(size + 1) * (len(self.groups) / size))
        cuts[0], cuts[-1] = 0, len(self)
        return range(int(cuts[rank]), int(cuts[rank + 1]))


def plan_blocks(groups: Groups) -> BlockPlan:
    """Cuts a set into blocks of about BLOCK images, from the identities alone.

    Small identities stay whole and share a block. An identity of more than OWN_BLOCK images, or of
    more than an eighth of the set, is cut into blocks of its own: its negatives are then drawn
    from the others directly.
    """
    sizes = groups.sizes()
    alone = (sizes > OWN_BLOCK) | (sizes * 8 > len(groups))
    key = groups.starts[:-1] // BLOCK
    begins = np.ones(len(sizes), bool)
    begins[1:] = (key[1:] != key[:-1]) | alone[1:] | alone[:-1]
    firsts = np.flatnonzero(begins)
    pieces = np.where(alone[firsts], -(-sizes[firsts] // BLOCK), 1)
    firsts = np.repeat(firsts, pieces)
    piece = np.arange(len(firsts)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    bounds = np.append(groups.starts[firsts] + piece * BLOCK, len(groups))
    return BlockPlan(groups, bounds, firsts)
