"""The similarity distribution distance: embeddings and identities in, distances out.

Reads and writes nothing. From SDD-FIQA (Ou et al., CVPR 2021).

For an image i with embedding f(x_i): P_i are its cosine similarities to the other images of its
identity, N_i those to all images of other identities, and its quality is Q_i = W1(P_i, N_i).

    groups = group_by_identity(identities)
    found = similarity_distances(InMemory(embeddings), groups, estimator="exact")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from generate_pseudo_labels.distance.array_backend import Arrays, NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups, Plan, plan_blocks
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, Source
from generate_pseudo_labels.distance.exact import AddUp, ExactEstimator, draw_pools, mean_embedding
from generate_pseudo_labels.distance.results import Distances, OnThreads, Progress, run_blocks
from generate_pseudo_labels.distance.sampled import SampledEstimator

_FIRST_PASS = 0.1  # of the exact estimator's work, for the progress


class TooFewOutsiders(ValueError):
    """An identity leaves fewer images of others than negatives are asked for."""


@dataclass(frozen=True)
class Found:
    """What one process found out.

    Attributes:
        begin: position of its first image.
        distances: of its images.
        overlapping: images with a negative above a positive (exact).
        checked: how many of those had the second pool's error measured.
        squares: sum of their squared standard errors of W1.
    """

    begin: int
    distances: Distances
    overlapping: int = 0
    checked: int = 0
    squares: float = 0.0


def similarity_distances(
    source: Source,
    groups: Groups,
    *,
    estimator: Literal["sampled", "exact"] = "sampled",
    m: int = 24,
    repeats: int = 12,
    seed: int = 0,
    pool_size: int = 1024,
    arrays: Arrays | None = None,
    batch_rows: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    add_up: AddUp = lambda array: array,
    threads: int = 1,
    progress: Progress | None = None,
) -> Found:
    """W1(P_i, N_i) of every image of a set, by position.

    Args:
        source: (N, D) embeddings; `InMemory` for an array. Rows are normalised here.
        groups: who is who; see `group_by_identity`.
        estimator: `sampled`, as published (m against m, `repeats` times), or `exact`, all against
            all.
        m: positives and negatives of a repeat (sampled).
        repeats: K (sampled).
        seed: of all draws; the same seed gives the same distances on any split of the work.
        pool_size: random images that stand for all where overlap is looked for (exact); all of
            them make it exact to float rounding.
        arrays: where to compute; numpy when None.
        batch_rows: images worked on together; None as it suits `arrays`.
        rank: this process.
        ranks: how many processes share the set.
        add_up: sums an array of whole numbers over the processes.
        threads: batches worked on at a time, where `arrays` bears so many.
        progress: told how many images are done.

    Raises:
        TooFewOutsiders: fewer outsiders than `m` (exact: none).
        UnusableRow: a row that is zero or not finite.
    """
    arrays = arrays or NumpyArrays()
    _check_outsiders(groups, m if estimator == "sampled" else 1)
    plan = plan_blocks(groups)
    blocks = plan.share(rank, ranks)
    embedded = EmbeddedSet(source, groups, arrays)
    at_once = int(min(threads, arrays.most_batches))
    over = OnThreads(plan, batch_rows or arrays.batch_rows, at_once, progress)
    begin = int(plan.bounds[blocks.start])
    if estimator == "sampled":
        sampled = SampledEstimator(embedded, plan, m, repeats, seed)
        return Found(begin, run_blocks(sampled, plan, blocks, repeats, over))
    return _exact(embedded, plan, blocks, pool_size, seed, add_up, over)


def _exact(
    embedded: EmbeddedSet,
    plan: Plan,
    blocks: range,
    pool_size: int,
    seed: int,
    add_up: AddUp,
    over: OnThreads,
) -> Found:
    mean = mean_embedding(embedded, plan, blocks, add_up, over, _FIRST_PASS)
    exact = ExactEstimator(embedded, plan, draw_pools(embedded, pool_size, seed), mean)
    distances = run_blocks(exact, plan, blocks, 1, over, 1 - _FIRST_PASS)
    checked, squares, overlapping = np.array(exact.errors or [(0, 0.0, 0)]).sum(axis=0)
    begin = int(plan.bounds[blocks.start])
    return Found(begin, distances, int(overlapping), int(checked), float(squares))


def _check_outsiders(groups: Groups, needed: int) -> None:
    outsiders = len(groups) - int(groups.sizes().max(initial=0))
    if outsiders < needed:
        raise TooFewOutsiders(
            f"the largest identity leaves {outsiders} images of others, fewer than the {needed} "
            "negatives asked for; add identities"
        )
