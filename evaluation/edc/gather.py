"""From the files a user names to pairs and scores of the same images, with a note on all left out.

Notes that begin with `left out:` are about inputs skipped, not about a view that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.embeddings import EmbeddingsFile, open_embeddings
from dataset.lists import Identities, ImageList
from dataset.scores import read_scores
from evaluation.edc.pairs import PairSource, Rows, all_pairs, listed_pairs, sampled_pairs
from evaluation.edc.study import choose_images
from evaluation.edc.verification_lists import read_names, read_pairs
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json

Mask = npt.NDArray[np.bool_]
Features = dict[str, EmbeddingsFile]
ScoreTable = dict[str, npt.NDArray[np.float64]]

LEFT_OUT = "left out: "


@dataclass(frozen=True)
class PairList:
    """A verification list in the rows of an image list."""

    first: Rows
    second: Rows
    same: Mask


@dataclass
class Notes:
    """What a reader must know about the numbers, a line each."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Adds a line."""
        self.lines.append(line)

    def leave_out(self, count: int, line: str) -> None:
        """Adds a line about inputs skipped, if there are any."""
        if count:
            self.lines.append(f"{LEFT_OUT}{line}")

    @property
    def skipped(self) -> bool:
        """Whether any input was skipped."""
        return any(line.startswith(LEFT_OUT) for line in self.lines)


def load_features(paths: Sequence[Path], table: ImageList, notes: Notes) -> Features:
    """The embeddings of each recogniser, by name, open on disk."""
    names = unique_names(paths, recogniser_name)
    features: Features = {}
    for name, path in zip(names, paths, strict=True):
        features[name], origin = open_embeddings(path, table)
        if origin.note:
            notes.add(origin.note)
    return features


def load_scores(paths: Sequence[Path], table: ImageList, notes: Notes) -> ScoreTable:
    """The scores of each file, by its name; NaN where an image has none."""
    loaded: ScoreTable = {}
    for name, path in zip(unique_names(paths, lambda path: path.stem), paths, strict=True):
        scores = read_scores(path, table)
        loaded[name] = scores.values
        total = f"of {len(table):,} images"
        notes.leave_out(scores.missing, f"{scores.missing:,} {total} are not in {path}")
        notes.leave_out(scores.empty, f"{scores.empty:,} {total} have no score in {path}")
        if scores.strangers:
            notes.add(f"{scores.strangers:,} records of {path} are not in {table.file}")
    return loaded


def usable_images(
    table: ImageList,
    features: Mapping[str, EmbeddingsFile],
    scores: Mapping[str, npt.NDArray[np.float64]],
    notes: Notes,
) -> Mask:
    """(N,) images with an embedding of every recogniser and a score of every scorer."""
    usable = np.ones(len(table), np.bool_)
    for name, file in features.items():
        whole = file.usable_rows()
        lost = int(np.count_nonzero(~whole))
        notes.leave_out(lost, f"{lost:,} images have no embedding by {name} (zero or not finite)")
        usable &= whole
    for values in scores.values():
        usable &= np.isfinite(values)
    return usable


def excluded_images(exclude: Path | None, table: ImageList, notes: Notes) -> Mask:
    """(N,) the images that a file names to be left out."""
    if exclude is None:
        return np.zeros(len(table), np.bool_)
    named = read_names(exclude, table)
    count = np.count_nonzero(named)
    notes.add(f"view: without the {count:,} image{'' if count == 1 else 's'} of {exclude.name}")
    return named


def select_images(
    image_list: Path,
    identities: Identities,
    usable: Mask,
    max_per_id: int | None,
    min_per_id: int,
    seed: int,
    notes: Notes,
) -> Mask:
    """(N,) the images of the all-pairs protocol.

    Raises:
        UserError: limits that fit no image, or none left.
    """
    for name, value in (("--max-images-per-id", max_per_id), ("--min-images-per-id", min_per_id)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be 1 or more")
    chosen = choose_images(identities, usable, max_per_id, min_per_id, seed)
    if max_per_id is not None:
        notes.add(f"view: at most {max_per_id} images an identity, drawn with seed {seed}")
    whole = choose_images(identities, usable, None, min_per_id, seed)
    single = int(np.count_nonzero(usable & ~whole))
    if single:
        few = "one image" if min_per_id == 2 else f"fewer than {min_per_id} images"
        notes.add(f"{single:,} images of identities with {few} take no part")
    if not chosen.any():
        said = "; ".join(line for line in notes.lines if line.startswith((LEFT_OUT, "view: ")))
        raise UserError(
            f"{image_list}: no identity has {min_per_id} usable images, so no pair to compare"
            f"{f' ({said})' if said else ''}"
        )
    return chosen


def select_pairs(
    path: Path, table: ImageList, usable: Mask, excluded: Mask, notes: Notes
) -> tuple[PairList, Mask]:
    """The pairs of a verification list whose images are usable, and (N,) these images.

    Raises:
        UserError: as names.read_pairs, or no pair of one kind left.
    """
    first, second, same, strangers = read_pairs(path, table)
    notes.leave_out(strangers, f"{strangers:,} pairs of {path} with an image not in {table.file}")
    asked = ~(excluded[first] | excluded[second])
    if not asked.all():
        notes.add(f"view: without {np.count_nonzero(~asked):,} pairs of {path} for that")
    kept = asked & usable[first] & usable[second]
    lost = int(np.count_nonzero(asked & ~kept))
    notes.leave_out(lost, f"{lost:,} pairs of {path} with an image that has no score or embedding")
    for kind, wanted in (("genuine", True), ("impostor", False)):
        if not np.any(kept & (same == wanted)):
            raise UserError(f"{path}: no {kind} pair is left; both kinds are needed")
    chosen = np.zeros(len(table), np.bool_)
    chosen[first[kept]] = chosen[second[kept]] = True
    return PairList(first[kept], second[kept], same[kept]), chosen


def choose_scores(scores: ScoreTable, chosen: Mask, notes: Notes) -> ScoreTable:
    """The scores of the chosen images; a scorer that says the same of all of them is noted."""
    for name, values in scores.items():
        if np.ptp(values[chosen]) == 0:
            notes.add(f"{name} gives every image the same score: nothing can be discarded")
    return {name: values[chosen] for name, values in scores.items()}


def open_pairs(
    features: EmbeddingsFile,
    identities: Identities,
    chosen: Mask,
    listed: PairList | None,
    impostor_pairs: int,
    seed: int,
    watch: Callable[[int], object],
) -> PairSource:
    """The pairs of the chosen images: a list's, or all, or all genuine and a draw of impostors.

    Where all pairs are streamed, `watch` is told how many rows of similarities are done.
    """
    rows, own = features.take(np.flatnonzero(chosen)), identities[chosen]
    if listed is not None:
        place = (np.cumsum(chosen) - 1).astype(np.int32)
        return listed_pairs(rows, own, place[listed.first], place[listed.second], listed.same)
    if impostor_pairs:
        return sampled_pairs(rows, own, impostor_pairs, seed)
    return all_pairs(rows, own, watch)


def describe(
    source: PairSource, listed: PairList | None, seed: int, bootstrap: int, notes: Notes
) -> None:
    """Notes how many pairs the numbers rest on, and which were left to chance."""
    identities = int(source.identities.max()) + 1
    genuine = len(source.genuine.similarity)
    notes.add(f"{len(source.identities):,} images of {identities:,} identities")
    which = "all" if listed is None else "the list's"
    if source.exhaustive:
        notes.add(f"{which} {genuine:,} genuine and {which} {source.impostors:,} impostor pairs")
    else:
        notes.add(
            f"all {genuine:,} genuine pairs; a SAMPLE of {source.impostors:,} impostor pairs, drawn"
            f" with replacement, seed {seed}"
        )
    own = np.bincount(source.identities[source.genuine.first]).max(initial=0)
    share = own / max(genuine, 1)
    if share > 0.2:
        notes.add(f"one identity makes {share:.0%} of the genuine pairs: see --max-images-per-id")
    if bootstrap:
        notes.add(
            f"[low, high]: 95 % of {bootstrap:,} bootstraps over identities, seed {seed};"
            " thresholds held"
        )


def unique_names(paths: Sequence[Path], name_of: Callable[[Path], str]) -> list[str]:
    """A name for each file; those that clash get the folder's name in front.

    Raises:
        UserError: a file is given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{', '.join(map(str, paths))}: a file is given twice")
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return names


def recogniser_name(path: Path) -> str:
    """By the weights that its .json names, else by its file, else by its folder."""
    beside = path.with_suffix(".json")
    if beside.exists():
        about = read_json(beside)
        weights = about.get("weights") if isinstance(about, dict) else None
        if isinstance(weights, dict) and "weights" in weights:
            return Path(str(weights["weights"])).stem
    if path.stem != "Embedding_Features":
        return path.stem
    folder = path.resolve().parent
    return folder.parent.name if folder.name == "feats_npy" else folder.name
