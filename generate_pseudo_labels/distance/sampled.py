"""The published estimator: K repeats of W1 between m drawn positives and m drawn negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from generate_pseudo_labels.distance import Float32, Indices
from generate_pseudo_labels.distance.blocks import Block, BlockPlan
from generate_pseudo_labels.distance.draws import NEGATIVE_GROUPS, draw_negatives, draw_positives
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, SameSize, by_size
from generate_pseudo_labels.distance.results import Distances
from generate_pseudo_labels.distance.wasserstein import negative_excess, ragged

_REPLACED = 8192  # similarities to replacements that are computed at a time


@dataclass(frozen=True)
class _Work:
    """What is known of a block's R images; the last two are filled in identity by identity.

    Attributes:
        block: the images.
        faces: (R, D) their unit rows.
        negatives: (K, m, R) similarities to the drawn negatives.
        highest_n: (K, R) the largest of them.
        mean_p: (K, R) mean similarity to the drawn positives.
        excess: (K, R) integral (N^-1 - P^-1)+; 0 unless a positive is below a negative.
    """

    block: Block
    faces: Float32
    negatives: Float32
    highest_n: Float32
    mean_p: Float32
    excess: Float32


@dataclass(frozen=True)
class SampledEstimator:
    """Distances of whole blocks of images from seeded draws.

    The images of a block share their draw of negatives, which therefore costs one matrix product.
    Every image's draw is still uniform over its own outsiders.
    """

    embedded: EmbeddedSet
    plan: BlockPlan
    m: int
    repeats: int
    seed: int

    def distances(self, block: Block) -> Distances:
        """Distances of the images of a block; NaN for the only image of an identity."""
        faces = self.embedded.span(block.start, block.stop)  # (R, D)
        negatives = self._negatives(block, faces)  # (K, m, R)
        mean_n = negatives.sum(1) / self.m  # (K, R)
        mean_p, excess = np.full_like(mean_n, np.nan), np.zeros_like(mean_n)
        work = _Work(block, faces, negatives, negatives.max(1), mean_p, excess)
        for group in by_size(block):
            members, size = group.of(faces), group.rows.shape[1]  # (g, s, D)
            gram = np.matmul(members, np.swapaxes(members, 1, 2))  # (g, s, s)
            if size <= self.m + 1:
                self._all_positives(group, gram, work)
            else:
                starts = group.starts + block.start
                draws = draw_positives(starts, size, self.m, self.repeats, self.seed)
                places = np.arange(size)
                drawn = draws[:, places % NEGATIVE_GROUPS]  # (g, s, K, m + 1)
                identity = np.arange(len(gram))[:, None, None, None]
                similarities = gram[identity, places[:, None, None], drawn]  # (g, s, K, m + 1)
                self._drawn_positives(group.rows, similarities, drawn, places, work)
        if not block.whole:
            self._piece(work)
        w1 = (mean_p - mean_n + 2 * excess).clip(0)  # (K, R)
        total = w1.sum(0)
        share = np.where(total > 0, excess.sum(0) / np.where(total > 0, total, 1), 0)
        return Distances(
            np.ascontiguousarray(w1.T),
            mean_p.sum(0) / self.repeats,
            mean_n.sum(0) / self.repeats,
            share.astype(np.float32),
        )

    def _negatives(self, block: Block, faces: Float32) -> Float32:
        """(K, m, R) similarities of all images to their negatives."""
        draws = draw_negatives(block, len(self.plan.groups), self.m, self.repeats, self.seed)
        others = self.embedded.at(np.append(draws.shared, draws.replacements[:, 5]))
        negatives = np.empty((self.repeats, self.m, len(faces)), np.float32)
        each = self.repeats * self.m
        for group in range(NEGATIVE_GROUPS):
            span = slice(group, None, NEGATIVE_GROUPS)
            products = others[group * each : (group + 1) * each] @ faces[span].T
            negatives[:, :, span] = products.reshape(self.repeats, self.m, -1)
        # Similarities to the replacements, in place of those to the own identity.
        others = others[draws.shared.size :]
        groups, k, slots, firsts, ends, _ = draws.replacements.T
        which, image = ragged(ends - firsts)
        rows = groups[which] + NEGATIVE_GROUPS * (firsts[which] + image)
        for begin in range(0, len(which), _REPLACED):
            some, row = which[begin : begin + _REPLACED], rows[begin : begin + _REPLACED]
            similarities = np.einsum("ij,ij->i", faces[row], others[some])
            negatives[k[some], slots[some], row] = similarities
        return negatives

    def _all_positives(self, group: SameSize, gram: Float32, work: _Work) -> None:
        """Identities of at most m + 1 images: every repeat takes all positives."""
        size, rows = gram.shape[1], group.rows
        diagonal = np.arange(size)
        own = gram[:, diagonal, diagonal]
        work.mean_p[:, rows] = (gram.sum(1) - own) / (size - 1)
        gram[:, diagonal, diagonal] = np.inf
        k, identity, image = np.nonzero(work.highest_n[:, rows] > gram.min(1))
        if len(k):
            row = rows[identity, image]
            p = np.sort(gram[identity, image])[:, : size - 1]
            work.excess[k, row] = negative_excess(p, np.sort(work.negatives[k, :, row]))

    def _piece(self, work: _Work) -> None:
        """A piece of an identity too large for one block: only its drawn images are read."""
        block = work.block
        start, size = int(block.starts[0]), int(np.diff(block.starts)[0])
        m = min(self.m, size - 1)  # all mates, where there are no more
        drawn = draw_positives(block.starts[:1], size, m, self.repeats, self.seed)
        for group in range(NEGATIVE_GROUPS):
            first = (group - (block.start - start)) % NEGATIVE_GROUPS
            rows = np.arange(first, len(work.faces), NEGATIVE_GROUPS)
            if len(rows) == 0:
                continue
            members = self.embedded.at(start + drawn[0, group].ravel())  # (K (m + 1), D)
            similarities = work.faces[first::NEGATIVE_GROUPS] @ members.T
            self._drawn_positives(
                rows[None],
                similarities.reshape(1, len(rows), *drawn.shape[2:]),
                drawn[:, group, None],
                rows + block.start - start,
                work,
            )

    def _drawn_positives(
        self, rows: Indices, similarities: Float32, drawn: Indices, places: Indices, work: _Work
    ) -> None:
        """Images with m mates or more: m of them a repeat, the last drawn in place of itself.

        Args:
            rows: (g, s) of the images.
            similarities: (g, s, K, m + 1) to the drawn members.
            drawn: (g, s or 1, K, m + 1) their places within the identity.
            places: (s,) the images' own places.
            work: filled in.
        """
        m = drawn.shape[-1] - 1
        itself = drawn[..., :m] == places[None, :, None, None]
        p = np.where(itself, similarities[..., m:], similarities[..., :m])  # (g, s, K, m)
        work.mean_p[:, rows] = np.moveaxis(p.sum(3) / m, 2, 0)
        highest = np.moveaxis(work.highest_n[:, rows], 0, 2)  # (g, s, K)
        identity, image, k = np.nonzero(highest > p.min(3))
        if len(k):
            row = rows[identity, image]
            n = np.sort(work.negatives[k, :, row])
            work.excess[k, row] = negative_excess(np.sort(p[identity, image, k]), n)
