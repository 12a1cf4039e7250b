"""Who is compared with whom: identities, fixed blocks of images, and seeded draws.

Images are counted by *position*: the usable images ordered by identity, so that an identity is a
range. A block is a range of positions that depends on the identities alone; all random draws are
keyed by (seed, repeat, block), so they do not depend on how the work is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK = 4096  # images that are worked on together, in HANDS lots that each share their draws
# Images of one identity lie close together: with the same negatives they would all err the same
# way, and the ends of the label range with them. Dealing the images of a block out in turn keeps
# the errors of neighbours apart.
HANDS = 8
OWN_BLOCK = 256  # an identity with more images than this has blocks of its own

Positions = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_NEGATIVES, _POSITIVES = 1, 2  # streams of random numbers
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Groups:
    """Images ordered by identity.

    Attributes:
        rows: (n,) the row of the embeddings at each position; None where position and row agree.
        starts: (C + 1,) int64, identity c is the positions starts[c] .. starts[c + 1].
    """

    rows: npt.NDArray[np.int64] | None
    starts: Positions

    def __len__(self) -> int:
        """The number of images."""
        return int(self.starts[-1])

    def rows_of(self, positions: Positions) -> Positions:
        """Rows of the embeddings."""
        return positions if self.rows is None else self.rows[positions]

    def sizes(self) -> Positions:
        """(C,) images of each identity."""
        return np.diff(self.starts)


def group_by_identity(
    identities: npt.NDArray[np.int32], usable: npt.NDArray[np.bool_] | None = None
) -> Groups:
    """Orders images by identity; keeps their order within one.

    Where a list already holds each identity in one run, nothing is reordered and nothing is stored.

    Args:
        identities: (N,) identity of each image.
        usable: (N,) False for images to leave out altogether; None keeps all.
    """
    rows: Positions | None = None
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


def _run_starts(identities: npt.NDArray[np.int32]) -> Positions:
    changes = np.flatnonzero(identities[1:] != identities[:-1]) + 1
    return np.concatenate([np.zeros(min(1, len(identities)), np.int64), changes])


@dataclass(frozen=True)
class Block:
    """Positions start .. stop: some whole identities, or a piece of one large one.

    Attributes:
        start, stop: positions.
        starts: (c + 1,) int64, the positions at which its identities start, and the last one's
            end; for a piece, the whole identity's start and end.
        whole: whether it holds whole identities.
    """

    start: int
    stop: int
    starts: Positions
    whole: bool

    def bounds(self) -> tuple[Positions, Positions]:
        """Each image's identity: its first position and its end, (stop - start,) each."""
        if not self.whole:
            count = self.stop - self.start
            return np.full(count, self.starts[0]), np.full(count, self.starts[1])
        sizes = np.diff(self.starts)
        return np.repeat(self.starts[:-1], sizes), np.repeat(self.starts[1:], sizes)


@dataclass(frozen=True)
class Plan:
    """All blocks of a set, as arrays.

    Attributes:
        groups: the identities.
        bounds: (B + 1,) positions; block b is bounds[b] .. bounds[b + 1].
        firsts: (B,) the identity that holds bounds[b].
    """

    groups: Groups
    bounds: Positions
    firsts: Positions

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.firsts)

    def block(self, number: int) -> Block:
        """One block."""
        start, stop = int(self.bounds[number]), int(self.bounds[number + 1])
        first = int(self.firsts[number])
        last = int(np.searchsorted(self.groups.starts, stop, side="left"))
        starts = self.groups.starts[first : last + 1]
        whole = bool(starts[0] == start and starts[-1] == stop)
        return Block(start, stop, starts, whole)

    def share(self, rank: int, ranks: int) -> range:
        """The blocks of one rank: about equally many images each."""
        cuts = np.searchsorted(self.bounds, np.arange(ranks + 1) * (len(self.groups) / ranks))
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


def plan_blocks(groups: Groups) -> Plan:
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
    return Plan(groups, bounds, firsts)


@dataclass(frozen=True)
class NegativeDraw:
    """The negatives of one hand of a block: its images hand, hand + HANDS, hand + 2 HANDS, ...

    Attributes:
        positions: (repeats * m + extra,) the shared draws, repeat by repeat, then substitutes.
        patches: (p, 5) repeat, slot, first and end of the images (within the hand), substitute:
            these images have the substitute (a place in `positions`) in that repeat and slot.
    """

    positions: Positions
    patches: Positions


def draw_negatives(
    block: Block, hand: int, images: int, m: int, repeats: int, seed: int
) -> NegativeDraw:
    """Draws m outsiders for each image of a hand and each repeat, without replacement.

    A repeat's draw is the beginning of one random order of all images; every image takes the first
    m of that order that are not of its own identity, which is a uniform draw from its outsiders.

    Args:
        block: the block.
        hand: 0 .. HANDS - 1.
        images: in the whole set.
        m: negatives a repeat.
        repeats: K.
        seed: of the whole run.
    """
    single = len(block.starts) == 2
    own_start, own_stop = int(block.starts[0]), int(block.starts[1])
    count = images - (own_stop - own_start) if single else images
    slots = m + 8
    while True:
        key = np.array([block.start + hand * 2**48])
        order = _uniform(seed, _NEGATIVES, key, repeats, slots, count)[0]
        fresh = first_occurrences(order)
        if single:
            order += np.where(order >= own_start, own_stop - own_start, 0)
        if fresh.sum(axis=1).min() >= m:
            found = _choose(order, fresh, block, hand, m)
            if found is not None:
                return found
        slots *= 2


def _choose(
    order: Positions, fresh: npt.NDArray[np.bool_], block: Block, hand: int, m: int
) -> NegativeDraw | None:
    """The shared draw and its substitutes; None where `order` is too short for an identity."""
    rank = np.cumsum(fresh, axis=1)
    base = fresh & (rank <= m)
    shared = order[base].reshape(len(order), m)
    inside = (shared >= block.start) & (shared < block.stop)
    if len(block.starts) == 2 or not inside.any():
        return NegativeDraw(shared.ravel(), np.empty((0, 5), np.int64))
    extra: dict[int, int] = {}  # position -> place
    patches: list[tuple[int, ...]] = []
    for k in np.flatnonzero(inside.any(axis=1)).tolist():
        slots = np.flatnonzero(inside[k])
        owners = np.searchsorted(block.starts, shared[k, slots], side="right") - 1
        spare = order[k, fresh[k] & (rank[k] > m)]
        for owner in np.unique(owners).tolist():
            start, stop = int(block.starts[owner]), int(block.starts[owner + 1])
            mine = slots[owners == owner].tolist()
            others = spare[(spare < start) | (spare >= stop)][: len(mine)].tolist()
            if len(others) < len(mine):
                return None
            for slot, other in zip(mine, others, strict=True):
                place = extra.setdefault(other, shared.size + len(extra))
                # Image `hand + HANDS * j` of the block is image j of the hand.
                ends = (
                    (bound - block.start - hand + HANDS - 1) // HANDS for bound in (start, stop)
                )
                patches.append((k, slot, *ends, place))
    positions = np.concatenate([shared.ravel(), np.array(list(extra), np.int64)])
    return NegativeDraw(positions, np.array(patches, np.int64))


def draw_positives(starts: Positions, size: int, m: int, repeats: int, seed: int) -> Positions:
    """For identities of one size > m + 1: (g, HANDS, repeats, m + 1) members, all different.

    An image takes the first m of its hand's, with the last in place of itself: a uniform draw from
    its identity's other images. Image i of an identity is of hand i % HANDS.

    Args:
        starts: (g,) first position of each identity.
        size: images of each.
        m: positives a repeat.
        repeats: K.
        seed: of the whole run.
    """
    shape = (len(starts), HANDS, repeats)
    if size <= 4 * (m + 1):
        keys = random_words(seed, _POSITIVES, starts, HANDS * repeats, size)
        members: Positions = np.argsort(keys, axis=-1)[..., : m + 1]
        return members.reshape(*shape, m + 1)
    slots = m + 17
    while True:
        order = _uniform(seed, _POSITIVES, starts, HANDS * repeats, slots, size)
        fresh = first_occurrences(order)
        if fresh.sum(axis=-1).min() > m:
            chosen = fresh & (np.cumsum(fresh, axis=-1) <= m + 1)
            return order[chosen].reshape(*shape, m + 1)
        slots *= 2


def first_occurrences(order: Positions) -> npt.NDArray[np.bool_]:
    """Along the last axis, True where a number is seen for the first time."""
    by_value = np.argsort(order, axis=-1, kind="stable")
    values = np.take_along_axis(order, by_value, axis=-1)
    fresh = np.ones(order.shape, bool)
    np.put_along_axis(fresh, by_value[..., 1:], values[..., 1:] != values[..., :-1], axis=-1)
    return fresh


def _uniform(
    seed: int, stream: int, keys: Positions, repeats: int, slots: int, count: int
) -> Positions:
    """(len(keys), repeats, slots) integers, uniform in 0 .. count - 1; more slots begin alike."""
    words = random_words(seed, stream, keys, repeats, slots)
    return ((words >> np.uint64(11)) * (2.0**-53 * count)).astype(np.int64)


def random_words(seed: int, stream: int, keys: Positions, repeats: int, slots: int) -> _Words:
    """(len(keys), repeats, slots) random 64-bit words, each a function of its own coordinates.

    A counter put through SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014; constants of
    Stafford's mix 13), coordinate by coordinate: no state, so any part can be had alone.
    """
    words = np.array([seed % 2**64], np.uint64)
    words = _mixed(_mixed(words, np.array([stream])), keys)
    words = _mixed(words[:, None], np.arange(repeats))
    return _mixed(words[:, :, None], np.arange(slots))


def _mixed(words: _Words, coordinate: Positions) -> _Words:
    """One more coordinate hashed in; the shapes broadcast."""
    words = words + (coordinate.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
