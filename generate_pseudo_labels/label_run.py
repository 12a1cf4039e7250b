"""The label step from checked settings to labels, with a user's words for what can go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.distributed import ProcessGroup
from generate_pseudo_labels.distance.array_backend import Arrays
from generate_pseudo_labels.distance.blocks import Groups, group_by_identity
from generate_pseudo_labels.distance.embedded_set import UnusableRow
from generate_pseudo_labels.distance.results import Distances, gather
from generate_pseudo_labels.label_files import LabelInput, Labelling, label_images, summarise
from generate_pseudo_labels.similarity_distance import TooFewOutsiders, similarity_distances
from sdd_fiqa.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What the command line says; see gen_pseudo_labels."""

    estimator: Literal["sampled", "exact"] = "sampled"
    fix_num: int = 24
    repeats: int = 12
    seed: int = 0
    pool_size: int = 1024
    min_images_per_id: int = 2
    drop_top_percent: float = 0.0
    exclude_mislabelled: bool = False
    level_identities: bool = False
    label_power: float = 1.0


def checked(settings: Settings) -> Settings:
    """The settings, if they can be used.

    Raises:
        UserError: a number is out of its range.
    """
    least = {"fix_num": 1, "repeats": 1, "pool_size": 2, "min_images_per_id": 1, "seed": 0}
    for name, low in least.items():
        if getattr(settings, name) < low:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(settings, name)}: must be {low} or more")
    if not 0 <= settings.drop_top_percent < 100:
        raise UserError(
            f"--drop-top-percent {settings.drop_top_percent:g}: must be at least 0 and below 100"
        )
    if not 0 < settings.label_power < math.inf:
        raise UserError(f"--label-power {settings.label_power:g}: must be a number above 0")
    return settings


def find_distances(
    given: LabelInput, settings: Settings, arrays: Arrays, processes: ProcessGroup, threads: int
) -> tuple[Groups, Distances, dict[str, float]] | None:
    """Runs the estimator over this process's share; everybody's results on rank 0, else None.

    The results: groups, distances by position, and what is known of their error.

    Raises:
        UserError: rows without a direction, or too few outsiders.
    """
    groups = group_by_identity(given.identities, given.reasons == 0)
    if groups.rows is not None and np.any(np.diff(groups.rows) < 0):
        given.notes.append(
            f"{given.table.file}: images of one identity do not stand together; reading their "
            "embeddings in that order takes several times as long as from a list that is sorted"
        )
    table = given.table
    try:
        with progress_bar(len(groups) // processes.size, not processes.first) as bar:
            part = similarity_distances(
                given.source,
                groups,
                estimator=settings.estimator,
                pool_size=settings.pool_size,
                add_up=processes.add_up,
                m=settings.fix_num,
                repeats=settings.repeats,
                seed=settings.seed,
                arrays=arrays,
                rank=processes.rank,
                ranks=processes.size,
                threads=threads,
                progress=bar,
            )
    except UnusableRow as error:
        raise UserError(
            f"{getattr(given.source, 'path', 'embeddings')}: row {error.row} "
            f"({table.path(error.row)}) {error.fault}; extract the embeddings again, or take that "
            "image out of the list"
        ) from error
    except TooFewOutsiders as error:
        mend = " or ask for fewer (--fix-num)" if settings.estimator == "sampled" else ""
        raise UserError(f"{table.file}: {error}{mend}") from error
    errors = processes.add_up(np.array([part.overlapping, part.checked, part.squares]))
    whole = gather(processes, part.begin, part.distances, len(groups))
    return None if whole is None else (groups, whole, overlap(errors))


def overlap(errors: npt.NDArray[np.float64]) -> dict[str, float]:
    """For the summary: images whose distributions overlap, and the second pool's error on them."""
    overlapping, checked, squares = errors.tolist()
    summary: dict[str, float] = {"overlapping": int(overlapping)}
    if checked:
        error = np.sqrt(squares / checked)
        summary["overlapping_w1_standard_error"] = float(f"{error:.3g}")
    return summary


@contextmanager
def progress_bar(images: int, silent: bool) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, counting whole images; parts of an image's work are saved up."""
    from tqdm import tqdm

    with tqdm(total=images, unit=" images", unit_scale=True, smoothing=0.05, disable=silent) as bar:
        done = 0.0

        def add(count: float) -> None:
            nonlocal done
            done += count
            bar.update(min(round(done), images) - bar.n)

        yield add


def label(
    given: LabelInput, settings: Settings, found: tuple[Groups, Distances, dict[str, float]]
) -> Labelling:
    """Distances to labels, and the summary.

    Raises:
        UserError: nobody is left to label, or all distances are equal.
    """
    groups, distances, errors = found
    try:
        result = label_images(
            given,
            groups,
            distances,
            min_images_per_id=settings.min_images_per_id,
            drop_top_percent=settings.drop_top_percent,
            exclude_mislabelled=settings.exclude_mislabelled,
            level_identities=settings.level_identities,
            label_power=settings.label_power,
        )
    except ValueError as error:
        raise UserError(f"{given.table.file}: {error}") from error
    summarise(asdict(settings), given, groups, result)
    if settings.estimator == "exact":
        result.summary.update(errors)
    return result
