"""Which pairs of images are compared, and how similar they are.

There are two sources of pairs. `AllPairs` is every genuine and every impostor pair of a set; the
impostor pairs are streamed. `HeldPairs` is pairs that fit in memory: a verification list, or all
genuine pairs with a random sample of impostors. Both have the same attributes and methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]  # similarities, decision thresholds
Ints = npt.NDArray[np.int64]  # counts
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int32]  # rows of images, identities, levels of scores
Values = npt.NDArray[np.float64]  # scores, shares, rates
AnyFloats = npt.NDArray[np.floating]
AnyInts = npt.NDArray[np.integer]

MAX_GENUINE = 50_000_000  # 12 bytes each; --max-images-per-id makes a larger set fit
_ROWS, _COLUMNS = 1024, 8192  # a block of similarities: 32 MiB of float32
_HELD_BLOCK = 1 << 20
_DRAW_BLOCK = 1 << 16


class Pairs(NamedTuple):
    """P pairs: cosine similarities (P,) float32, and the rows of their images (P,) int32 each."""

    similarity: Floats
    first: Rows
    second: Rows

    def some(self, chosen: slice | AnyInts | Mask) -> Pairs:
        """Some of the pairs: a slice, positions or a mask."""
        return Pairs(self.similarity[chosen], self.first[chosen], self.second[chosen])


@dataclass(frozen=True)
class AllPairs:
    """Every pair of n images: identities (n,) int32 from 0, unit rows (n, D) float32.

    Attributes:
        identities: (n,) int32, 0 to C - 1.
        genuine: all pairs within identities.
        impostors: how many impostor pairs there are.
        sampled: False: no impostor pair is left out.
        watch: called with the number of rows of the similarity matrix that were just computed.
    """

    features: Floats
    identities: Rows
    genuine: Pairs
    impostors: int
    sampled: bool = False
    watch: Callable[[int], object] = lambda _: None

    def impostors_above(self, floor: float) -> Iterator[Pairs]:
        """Impostor pairs with similarity >= floor, in blocks, in the same order every time."""
        count = len(self.features)
        buffer = np.empty(_ROWS * _COLUMNS, np.float32)
        above = np.empty(_ROWS * _COLUMNS, np.bool_)
        for top in range(0, count, _ROWS):
            rows = self.features[top : top + _ROWS]
            for left in range(top, count, _COLUMNS):
                columns = self.features[left : left + _COLUMNS]
                height, width = len(rows), len(columns)
                block = buffer[: height * width].reshape(height, width)
                np.matmul(rows, columns.T, out=block)
                flat, mask = block.ravel(), above[: height * width]
                np.greater_equal(flat, np.float32(floor), out=mask)
                found = np.flatnonzero(mask)
                first = found // width
                second = (found - first * width + left).astype(np.int32)
                first = (first + top).astype(np.int32)
                keep = self.identities[first] != self.identities[second]
                if left < top + height:  # the block crosses the diagonal: each pair once
                    keep &= first < second
                if keep.any():
                    yield Pairs(flat[found[keep]], first[keep], second[keep])
            self.watch(len(rows))

    def sample_impostors(self, images: int, seed: int) -> Pairs:
        """All impostor pairs among `images` random images."""
        count = len(self.features)
        chosen = np.random.default_rng(seed).permutation(count)[:images]
        drawn: Rows = np.sort(chosen).astype(np.int32)
        some = AllPairs(self.features[drawn], self.identities[drawn], self.genuine, 0)
        return joined(
            Pairs(found.similarity, drawn[found.first], drawn[found.second])
            for found in some.impostors_above(-2.0)
        )

    def impostors_by_level(self, level: Rows, levels: int) -> Ints:
        """(levels,) how many impostor pairs have their worse image on each level."""
        return pairs_by_level(self, level, levels) - worse_level_counts(self.genuine, level, levels)


@dataclass(frozen=True)
class HeldPairs:
    """Pairs in memory: a verification list, or all genuine pairs and a sample of impostors.

    Attributes:
        identities: (n,) int32, 0 to C - 1, of the images in the pairs.
        genuine: the genuine pairs.
        listed: the impostor pairs.
        sampled: the impostor pairs are a random sample of those of the n images.
    """

    identities: Rows
    genuine: Pairs
    listed: Pairs
    sampled: bool

    @property
    def impostors(self) -> int:
        """How many impostor pairs there are."""
        return len(self.listed.similarity)

    def impostors_above(self, floor: float) -> Iterator[Pairs]:
        """As AllPairs.impostors_above."""
        for start in range(0, self.impostors, _HELD_BLOCK):
            part = self.listed.some(slice(start, start + _HELD_BLOCK))
            yield part.some(part.similarity >= np.float32(floor))

    def sample_impostors(self, images: int, seed: int) -> Pairs:
        """About images^2 / 2 random impostor pairs."""
        count = images * images // 2
        if count >= self.impostors:
            return self.listed
        drawn = np.sort(np.random.default_rng(seed).integers(self.impostors, size=count))
        return self.listed.some(drawn)

    def impostors_by_level(self, level: Rows, levels: int) -> Ints:
        """As AllPairs.impostors_by_level."""
        return worse_level_counts(self.listed, level, levels)


PairSource: TypeAlias = AllPairs | HeldPairs


def all_pairs(
    features: AnyFloats, identities: AnyInts, watch: Callable[[int], object] = lambda _: None
) -> AllPairs:
    """All genuine and all impostor pairs of a set.

    Args:
        features: (n, D), any float type; rows are scaled to unit length.
        identities: (n,) any integers.
        watch: called with the number of rows that were just compared; the evaluator makes two
            passes over the n rows.

    Raises:
        ValueError: more than MAX_GENUINE genuine pairs, or lengths that differ.
    """
    if len(features) != len(identities):
        raise ValueError(f"{len(features)} embeddings, {len(identities)} identities: must agree")
    rows = unit_rows(features)
    dense = np.unique(identities, return_inverse=True)[1].astype(np.int32)
    genuine = genuine_pairs(rows, dense)
    count = len(rows)
    impostors = count * (count - 1) // 2 - len(genuine.similarity)
    return AllPairs(rows, dense, genuine, impostors, watch=watch)


def sampled_pairs(features: AnyFloats, identities: AnyInts, count: int, seed: int = 0) -> HeldPairs:
    """All genuine pairs, and `count` impostor pairs drawn uniformly, with replacement.

    Arguments and errors as `all_pairs`; also ValueError if there is only one identity.
    """
    whole = all_pairs(features, identities)
    if whole.impostors == 0:
        raise ValueError("there is no impostor pair: at least two identities are needed")
    generator = np.random.default_rng((seed, 0x1A7E))
    drawn = np.empty((2, 0), np.int32)
    while (missing := count - drawn.shape[1]) > 0:  # the rest stays uniform
        more = generator.integers(len(whole.features), size=(2, max(missing, 1024)), dtype=np.int32)
        differ = whole.identities[more[0]] != whole.identities[more[1]]
        drawn = np.concatenate([drawn, more[:, differ][:, :missing]], axis=1)
    # In order of the first image, memory is read in order; the sample is the same.
    first, second = drawn[:, np.argsort(drawn[0], kind="stable")]
    listed = compared(whole.features, first, second)
    return HeldPairs(whole.identities, whole.genuine, listed, sampled=True)


def listed_pairs(
    features: AnyFloats, identities: AnyInts, first: Rows, second: Rows, same: Mask
) -> HeldPairs:
    """The pairs of a verification list: (P,) rows, and whether the list says it is one person.

    Features and identities as `all_pairs`; the bootstrap draws identities.
    """
    rows = unit_rows(features)
    dense = np.unique(identities, return_inverse=True)[1].astype(np.int32)
    pairs = compared(rows, first, second)
    return HeldPairs(dense, pairs.some(same), pairs.some(~same), sampled=False)


def within(source: PairSource, images: Mask) -> PairSource:
    """The pairs among some of the images, (n,); these are numbered anew, and so are identities."""
    if isinstance(source, AllPairs):
        return all_pairs(source.features[images], source.identities[images])
    identities = np.unique(source.identities[images], return_inverse=True)[1].astype(np.int32)
    place = (np.cumsum(images) - 1).astype(np.int32)

    def inside(pairs: Pairs) -> Pairs:
        kept = pairs.some(images[pairs.first] & images[pairs.second])
        return Pairs(kept.similarity, place[kept.first], place[kept.second])

    return HeldPairs(identities, inside(source.genuine), inside(source.listed), source.sampled)


def unit_rows(features: AnyFloats) -> Floats:
    """(n, D) float32 rows of length 1; a copy.

    Raises:
        ValueError: a row that is zero or not finite; the message names it.
    """
    if features.ndim != 2:
        raise ValueError(f"embeddings must be (n, D), got an array of shape {features.shape}")
    rows = np.empty(features.shape, np.float32)
    for start in range(0, len(rows), _COLUMNS):
        block = np.asarray(features[start : start + _COLUMNS], np.float32)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > 0)))
        if len(bad):
            raise ValueError(f"embedding row {start + int(bad[0])} is zero or not finite")
        np.divide(block, length, out=rows[start : start + _COLUMNS])
    return rows


def compared(rows: Floats, first: Rows, second: Rows) -> Pairs:
    """Cosine similarities of given pairs of unit rows."""
    similarity = np.empty(len(first), np.float32)
    for start in range(0, len(first), _DRAW_BLOCK):
        part = slice(start, start + _DRAW_BLOCK)
        similarity[part] = np.einsum("ij,ij->i", rows[first[part]], rows[second[part]])
    return Pairs(similarity, first, second)


def genuine_pairs(rows: Floats, identities: Rows) -> Pairs:
    """All pairs within identities, identity by identity."""
    order = np.argsort(identities, kind="stable").astype(np.int32)
    bounds = np.concatenate([[0], np.cumsum(np.bincount(identities))]).astype(np.int64)
    sizes = np.diff(bounds)
    total = int((sizes * (sizes - 1) // 2).sum())
    if total > MAX_GENUINE:
        raise ValueError(
            f"{total:,} genuine pairs, more than {MAX_GENUINE:,}: the largest identity has"
            f" {sizes.max():,} images; limit the images per identity (--max-images-per-id)"
        )
    pairs = Pairs(np.empty(total, np.float32), np.empty(total, np.int32), np.empty(total, np.int32))
    at = 0
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        members = order[start:stop]
        upper = np.triu_indices(len(members), 1)
        end = at + len(upper[0])
        own = rows[members]
        pairs.similarity[at:end] = (own @ own.T)[upper]
        pairs.first[at:end] = members[upper[0]]
        pairs.second[at:end] = members[upper[1]]
        at = end
    return pairs


def worse_level_counts(pairs: Pairs, level: Rows, levels: int) -> Ints:
    """(levels,) how many of the pairs have their worse image on each level."""
    counts = np.zeros(levels, np.int64)
    for start in range(0, len(pairs.first), _HELD_BLOCK):
        part = slice(start, start + _HELD_BLOCK)
        worse = np.minimum(level[pairs.first[part]], level[pairs.second[part]])
        counts += np.bincount(worse, minlength=levels)
    return counts


def pairs_by_level(source: PairSource, level: Rows, levels: int) -> Ints:
    """(levels,) how many pairs, of both kinds, have their worse image on each level.

    Where impostor pairs are sampled, a share of pairs discarded is a share of all pairs: all count.
    """
    if isinstance(source, HeldPairs) and not source.sampled:
        genuine = worse_level_counts(source.genuine, level, levels)
        return genuine + source.impostors_by_level(level, levels)
    images = np.bincount(level, minlength=levels).astype(np.int64)
    above = len(level) - np.cumsum(images)
    # An image is the worse one in its pairs with all images above its level.
    return np.asarray(images * (images - 1) // 2 + images * above)


def joined(blocks: Iterable[Pairs]) -> Pairs:
    """Blocks of pairs as one."""
    none = np.empty(0, np.int32)
    parts = [Pairs(np.empty(0, np.float32), none, none), *blocks]
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
