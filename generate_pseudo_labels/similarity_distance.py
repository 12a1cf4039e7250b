"""The similarity distribution distance: embeddings and identities in, distances out.

Reads and writes nothing. From SDD-FIQA (Ou et al., CVPR 2021).

For an image i with embedding f(x_i): P_i are its cosine similarities to the other images of its
identity, N_i those to all images of other identities, and its quality is Q_i = W1(P_i, N_i).

    groups = group_by_identity(identities)
    result = similarity_distances(embeddings, groups, estimator="exact")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Arrays, NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups, plan_blocks
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, Embeddings
from generate_pseudo_labels.distance.exact import ExactEstimator, draw_pools, mean_embedding
from generate_pseudo_labels.distance.results import BlockRunner, Distances, Progress
from generate_pseudo_labels.distance.sampled import SampledEstimator
from sdd_fiqa.number import count_of

Estimator: TypeAlias = Literal["sampled", "exact"]

_FIRST_PASS = 0.1  # of the exact estimator's work, for the progress


class TooFewOutsiders(ValueError):
    """An identity leaves fewer images of others than negatives are asked for."""


@dataclass(frozen=True)
class DistanceResult:
    """What one process computed.

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
    embeddings: Embeddings,
    groups: Groups,
    *,
    estimator: Estimator = "sampled",
    m: int = 24,
    repeats: int = 12,
    seed: int = 0,
    pool_size: int = 1024,
    arrays: Arrays | None = None,
    batch_rows: int | None = None,
    processes: ProcessGroup | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> DistanceResult:
    """W1(P_i, N_i) of every image of a set, by position.

    Args:
        embeddings: (N, D) floats of any length; rows are normalised here.
        groups: the identities; see `group_by_identity`.
        estimator: `sampled`, as published (m against m, `repeats` times), or `exact`, all against
            all.
        m: positives and negatives of a repeat (sampled).
        repeats: K (sampled).
        seed: random seed; the same seed gives the same distances on any split of the work.
        pool_size: random images with which overlap is looked for (exact); with all images the
            result is exact to float rounding.
        arrays: where to compute; numpy when None.
        batch_rows: images worked on together; None takes what suits `arrays`.
        processes: those that share the set; None for this one alone.
        threads: batches worked on at a time, at most as many as `arrays` allows.
        progress: is told how many images are done.

    Raises:
        TooFewOutsiders: fewer outsiders than `m` (exact: none).
        UnusableRow: a row that is zero or not finite.
    """
    arrays, processes = arrays or NumpyArrays(), processes or ProcessGroup(0, 1)
    outsiders, needed = (
        len(groups) - int(groups.sizes().max(initial=0)),
        m if estimator == "sampled" else 1,
    )
    if outsiders < needed:
        raise TooFewOutsiders(
            f"the largest identity leaves {count_of(outsiders, 'image')} of others, fewer than the "
            f"{count_of(needed, 'negative')} asked for; add identities"
        )
    plan = plan_blocks(groups)
    embedded = EmbeddedSet(embeddings, groups, arrays)
    at_once = int(min(threads, arrays.most_batches))
    rows = batch_rows or arrays.batch_rows
    runner = BlockRunner(plan, plan.share(processes.rank, processes.size), rows, at_once, progress)
    if estimator == "sampled":
        sampled = SampledEstimator(embedded, plan, m, repeats, seed)
        return DistanceResult(runner.begin, runner.collect(sampled.distances, repeats))
    mean = mean_embedding(embedded, runner, processes, _FIRST_PASS)
    exact = ExactEstimator(embedded, plan, *draw_pools(embedded, pool_size, seed), mean)
    distances = runner.collect(exact.distances, 1, 1 - _FIRST_PASS)
    overlapping, checked, squares = np.array(exact.errors or [(0, 0, 0.0)]).sum(axis=0)
    return DistanceResult(runner.begin, distances, int(overlapping), int(checked), float(squares))
