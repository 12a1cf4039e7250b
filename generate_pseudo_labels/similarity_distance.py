"""The similarity distribution distance: embeddings and identities in, distances out.

Reads and writes nothing. From SDD-FIQA (Ou et al., CVPR 2021).

For an image i with embedding f(x_i): P_i are its cosine similarities to the other images of its
identity, N_i those to all images of other identities, and its quality is Q_i = W1(P_i, N_i).
"""

from __future__ import annotations

from generate_pseudo_labels.arrays import Arrays, NumpyArrays
from generate_pseudo_labels.distances import Distances, Progress, run_blocks
from generate_pseudo_labels.draws import Groups, plan_blocks
from generate_pseudo_labels.embedded_set import EmbeddedSet, Source
from generate_pseudo_labels.sampled import SampledEstimator


class TooFewOutsiders(ValueError):
    """An identity leaves fewer images of others than negatives are asked for."""


def similarity_distances(
    source: Source,
    groups: Groups,
    *,
    m: int = 24,
    repeats: int = 12,
    seed: int = 0,
    arrays: Arrays | None = None,
    batch_rows: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[int, Distances]:
    """W1(P_i, N_i) of every image of a set, by position.

    Raises:
        TooFewOutsiders: fewer outsiders than `m`.
        UnusableRow: a row that is zero or not finite.
    """
    arrays = arrays or NumpyArrays()
    sizes = groups.sizes()
    outsiders = len(groups) - int(sizes.max(initial=0))
    if outsiders < m:
        raise TooFewOutsiders(
            f"the largest identity leaves {outsiders} images of others, fewer than the {m} "
            "negatives asked for; add identities or ask for fewer (--fix-num)"
        )
    plan = plan_blocks(groups)
    blocks = plan.share(rank, ranks)
    embedded = EmbeddedSet(source, groups, arrays)
    estimator = SampledEstimator(embedded, plan, m, repeats, seed)
    results = run_blocks(
        estimator,
        plan,
        blocks,
        batch_rows=batch_rows or arrays.batch_rows,
        repeats=repeats,
        threads=threads,
        progress=progress,
    )
    return int(plan.bounds[blocks.start]), results
