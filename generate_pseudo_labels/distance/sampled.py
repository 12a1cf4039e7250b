"""The published estimator: K repeats of W1 between m drawn positives and m drawn negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from generate_pseudo_labels.distance.array_backend import Array, Indices
from generate_pseudo_labels.distance.blocks import Block, BlockBatch, counted
from generate_pseudo_labels.distance.draws import NEGATIVE_GROUPS, draw_negatives, draw_positives
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, similarities_within
from generate_pseudo_labels.distance.results import Distances
from generate_pseudo_labels.distance.wasserstein import negative_excess

_REPLACED = 8192  # similarities to replacements that are computed at a time


@dataclass(frozen=True)
class _Work:
    """What is known of a batch's R images; the last two are filled in identity by identity.

    Attributes:
        batch: the images.
        faces: (R, D) their unit rows.
        negatives: (K, m, R) similarities to the drawn negatives.
        highest_n: (K, R) the largest of them.
        mean_p: (K, R) mean similarity to the drawn positives.
        excess: (K, R) integral (N^-1 - P^-1)+; 0 unless a positive is below a negative.
    """

    batch: BlockBatch
    faces: Array
    negatives: Array
    highest_n: Array
    mean_p: Array
    excess: Array


@dataclass(frozen=True)
class SampledEstimator:
    """Distances of whole blocks of images from seeded draws.

    The images of a block share their draw of negatives, which therefore costs one matrix product.
    Every image's draw is still uniform over its own outsiders.
    """

    embedded: EmbeddedSet
    m: int
    repeats: int
    seed: int

    def distances(self, batch: BlockBatch) -> Distances:
        """Distances of the images of consecutive blocks; NaN for the only image of an identity."""
        arrays = self.embedded.arrays
        xp = arrays.xp
        faces = self.embedded.span(batch.begin, batch.end)  # (R, D)
        negatives = self._negatives(batch, faces)  # (K, m, R)
        mean_n = negatives.sum(1) / self.m  # (K, R)
        mean_p, excess = xp.full_like(mean_n, float("nan")), xp.zeros_like(mean_n)
        work = _Work(batch, faces, negatives, xp.amax(negatives, 1), mean_p, excess)
        for rows, gram in similarities_within(arrays, batch.blocks, faces):
            size = rows.shape[1]
            if size <= self.m + 1:
                self._all_positives(rows, gram, work)
            else:
                starts = rows[:, 0] + batch.begin
                draws = draw_positives(arrays, starts, size, self.m, self.repeats, self.seed)
                places = np.arange(size)
                drawn = draws[:, arrays.device(places % NEGATIVE_GROUPS)]  # (g, s, K, m + 1)
                identity = arrays.device(np.arange(len(gram))[:, None, None, None])
                image = arrays.device(places[:, None, None])
                similarities = gram[identity, image, drawn]  # (g, s, K, m + 1)
                self._drawn_positives(rows, similarities, drawn, places, work)
        for block in batch.blocks:
            if not block.whole:
                self._piece(block, work)
        w1 = (mean_p - mean_n + 2 * excess).clip(0)  # (K, R)
        total = w1.sum(0)
        share = xp.where(total > 0, excess.sum(0) / xp.where(total > 0, total, 1.0), 0.0)
        return Distances(
            np.ascontiguousarray(arrays.host(w1).T),
            arrays.host(mean_p.sum(0) / self.repeats),
            arrays.host(mean_n.sum(0) / self.repeats),
            arrays.host(share),
        )

    def _negatives(self, batch: BlockBatch, faces: Array) -> Array:
        """(K, m, R) similarities of all images to their negatives."""
        arrays = self.embedded.arrays
        images = len(self.embedded.groups)
        shared, replacements = draw_negatives(batch, images, self.m, self.repeats, self.seed)
        drawn = np.concatenate([shared.ravel(), replacements[:, 5]])
        others = self.embedded.at(drawn)
        negatives = arrays.empty((self.repeats, self.m, len(faces)))
        each = self.repeats * self.m
        for number in range(len(shared)):
            block = batch.blocks[number // NEGATIVE_GROUPS]
            first = block.start + number % NEGATIVE_GROUPS
            span = slice(first - batch.begin, block.stop - batch.begin, NEGATIVE_GROUPS)
            products = others[number * each : (number + 1) * each] @ faces[span].T
            negatives[:, :, span] = products.reshape(self.repeats, self.m, -1)
        # Similarities to the replacements, in place of those to the own identity.
        others = others[shared.size :]
        groups, k, slots, firsts, ends, _ = replacements.T
        which, image = counted(firsts, ends - firsts)
        starts = np.array([block.start - batch.begin for block in batch.blocks])
        group = groups[which]
        rows = starts[group // NEGATIVE_GROUPS] + group % NEGATIVE_GROUPS + NEGATIVE_GROUPS * image
        for begin in range(0, len(which), _REPLACED):
            some = which[begin : begin + _REPLACED]
            row = arrays.device(rows[begin : begin + _REPLACED])
            similarities = arrays.xp.einsum("ij,ij->i", faces[row], others[arrays.device(some)])
            at = arrays.device(np.stack([k[some], slots[some]]))
            negatives[at[0], at[1], row] = similarities
        return negatives

    def _all_positives(self, of: Indices, gram: Array, work: _Work) -> None:
        """Identities of at most m + 1 images, whose rows are `of`: each repeat takes all mates."""
        arrays = self.embedded.arrays
        xp, size = arrays.xp, of.shape[1]
        diagonal = arrays.device(np.arange(size))
        own = gram[:, diagonal, diagonal]
        rows = arrays.device(of)
        work.mean_p[:, rows] = ((gram.sum(1) - own) / (size - 1))[None]
        gram[:, diagonal, diagonal] = float("inf")
        pairs = xp.argwhere(work.highest_n[:, rows] > xp.amin(gram, 1))  # (k, identity, image)
        if len(pairs) == 0:
            return
        k, identity, image = pairs[:, 0], pairs[:, 1], pairs[:, 2]
        row = rows[identity, image]
        p = arrays.sort(gram[identity, image])[:, : size - 1]
        n = arrays.sort(work.negatives[k, :, row])
        work.excess[k, row] = negative_excess(arrays, p, n)

    def _piece(self, block: Block, work: _Work) -> None:
        """A piece of an identity too large for one block: only its drawn images are read."""
        arrays = self.embedded.arrays
        start, size = int(block.starts[0]), int(block.starts[1] - block.starts[0])
        m = min(self.m, size - 1)  # all mates, where there are no more
        begin = work.batch.begin
        drawn = draw_positives(arrays, block.starts[:1], size, m, self.repeats, self.seed)
        places = arrays.host(drawn)
        for group in range(NEGATIVE_GROUPS):
            first = block.start + (group - (block.start - start)) % NEGATIVE_GROUPS
            images = np.arange(first, block.stop, NEGATIVE_GROUPS)
            if len(images) == 0:
                continue
            members = self.embedded.at(start + places[0, group].ravel())  # (K (m + 1), D)
            similarities = (
                work.faces[first - begin : block.stop - begin : NEGATIVE_GROUPS] @ members.T
            )
            self._drawn_positives(
                images[None] - begin,
                similarities.reshape(1, len(images), *drawn.shape[2:]),
                drawn[:, group, None],
                images - start,
                work,
            )

    def _drawn_positives(
        self,
        group_rows: Indices,
        similarities: Array,
        drawn: Array,
        places: Indices,
        work: _Work,
    ) -> None:
        """Images with m mates or more: m of them a repeat, the last drawn in place of itself.

        Args:
            group_rows: (g, s) rows of the images.
            similarities: (g, s, K, m + 1) to the drawn members.
            drawn: (g, s or 1, K, m + 1) their places within the identity.
            places: (s,) the images' own places.
            work: filled in.
        """
        arrays, m = self.embedded.arrays, drawn.shape[-1] - 1
        xp = arrays.xp
        itself = drawn[..., :m] == arrays.device(places)[None, :, None, None]
        p = xp.where(itself, similarities[..., m:], similarities[..., :m])  # (g, s, K, m)
        rows = arrays.device(group_rows)
        work.mean_p[:, rows] = xp.moveaxis(p.sum(3) / m, 2, 0)
        highest = xp.moveaxis(work.highest_n[:, rows], 0, 2)  # (g, s, K)
        pairs = xp.argwhere(highest > xp.amin(p, 3))
        if len(pairs) == 0:
            return
        identity, image, k = pairs[:, 0], pairs[:, 1], pairs[:, 2]
        row = rows[identity, image]
        n = arrays.sort(work.negatives[k, :, row])
        work.excess[k, row] = negative_excess(arrays, arrays.sort(p[identity, image, k]), n)
