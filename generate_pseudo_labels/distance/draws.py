"""Seeded draws: who is compared with whom, a function of the seed and the identities alone.

All draws are keyed by (seed, repeat, block or identity), so they do not depend on how the work is
split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataset.lists import place_in_group
from generate_pseudo_labels.distance import Indices, Mask
from generate_pseudo_labels.distance.blocks import Block

Words = npt.NDArray[np.uint64]

# The images of a block are dealt in turn to this many groups; a group shares its negatives. Images
# that share negatives share the sampling error, and images of one identity have similar embeddings:
# in one group, a whole identity would be wrong the same way, at the ends of the label range too.
NEGATIVE_GROUPS = 8

_NEGATIVES, _POSITIVES = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class NegativeDraws:
    """The negatives of the groups of a block: images g, g + NEGATIVE_GROUPS, ... are group g.

    Attributes:
        shared: (NEGATIVE_GROUPS, repeats, m) positions.
        replacements: (p, 6) group, repeat, slot, first and end of the images (within the group),
            position. These images have that position in that slot, since the shared one is of
            their own identity.
    """

    shared: Indices
    replacements: Indices


def draw_negatives(block: Block, images: int, m: int, repeats: int, seed: int) -> NegativeDraws:
    """Draws m outsiders for each image of a block and each repeat, without replacement.

    A repeat's draw is the beginning of one random order of all images. Every image takes the first
    m of that order that are not of its own identity, which is a uniform draw from its outsiders.

    Args:
        block: the images.
        images: in the whole set.
        m: negatives a repeat.
        repeats: K.
        seed: of the whole run.
    """
    keys = block.start + np.arange(NEGATIVE_GROUPS) * 2**48
    # A block of one identity draws from the others only: the numbers skip its own images.
    alone = len(block.starts) == 2
    own_start, own_size = (block.starts[0], np.diff(block.starts)[0]) if alone else (0, 0)
    shared = np.empty((NEGATIVE_GROUPS, repeats, m), np.int64)
    replacements = [np.empty((0, 6), np.int64)]
    todo, slots = np.arange(NEGATIVE_GROUPS), m + 8
    while len(todo):
        order = _uniform(seed, _NEGATIVES, keys[todo], repeats, slots, images - own_size)
        fresh = first_occurrences(order)
        order += np.where(order >= own_start, own_size, 0)
        enough = fresh.sum(axis=2).min(axis=1) >= m
        order, fresh, drawn = order[enough], fresh[enough], todo[enough]
        rank = np.cumsum(fresh, axis=2)
        shared[drawn] = order[fresh & (rank <= m)].reshape(-1, repeats, m)
        found, short = _replacements(block, drawn, shared[drawn], order, fresh & (rank > m))
        replacements.append(found)
        todo, slots = np.union1d(todo[~enough], short), slots * 2
    return NegativeDraws(shared, np.concatenate(replacements))


def _replacements(
    block: Block, groups: Indices, shared: Indices, order: Indices, spare: Mask
) -> tuple[Indices, Indices]:
    """The replacements of h groups, and those groups whose spare draws are too few for them.

    Takes their (h, K, m) draws, the (h, K, slots) positions in the order drawn, and which of these
    come after the shared ones.
    """
    at, k, slot = np.nonzero((shared >= block.start) & (shared < block.stop))
    owner = np.searchsorted(block.starts, shared[at, k, slot], side="right") - 1
    # Of one repeat's draws of one identity, the j-th takes the j-th spare draw of other identities.
    j = place_in_group((at * shared.shape[1] + k) * len(block.starts) + owner)
    own_start, own_stop = block.starts[owner], block.starts[owner + 1]
    others = order[at, k]  # (p, slots)
    allowed = spare[at, k] & ((others < own_start[:, None]) | (others >= own_stop[:, None]))
    reached = np.cumsum(allowed, axis=1) > j[:, None]
    short = np.unique(at[~reached[:, -1]])
    position = others[np.arange(len(at)), np.argmax(reached, axis=1)]
    # Image `group + NEGATIVE_GROUPS * i` of the block is image i of the group.
    shift = NEGATIVE_GROUPS - 1 - block.start - groups[at]
    first, end = (own_start + shift) // NEGATIVE_GROUPS, (own_stop + shift) // NEGATIVE_GROUPS
    found = np.stack([groups[at], k, slot, first, end, position], axis=1)
    return found[~np.isin(at, short)], groups[short]


def draw_positives(starts: Indices, size: int, m: int, repeats: int, seed: int) -> Indices:
    """For identities of one size > m: (g, NEGATIVE_GROUPS, repeats, m + 1) different members.

    Image i of an identity is of group i % NEGATIVE_GROUPS. It takes the first m members of its
    group, and the last in place of itself: a uniform draw from its identity's other images.

    Args:
        starts: (g,) first position of each identity.
        size: images of each.
        m: positives a repeat.
        repeats: K.
        seed: of the whole run.
    """
    shape = (len(starts), NEGATIVE_GROUPS, repeats, m + 1)
    if size <= 4 * (m + 1):
        # Members sorted by random numbers: the last bits of each number say whose it is.
        mask = 2 ** (size - 1).bit_length() - 1
        words = random_words(seed, _POSITIVES, starts, NEGATIVE_GROUPS * repeats, size)
        numbers: Indices = words.view(np.int64) & ~mask | np.arange(size)
        numbers.sort(axis=-1)
        return np.reshape(numbers[..., : m + 1] & mask, shape)
    slots = m + 17
    while True:
        order = _uniform(seed, _POSITIVES, starts, NEGATIVE_GROUPS * repeats, slots, size)
        fresh = first_occurrences(order)
        if fresh.sum(axis=-1).min() > m:
            chosen = fresh & (np.cumsum(fresh, axis=-1) <= m + 1)
            return order[chosen].reshape(shape)
        slots *= 2


def first_occurrences(order: Indices) -> Mask:
    """Along the last axis, True where a number is seen for the first time."""
    by_value = np.argsort(order, axis=-1, kind="stable")
    values = np.take_along_axis(order, by_value, axis=-1)
    fresh = np.ones(order.shape, bool)
    np.put_along_axis(fresh, by_value[..., 1:], values[..., 1:] != values[..., :-1], axis=-1)
    return fresh


def _uniform(
    seed: int, stream: int, keys: Indices, repeats: int, slots: int, count: int
) -> Indices:
    """(len(keys), repeats, slots) integers, uniform in 0 .. count - 1.

    More slots give the same first numbers.
    """
    words = random_words(seed, stream, keys, repeats, slots)
    uniform: Indices = ((words >> 11) * (2.0**-53 * count)).astype(np.int64)
    return uniform


def random_words(seed: int, stream: int, keys: Indices, repeats: int, slots: int) -> Words:
    """(len(keys), repeats, slots) random 64-bit words, each a function of its own coordinates.

    A counter put through SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014; constants of
    Stafford's mix 13), coordinate by coordinate. There is no state, so any part can be computed
    alone.
    """
    words = _mixed(np.array([seed % 2**64], np.uint64), np.array([stream]))
    words = _mixed(_mixed(words, keys)[:, None], np.arange(repeats))
    return _mixed(words[:, :, None], np.arange(slots))


def _mixed(words: Words, coordinate: Indices) -> Words:
    """One more coordinate hashed in; the shapes broadcast."""
    words = words + (coordinate + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> 30
    words *= 0xBF58476D1CE4E5B9
    words ^= words >> 27
    words *= 0x94D049BB133111EB
    words ^= words >> 31
    return words
