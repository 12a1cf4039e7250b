"""The label step from checked settings to labels, with a user's words for what can go wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from dataset.command_line import UserError
from generate_pseudo_labels.arrays import Arrays
from generate_pseudo_labels.distances import Distances
from generate_pseudo_labels.draws import Groups, group_by_identity
from generate_pseudo_labels.embedded_set import UnusableRow
from generate_pseudo_labels.label_files import LabelInput, Labelling, label_images, summarise
from generate_pseudo_labels.ranks import Ranks
from generate_pseudo_labels.similarity_distance import TooFewOutsiders, similarity_distances


@dataclass(frozen=True)
class Settings:
    """What the command line says; see gen_pseudo_labels."""

    estimator: str = "sampled"
    fix_num: int = 24
    repeats: int = 12
    seed: int = 0
    min_images_per_id: int = 2
    drop_top_percent: float = 0.0
    exclude_mislabelled: bool = False


def checked(settings: Settings) -> Settings:
    """The settings, if they can be used.

    Raises:
        UserError: a number is out of its range.
    """
    for name, low in (("fix_num", 1), ("repeats", 1), ("min_images_per_id", 1)):
        if getattr(settings, name) < low:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(settings, name)}: must be {low} or more")
    if not 0 <= settings.drop_top_percent < 100:
        raise UserError(
            f"--drop-top-percent {settings.drop_top_percent:g}: must be at least 0 and below 100"
        )
    return settings


def find_distances(
    given: LabelInput, settings: Settings, arrays: Arrays, ranks: Ranks, threads: int
) -> tuple[Groups, Distances] | None:
    """Runs the estimator over this process's share; everybody's results on rank 0, else None.

    Raises:
        UserError: rows without a direction, or too few outsiders.
    """
    from tqdm import tqdm

    groups = group_by_identity(given.identities, given.reasons == 0)
    if groups.rows is not None and np.any(np.diff(groups.rows) < 0):
        given.notes.append(
            f"{given.table.file}: images of one identity do not stand together; reading their "
            "embeddings in that order takes several times as long as from a list that is sorted"
        )
    table = given.table
    try:
        with tqdm(total=None, unit=" images", smoothing=0.05, disable=ranks.rank > 0) as bar:
            begin, part = similarity_distances(
                given.source,
                groups,
                m=settings.fix_num,
                repeats=settings.repeats,
                seed=settings.seed,
                arrays=arrays,
                rank=ranks.rank,
                ranks=ranks.count,
                threads=threads,
                progress=bar.update,
            )
    except UnusableRow as error:
        raise UserError(
            f"{getattr(given.source, 'path', 'embeddings')}: row {error.row} "
            f"({table.path(error.row)}) {error.fault}; extract the embeddings again, or take that "
            "image out of the list"
        ) from error
    except TooFewOutsiders as error:
        raise UserError(f"{table.file}: {error}") from error
    whole = ranks.gather(begin, part, len(groups))
    return None if whole is None else (groups, whole)


def label(given: LabelInput, settings: Settings, found: tuple[Groups, Distances]) -> Labelling:
    """Distances to labels, and the summary.

    Raises:
        UserError: nobody is left to label, or all distances are equal.
    """
    groups, distances = found
    try:
        result = label_images(
            given,
            groups,
            distances,
            min_images_per_id=settings.min_images_per_id,
            drop_top_percent=settings.drop_top_percent,
            exclude_mislabelled=settings.exclude_mislabelled,
        )
    except ValueError as error:
        raise UserError(f"{given.table.file}: {error}") from error
    summarise(asdict(settings), given, groups, result)
    return result
