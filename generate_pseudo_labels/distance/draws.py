"""Seeded draws: who is compared with whom, a function of the seed and the identities alone.

All draws are keyed by (seed, repeat, block or identity), so they do not depend on how the work is
split or on the device.
"""

from __future__ import annotations

import numpy as np

from dataset.lists import place_in_group
from generate_pseudo_labels.distance.array_backend import (
    Array,
    Arrays,
    Indices,
    Mask,
    NumpyArrays,
)
from generate_pseudo_labels.distance.blocks import BlockBatch

# The images of a block are dealt in turn to this many groups; a group shares its negatives. Images
# that share negatives share the sampling error, and images of one identity have similar embeddings:
# in one group, a whole identity would be wrong the same way, at the ends of the label range too.
NEGATIVE_GROUPS = 8

_NEGATIVES, _POSITIVES = 1, 2  # streams of random numbers
# Sixty-four bit constants as the signed numbers that both array libraries multiply by.
_GOLDEN, _MIX_1, _MIX_2 = (
    bits - 2**64 for bits in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def draw_negatives(
    batch: BlockBatch, images: int, m: int, repeats: int, seed: int
) -> tuple[Indices, Indices]:
    """Draws m outsiders for each image of a batch and each repeat, without replacement.

    A repeat's draw is the beginning of one random order of all images. Every image takes the first
    m of that order that are not of its own identity, which is a uniform draw from its outsiders.
    `images` counts those of the whole set. Group g of a block: images g, g + NEGATIVE_GROUPS, ...

    Returns:
        (B * NEGATIVE_GROUPS, repeats, m) positions, block by block and group by group; and (p, 6)
        replacements: group of the batch, repeat, slot, first and end of the images (within the
        group), position. These images have that position in that slot, since the shared one is of
        their own identity.
    """
    blocks = batch.blocks
    group = np.tile(np.arange(NEGATIVE_GROUPS), len(blocks))
    keys = np.repeat([block.start for block in blocks], NEGATIVE_GROUPS) + group * 2**48
    # A block of one identity draws from the others only: the numbers skip its own images.
    alone = [len(block.starts) == 2 for block in blocks]
    own = np.array([block.starts[:2] for block in blocks]) * np.array(alone)[:, None]
    own_start, own_size = np.repeat([own[:, 0], own[:, 1] - own[:, 0]], NEGATIVE_GROUPS, axis=1)
    shared = np.empty((len(keys), repeats, m), np.int64)
    replacements = [np.empty((0, 6), np.int64)]
    todo, slots = np.arange(len(keys)), m + 8
    while len(todo):
        counts = images - own_size[todo, None, None]
        order = _uniform(seed, _NEGATIVES, keys[todo], repeats, slots, counts)
        fresh = first_occurrences(order)
        order += np.where(order >= own_start[todo, None, None], own_size[todo, None, None], 0)
        enough = fresh.sum(axis=2).min(axis=1) >= m
        order, fresh, drawn = order[enough], fresh[enough], todo[enough]
        rank = np.cumsum(fresh, axis=2)
        shared[drawn] = order[fresh & (rank <= m)].reshape(-1, repeats, m)
        found, short = _replacements(batch, drawn, shared[drawn], order, fresh & (rank > m))
        replacements.append(found)
        todo, slots = np.union1d(todo[~enough], short), slots * 2
    return shared, np.concatenate(replacements)


def _replacements(
    batch: BlockBatch, groups: Indices, shared: Indices, order: Indices, spare: Mask
) -> tuple[Indices, Indices]:
    """The replacements of some groups, and those groups whose spare draws are too few for them.

    Args:
        batch: the blocks.
        groups: (h,) numbers of the groups within the batch.
        shared: (h, K, m) their draws.
        order: (h, K, slots) positions in the order drawn.
        spare: (h, K, slots) those that come after the shared ones.
    """
    start = np.array([block.start for block in batch.blocks])[groups // NEGATIVE_GROUPS]
    stop = np.array([block.stop for block in batch.blocks])[groups // NEGATIVE_GROUPS]
    inside = (shared >= start[:, None, None]) & (shared < stop[:, None, None])
    at, k, slot = np.nonzero(inside)
    owner = np.searchsorted(batch.starts, shared[at, k, slot], side="right") - 1
    # Of one repeat's draws of one identity, the j-th takes the j-th spare draw of other identities.
    case = (at * shared.shape[1] + k) * len(batch.starts) + owner
    j = place_in_group(case)
    own_start, own_stop = batch.starts[owner], batch.stops[owner]
    others = order[at, k]  # (p, slots)
    allowed = spare[at, k] & ((others < own_start[:, None]) | (others >= own_stop[:, None]))
    reached = np.cumsum(allowed, axis=1) > j[:, None]
    short = np.unique(at[~reached[:, -1]])
    position = others[np.arange(len(at)), np.argmax(reached, axis=1)]
    # Image `group + NEGATIVE_GROUPS * i` of the block is image i of the group.
    shift = NEGATIVE_GROUPS - 1 - start[at] - groups[at] % NEGATIVE_GROUPS
    first, end = (own_start + shift) // NEGATIVE_GROUPS, (own_stop + shift) // NEGATIVE_GROUPS
    found = np.stack([groups[at], k, slot, first, end, position], axis=1)
    return found[~np.isin(at, short)], groups[short]


def draw_positives(
    arrays: Arrays, starts: Indices, size: int, m: int, repeats: int, seed: int
) -> Array:
    """For identities of one size > m: (g, NEGATIVE_GROUPS, repeats, m + 1) different members.

    Image i of an identity is of group i % NEGATIVE_GROUPS. It takes the first m members of its
    group, and the last in place of itself: a uniform draw from its identity's other images.
    `starts`, (g,), are the identities' first positions, `size` is how many images each has. The
    draws are the same on every device.
    """
    shape = (len(starts), NEGATIVE_GROUPS, repeats, m + 1)
    if size <= 4 * (m + 1):
        # Members sorted by random numbers: the last bits of each number say whose it is.
        mask = 2 ** (size - 1).bit_length() - 1
        words = random_words(arrays, seed, _POSITIVES, starts, NEGATIVE_GROUPS * repeats, size)
        words &= ~mask
        words |= arrays.device(np.arange(size))
        return (arrays.sort(words)[..., : m + 1] & mask).reshape(*shape)
    slots = m + 17
    while True:
        order = _uniform(seed, _POSITIVES, starts, NEGATIVE_GROUPS * repeats, slots, np.array(size))
        fresh = first_occurrences(order)
        if fresh.sum(axis=-1).min() > m:
            chosen = fresh & (np.cumsum(fresh, axis=-1) <= m + 1)
            return arrays.device(order[chosen].reshape(shape))
        slots *= 2


def first_occurrences(order: Indices) -> Mask:
    """Along the last axis, True where a number is seen for the first time."""
    by_value = np.argsort(order, axis=-1, kind="stable")
    values = np.take_along_axis(order, by_value, axis=-1)
    fresh = np.ones(order.shape, bool)
    np.put_along_axis(fresh, by_value[..., 1:], values[..., 1:] != values[..., :-1], axis=-1)
    return fresh


def _uniform(
    seed: int, stream: int, keys: Indices, repeats: int, slots: int, counts: Indices
) -> Indices:
    """(len(keys), repeats, slots) integers, uniform in 0 .. count - 1.

    More slots give the same first numbers.
    """
    words = random_words(NumpyArrays(), seed, stream, keys, repeats, slots)
    uniform: Indices = (_shifted(words, 11) * (2.0**-53 * counts)).astype(np.int64)
    return uniform


def random_words(
    arrays: Arrays, seed: int, stream: int, keys: Indices, repeats: int, slots: int
) -> Array:
    """(len(keys), repeats, slots) random 64-bit words, each a function of its own coordinates.

    A counter put through SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014; constants of
    Stafford's mix 13), coordinate by coordinate. There is no state, so any part can be computed
    alone and on any device.
    """
    words = np.array([seed % 2**64], np.uint64).view(np.int64)
    words = _mixed(_mixed(words, np.array([stream])), keys)
    words = _mixed(words[:, None], np.arange(repeats))
    # Only the last step is large; the others are not worth starting kernels on a GPU.
    return _mixed(arrays.device(words)[:, :, None], arrays.device(np.arange(slots)))


def _mixed(words: Array, coordinate: Array) -> Array:
    """One more coordinate hashed in; the shapes broadcast."""
    words = words + (coordinate + 1) * _GOLDEN
    words ^= _shifted(words, 30)
    words *= _MIX_1
    words ^= _shifted(words, 27)
    words *= _MIX_2
    words ^= _shifted(words, 31)
    return words


def _shifted(words: Array, bits: int) -> Array:
    """Shifted right with zeros moving in. The words are signed, since torch has no other."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
