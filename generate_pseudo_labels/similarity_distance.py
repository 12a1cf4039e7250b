"""The similarity distribution distance: embeddings and identities in, distances out.

Reads and writes nothing. From SDD-FIQA (Ou et al., CVPR 2021).

For an image i with embedding f(x_i): P_i are its cosine similarities to the other images of its
identity, N_i those to all images of other identities, and its quality is Q_i = W1(P_i, N_i).

    groups = group_by_identity(identities)
    result = similarity_distances(embeddings, groups, LabelSettings(estimator="exact"))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Arrays, Indices, NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups, plan_blocks
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, Embeddings
from generate_pseudo_labels.distance.exact import ExactEstimator, draw_pools, mean_embedding
from generate_pseudo_labels.distance.results import BlockRunner, Distances, Progress
from generate_pseudo_labels.distance.sampled import SampledEstimator
from generate_pseudo_labels.label_settings import LabelSettings
from sdd_fiqa.number import count_of

_FIRST_PASS = 0.1  # of the exact estimator's work, for the progress


class TooFewOutsiders(ValueError):
    """An identity leaves fewer images of others than negatives are asked for."""


@dataclass(frozen=True)
class DistanceResult:
    """What one process computed.

    Attributes:
        begin: position of its first image.
        distances: of its images.
        crossing: (3,) of the exact estimator: images with a negative above a positive, how many of
            those had the second pool's error measured, and the sum of their squared standard errors
            of W1.
    """

    begin: int
    distances: Distances
    crossing: npt.NDArray[np.float64]


def similarity_distances(
    embeddings: Embeddings,
    groups: Groups,
    settings: LabelSettings,
    *,
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
        settings: the estimator and what it draws. The same seed gives the same distances on any
            split of the work. With a pool of all images `exact` is exact to float rounding.
        arrays: where to compute; numpy when None.
        batch_rows: images worked on together; None takes what suits `arrays`.
        processes: those that share the set; None for this one alone.
        threads: batches worked on at a time, at most as many as `arrays` allows.
        progress: is told how many images are done.

    Raises:
        TooFewOutsiders: fewer outsiders than negatives (exact: none).
        UnusableRow: a row that is zero or not finite.
    """
    arrays, processes = arrays or NumpyArrays(), processes or ProcessGroup(0, 1)
    if lacking := lacking_outsiders(groups.sizes(), settings):
        raise TooFewOutsiders(lacking)
    plan = plan_blocks(groups)
    embedded = EmbeddedSet(embeddings, groups, arrays)
    at_once = int(min(threads, arrays.most_batches))
    rows = batch_rows or arrays.batch_rows
    runner = BlockRunner(plan, plan.share(processes.rank, processes.size), rows, at_once, progress)
    repeats, seed = settings.repeats, settings.seed
    if settings.estimator == "sampled":
        sampled = SampledEstimator(embedded, settings.fix_num, repeats, seed)
        return DistanceResult(runner.begin, runner.collect(sampled.distances, repeats), np.zeros(3))
    mean = mean_embedding(embedded, runner, processes, _FIRST_PASS)
    pools = draw_pools(embedded, settings.pool_size, seed)
    exact = ExactEstimator(embedded, *pools, mean)
    distances = runner.collect(exact.distances, 1, 1 - _FIRST_PASS)
    crossing = np.array([(0.0, 0.0, 0.0), *exact.errors]).sum(axis=0)
    return DistanceResult(runner.begin, distances, crossing)


def lacking_outsiders(sizes: Indices, settings: LabelSettings) -> str:
    """What identities of (C,) `sizes` lack of images of others, with what to do; else empty."""
    outsiders = int(sizes.sum()) - int(sizes.max(initial=0))
    needed = settings.fix_num if settings.estimator == "sampled" else 1
    if outsiders >= needed:
        return ""
    return (
        f"the largest identity leaves {count_of(outsiders, 'image')} of others, fewer than the "
        f"{count_of(needed, 'negative')} asked for; add identities"
        + (f", or use --fix-num {outsiders} in gen_pseudo_labels.py" if outsiders else "")
    )
