"""Identities as ranges of positions, and the fixed blocks of images that work is cut into.

Images are counted by *position*: the usable images ordered by identity, so that an identity is a
range. A block is a range of positions. It depends on the identities alone, so results that are
computed by blocks do not depend on how the work is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.array_backend import Indices, Mask

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
    Both are (N,); images that are not `usable` are left out altogether.
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
    """Positions start .. stop: some whole identities, or a piece of one large one.

    Attributes:
        start, stop: positions.
        starts: (c + 1,) int64, where each of its identities starts, and the end of the last one;
            for a piece, the whole identity's start and end.
        whole: whether it holds whole identities.
    """

    start: int
    stop: int
    starts: Indices
    whole: bool


@dataclass(frozen=True)
class BlockBatch:
    """Consecutive blocks that are worked on together; their images are its rows.

    Attributes:
        blocks: the blocks.
        starts, stops: (I,) the positions of each identity; one entry for each piece of a cut one.
        rows: (I + 1,) the first row of each entry, and the end.
        begin, end: the position of the first row, and the one after the last row.
    """

    blocks: list[Block]
    starts: Indices
    stops: Indices
    rows: Indices
    begin: int
    end: int

    def owners(self) -> Indices:
        """(R,) the entry of `starts` that each row belongs to."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.rows))


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

    def batch(self, numbers: range) -> BlockBatch:
        """Consecutive blocks as a batch."""
        blocks = []
        for number in numbers:
            start, stop = int(self.bounds[number]), int(self.bounds[number + 1])
            last = int(np.searchsorted(self.groups.starts, stop, side="left"))
            of_block = self.groups.starts[int(self.firsts[number]) : last + 1]
            whole = bool(of_block[0] == start and of_block[-1] == stop)
            blocks.append(Block(start, stop, of_block, whole))
        begin, end = blocks[0].start, blocks[-1].stop
        starts = np.concatenate([block.starts[:-1] for block in blocks])
        stops = np.concatenate([block.starts[1:] for block in blocks])
        firsts = [np.maximum(block.starts[:-1], block.start) for block in blocks]
        rows = np.append(np.concatenate(firsts), end) - begin
        return BlockBatch(blocks, starts, stops, rows, begin, end)

    def share(self, rank: int, size: int) -> range:
        """The blocks of one of `size` processes: about equally many images each."""
        cuts = np.searchsorted(self.bounds, np.arange(size + 1) * (len(self.groups) / size))
        cuts[0], cuts[-1] = 0, len(self)
        return range(int(cuts[rank]), int(cuts[rank + 1]))

    def batches(self, blocks: range, rows: int) -> Iterator[range]:
        """Consecutive blocks of together about `rows` images (at least one block)."""
        first = blocks.start
        while first < blocks.stop:
            reach = int(np.searchsorted(self.bounds, self.bounds[first] + rows, side="right")) - 1
            last = min(max(reach, first + 1), blocks.stop)
            yield range(first, last)
            first = last


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
    which, piece = counted(0, pieces)
    bounds = np.append(groups.starts[firsts[which]] + piece * BLOCK, len(groups))
    return BlockPlan(groups, bounds, firsts[which])


def counted(starts: Indices | int, counts: Indices) -> tuple[Indices, Indices]:
    """The ranges starts[i] .. starts[i] + counts[i] one after the other: each i, and its number."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts - starts, counts)
