"""The quality that SDD-FIQA is based on, computed exactly: the effect of leaving an image out.

Eq. 3-4 of the paper: at a fixed FMR, the FNMR of the whole set minus the FNMR without image i,
averaged over FMR uniform on [0, 1]. A large fall means that x_i is bad. The paper estimates it by
W1(P_i, N_i), where a SMALL distance means bad, so the two correlate negatively.

If the threshold is the next float above an impostor similarity v, the FNMR is the share of genuine
similarities g <= v. The average over FMR is the average over v:

    A(X) = U / (G M),   U = #{(g, v): g <= v},  G genuine and M impostor pairs
    fall_i = A(X) - A(X without i)

Leaving i out removes from U the pairs (g, v) where g or v belongs to i. They are counted by
bisection in the sorted similarities. No integral is approximated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.cli import EXIT_DONE, run_script
from dataset.embeddings import open_embeddings
from dataset.lists import read_labelpath, refuse_repeats
from evaluation.edc.pairs import AnyFloats, AnyInts, Floats, Values, unit_rows
from evaluation.edc.references import own_labels
from sdd_fiqa.errors import UserError

MAX_IMAGES = 10_000  # impostor similarities are sorted in memory: about 4 n^2 bytes


def main(*, feats: Path, image_list: Path) -> int:
    """Prints how the fall in FNMR correlates with the exact W1 that labels are made of.

    Args:
        feats: embeddings, (N, D) .npy, row i = line i of the image list.
        image_list: DATA.labelpath, `<path> TAB <identity>`; at most 10,000 images.
    """
    from scipy.stats import pearsonr, spearmanr

    table, identities = read_labelpath(image_list)
    refuse_repeats(table)
    features = open_embeddings(feats, table)
    w1 = own_labels(features, identities)
    usable = np.isfinite(w1)
    try:
        falls = leave_one_out(features.take(np.flatnonzero(usable)), identities[usable])
    except ValueError as error:
        raise UserError(f"{image_list}: {error}") from error
    whole = falls, w1[usable]
    lowering = falls[falls > 0], w1[usable][falls > 0]
    for which, pair in (("all", whole), ("whose absence lowers the FNMR", lowering)):
        if len(pair[0]) > 2:
            spearman, pearson = spearmanr(*pair).statistic, pearsonr(*pair).statistic
            text = f"Spearman {spearman:.2f}, Pearson {pearson:.2f}"
            print(f"{len(pair[0]):,} images, {which}: {text}")
    return EXIT_DONE


def leave_one_out(features: AnyFloats, identities: AnyInts) -> Values:
    """(n,) the fall in FNMR, averaged over FMR, when each image is left out.

    Args:
        features: (n, D) embeddings, any float type.
        identities: (n,) any integers; an image without a mate is allowed (its P_i is empty).

    Raises:
        ValueError: more than MAX_IMAGES images, or no genuine or no impostor pair is left without
            one of them.
    """
    count = len(features)
    if count > MAX_IMAGES:
        raise ValueError(f"{count:,} images: the exact leave-one-out takes at most {MAX_IMAGES:,}")
    rows = unit_rows(features)
    similarity = rows @ rows.T
    same = identities[:, None] == identities[None, :]
    upper = np.triu(np.ones((count, count), np.bool_), 1)
    genuine = np.sort(similarity[same & upper])
    impostors = np.sort(similarity[~same & upper])
    own_genuine = same.sum(axis=1) - 1
    own_impostors = (~same).sum(axis=1)
    genuine_left = len(genuine) - own_genuine
    impostors_left = len(impostors) - own_impostors
    if not count or genuine_left.min() < 1 or impostors_left.min() < 1:
        raise ValueError("without any one image, a genuine and an impostor pair must be left")
    total = _pairs_at_most(genuine, impostors)
    left = np.empty(count)
    for image in range(count):
        others = np.arange(count) != image
        own = np.sort(similarity[image, same[image] & others])
        against = np.sort(similarity[image, ~same[image]])
        taken = _pairs_at_most(own, impostors) + _pairs_at_most(genuine, against)
        left[image] = total - taken + _pairs_at_most(own, against)
    whole = total / (len(genuine) * len(impostors))
    return np.asarray(whole - left / (genuine_left * impostors_left.astype(np.float64)))


def _pairs_at_most(genuine: Floats, impostors: Floats) -> int:
    """#{(g, v): g <= v} of two sorted arrays: the shorter is looked up in the longer."""
    if len(genuine) <= len(impostors):
        below = np.searchsorted(impostors, genuine, side="left")
        return len(genuine) * len(impostors) - int(below.sum())
    return int(np.searchsorted(genuine, impostors, side="right").sum())


if __name__ == "__main__":
    run_script(main)
