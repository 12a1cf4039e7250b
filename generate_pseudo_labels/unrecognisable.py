"""ERS: how far a face is from what no recogniser recognises.

"Harnessing Unrecognizable Faces for Improving Face Recognition" (Deng et al., arXiv 2106.04112):
unrecognisable faces, of anybody, gather in one cluster of embedding space, the unrecognisable
identity (UI). With f_UI its normalised mean, ERS_i = min(1, 1 - <f_i, f_UI>). No identity is
needed, so every image gets a score, and a face without mates too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from generate_pseudo_labels.distance.embedded_set import EmbeddedSet

Floats = npt.NDArray[np.float32]

_SAMPLE = 4096  # images among which a cluster is looked for
_NEIGHBOURS = 8  # identities
_STANDS_OUT = 0.15  # similarity of a cluster's images above the usual
_BLOCK = 8192
_ROUNDS = 20


def centre_of(unrecognisable: Floats) -> Floats:
    """(n, D) embeddings of unrecognisable images -> (D,) f_UI, of length 1.

    Raises:
        ValueError: none, or they cancel out.
    """
    lengths = np.linalg.norm(unrecognisable, axis=1, keepdims=True)
    usable = (np.isfinite(lengths) & (lengths > 0))[:, 0]
    if not usable.any():
        raise ValueError("holds no embedding that has a direction")
    mean = (unrecognisable[usable] / lengths[usable]).mean(0, dtype=np.float64)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise ValueError("its embeddings cancel each other out")
    centre: Floats = (mean / length).astype(np.float32)
    return centre


def recognisability(faces: Floats, centre: Floats) -> Floats:
    """ERS of (n, D) unit rows: (n,) in [0, 1]; low is unrecognisable."""
    score: Floats = np.clip(1 - faces @ centre, 0, 1)
    return score


def scores_of(embedded: EmbeddedSet, centre: Floats) -> Iterable[Floats]:
    """ERS of all images by position, a block at a time."""
    for start in range(0, len(embedded.groups), _BLOCK):
        stop = min(start + _BLOCK, len(embedded.groups))
        yield recognisability(embedded.span(start, stop), centre)


def find_cluster(embedded: EmbeddedSet, seed: int) -> tuple[Floats, int]:
    """Looks for the UI in the set itself: the direction where different people crowd together.

    Recognisable faces are close to their own identity alone; unrecognisable ones of all identities
    are close to each other. So, in a sample, the seed of the cluster is the image that is most
    similar to images of several OTHER identities, one of each (of one other identity alone, a
    mislabelled image would be the seed). Its members are as similar to each other as half way
    between what the seed's neighbours are to it and what is usual; they are found in rounds.

    Args:
        embedded: the set.
        seed: of the sample.

    Returns:
        (D,) f_UI and how many images of the sample belong to the cluster.

    Raises:
        ValueError: no such cluster: fewer than 3 identities, or people keep apart.
    """
    rng = np.random.default_rng(seed)
    count = len(embedded.groups)
    positions = np.sort(rng.choice(count, min(_SAMPLE, count), replace=False))
    owner = np.searchsorted(embedded.groups.starts, positions, side="right") - 1
    rows: Floats = embedded.at(positions)
    similarity = rows @ rows.T
    similarity[owner[:, None] == owner] = -1
    begins = np.flatnonzero(np.diff(owner, prepend=-1))  # positions stand by identity
    closest = np.maximum.reduceat(similarity, begins, axis=1)  # (n, identities)
    near = min(_NEIGHBOURS, len(begins) - 1)
    if near < 2:
        raise ValueError("it has fewer than 3 identities")
    crowd = np.partition(closest, -near, axis=1)[:, -near:].mean(1)
    first = int(crowd.argmax())
    # Chance alone brings strangers as close as the typical image's nearest ones.
    bound = (float(crowd[first]) + float(np.median(crowd))) / 2
    if crowd[first] - np.median(crowd) < _STANDS_OUT:
        raise ValueError("its images of different people gather nowhere")
    members = similarity[first] >= bound
    members[first] = True
    centre = centre_of(rows[members])
    for _ in range(_ROUNDS):
        # Images of similarity s to each other have similarity sqrt(s) to their mean.
        again = rows @ centre >= bound**0.5
        if again.sum() < 2 or np.array_equal(again, members):
            break
        members = again
        centre = centre_of(rows[members])
    if 2 * np.bincount(owner[members]).max() > members.sum():
        raise ValueError("its closest images are mostly of one person")
    return centre, int(members.sum())
