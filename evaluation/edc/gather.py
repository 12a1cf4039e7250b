"""From the files that a user names to pairs and scores of the same images, with notes.

Notes that begin with `left out:` are about inputs skipped, not about a view that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.embeddings import EmbeddingsFile, embeddings_in, open_embeddings
from dataset.lists import Identities, ImageList, place_in_group
from dataset.score_files import ScoreForm, read_scores
from evaluation.edc.pairs import (
    AnyInts,
    Mask,
    PairSource,
    Values,
    all_pairs,
    listed_pairs,
    sampled_pairs,
    unit_rows,
)
from evaluation.edc.verification_lists import PairList, read_names, read_pairs
from sdd_fiqa.cores import usable_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import read_json
from sdd_fiqa.number import count_of

LEFT_OUT = "left out: "
_ROUNDING = 1e-5  # of a similarity
_SAMPLED = 256  # images, whose impostor pairs are compared with the genuine ones
_CHANCE = 0.6  # genuine pairs above the median impostor pair; 0.5 where nothing is recognised
_COMPARED = 4096  # embeddings at a time, to see that they differ


class Notes(list[str]):
    """What a reader must know about the numbers, a line each; a line comes once."""

    def append(self, line: str) -> None:
        """Adds a line that is not there yet."""
        if line not in self:
            super().append(line)

    def leave_out(self, count: int, noun: str, why: str, total: int = 0) -> None:
        """Adds a line about `count` inputs skipped (of `total`, if given), if there are any."""
        if count:
            which = f"{count:,} of {count_of(total, noun)}" if total else count_of(count, noun)
            self.append(f"{LEFT_OUT}{which} {why}")

    @property
    def skipped(self) -> bool:
        """Whether any input was skipped."""
        return any(line.startswith(LEFT_OUT) for line in self)


@dataclass(frozen=True)
class Inputs:
    """What is evaluated: N listed images, of which n take part.

    Attributes:
        images: the list.
        identities: (N,) who is on each image.
        features: by recogniser, (N, D) embeddings, open on disk.
        chosen: (N,) the images that take part.
        given: the scorers that the user named; the others are references.
        pairs: the pairs to compare, in rows of the list; None for all pairs.
        usable: (N,) images with an embedding and every score, with or without a mate.
        all_scores: by scorer, (N,).
    """

    images: ImageList
    identities: Identities
    features: dict[str, EmbeddingsFile]
    chosen: Mask
    given: list[str]
    pairs: PairList | None
    usable: Mask
    all_scores: dict[str, Values]

    @property
    def scores(self) -> dict[str, Values]:
        """By scorer, (n,) the scores of the images that take part."""
        return {name: values[self.chosen] for name, values in self.all_scores.items()}

    def open_pairs(
        self, recogniser: str, impostor_pairs: int, seed: int, watch: Callable[[int], object]
    ) -> PairSource:
        """The pairs of the chosen images by one recogniser; `watch` and errors as `all_pairs`.

        With `impostor_pairs` above 0, so many are drawn at random with this seed.

        Raises:
            UserError: the embeddings are equal up to rounding.
        """
        rows = self.features[recogniser].take(np.flatnonzero(self.chosen))
        own = self.identities[self.chosen]
        starts, first = range(0, len(rows), _COMPARED), unit_rows(rows[:1])[0]
        parts = (unit_rows(rows[start : start + _COMPARED]) for start in starts)
        if all(np.all(part @ first > 1 - _ROUNDING) for part in parts):  # in most sets, one part
            raise UserError(
                f"{self.features[recogniser].path}: its embeddings are equal up to rounding, so "
                "they do not distinguish people; extract them again with another recogniser"
            )
        if self.pairs is not None:
            place = (np.cumsum(self.chosen) - 1).astype(np.int32)
            first, second, same = self.pairs
            return listed_pairs(rows, own, place[first], place[second], same)
        if impostor_pairs:
            return sampled_pairs(rows, own, impostor_pairs, seed)
        return all_pairs(rows, own, watch)


def load_features(
    paths: Sequence[Path], images: ImageList, scratch: Path, notes: Notes
) -> dict[str, EmbeddingsFile]:
    """By recogniser, the embeddings, open on disk.

    A folder of one .npy per image is gathered into a file in `scratch`.
    """
    files = list(map(embeddings_in, paths))
    for number, path in enumerate(files):
        if path.is_dir():
            from generate_pseudo_labels.npy_folder import gather_features

            target = scratch / str(number) / path.resolve().name
            files[number] = gather_features(path, images, target, usable_cores())
    features: dict[str, EmbeddingsFile] = {}
    for name, path in zip(unique_names(files, recogniser_name), files, strict=True):
        features[name] = open_embeddings(path, images)
        if note := features[name].note:
            notes.append(note)
    return features


def load_scores(
    paths: Sequence[Path], images: ImageList, form: ScoreForm, notes: Notes
) -> dict[str, Values]:
    """By the file's name, its scores; NaN where an image has none."""
    loaded: dict[str, Values] = {}
    for name, path in zip(unique_names(paths, lambda path: path.stem), paths, strict=True):
        scores = read_scores(path, images, form)
        notes.append(f"{path}: {scores.form}")
        loaded[name] = scores.values
        notes.leave_out(scores.missing, "image", f"not in {path}", len(images))
        notes.leave_out(scores.empty, "image", f"without a score in {path}", len(images))
        if scores.strangers:
            notes.append(f"{count_of(scores.strangers, 'record')} of {path} not in {images.file}")
    return loaded


def usable_images(
    features: Mapping[str, EmbeddingsFile], scores: Mapping[str, Values], notes: Notes
) -> Mask:
    """(N,) images with an embedding of every recogniser and a score of every scorer."""
    parts = [np.isfinite(values) for values in scores.values()]
    for name, file in features.items():
        parts.append(file.usable_rows())
        missing = int(np.count_nonzero(~parts[-1]))
        why = f"without an embedding by {name} (zero, not finite or too large for float32)"
        notes.leave_out(missing, "image", why)
    return np.asarray(np.logical_and.reduce(parts))


def excluded_images(exclude: Path | None, images: ImageList, notes: Notes) -> Mask:
    """(N,) the images that a file names to be left out."""
    if exclude is None:
        return np.zeros(len(images), np.bool_)
    named = read_names(exclude, images)
    notes.append(f"view: without the {count_of(int(named.sum()), 'image')} of {exclude.name}")
    return named


def select_images(
    images: ImageList,
    identities: Identities,
    usable: Mask,
    max_per_id: int | None,
    min_per_id: int,
    seed: int,
    notes: Notes,
) -> Mask:
    """(N,) the images that take part where all pairs are compared.

    Raises:
        UserError: no image left.
    """
    chosen = choose_images(identities, usable, max_per_id, min_per_id, seed)
    if max_per_id is not None:
        most = count_of(max_per_id, "image")
        notes.append(f"view: at most {most} an identity, drawn with seed {seed}")
    if single := int((usable & ~choose_images(identities, usable, None, min_per_id)).sum()):
        few = "one image" if min_per_id == 2 else f"fewer than {min_per_id} images"
        notes.append(f"without {count_of(single, 'image')} of identities with {few}")
    if not chosen.any():
        said = "; ".join(line for line in notes if line.startswith((LEFT_OUT, "view: ")))
        raise UserError(
            f"{images.file}: no identity has {count_of(min_per_id, 'usable image')}, so no pair to"
            f" compare{f' ({said})' if said else ''}"
        )
    return chosen


def choose_images(
    identities: AnyInts,
    usable: Mask,
    max_per_id: int | None = None,
    min_per_id: int = 2,
    seed: int = 0,
) -> Mask:
    """(N,) which images take part.

    Args:
        identities: (N,) any integers.
        usable: (N,) images that have all they need.
        max_per_id: draw at most so many images of each identity at random: one person's pairs grow
            with the square of the images.
        min_per_id: leave out identities with fewer usable images. An image without a mate has no
            genuine pair; discarding it would count and change nothing.
        seed: of the draw.
    """
    chosen = usable.copy()
    dense = np.unique(identities, return_inverse=True)[1]
    if max_per_id is not None:
        order = np.random.default_rng(seed).permutation(len(dense))
        order = order[chosen[order]]
        chosen[order[place_in_group(dense[order]) >= max_per_id]] = False
    counts = np.bincount(dense[chosen], minlength=int(dense.max(initial=0)) + 1)
    return np.asarray(chosen & (counts[dense] >= min_per_id))


def select_pairs(
    path: Path,
    images: ImageList,
    identities: Identities,
    usable: Mask,
    excluded: Mask,
    notes: Notes,
) -> tuple[PairList, Mask]:
    """The pairs of a verification list whose images are usable, and (N,) these images.

    Left out are pairs of an image with itself. Labels against the identities get a note.

    Raises:
        UserError: as read_pairs, or no genuine or no impostor pair left.
    """
    (first, second, same), strangers = read_pairs(path, images)
    notes.leave_out(strangers, "pair", f"of {path} with an image not in {images.file}")
    own = first == second
    notes.leave_out(int(own.sum()), "pair", f"of {path} of an image with itself")
    asked = own | ~(excluded[first] | excluded[second])
    if not asked.all():
        notes.append(f"view: without {count_of(int((~asked).sum()), 'pair')} of {path} for that")
    asked &= ~own
    kept = asked & usable[first] & usable[second]
    missing = int((asked & ~kept).sum())
    notes.leave_out(missing, "pair", f"of {path} with an image that has no score or embedding")
    if count := int((kept & (same != (identities[first] == identities[second]))).sum()):
        of_all = f"{count:,} of {count_of(int(kept.sum()), 'pair')} of {path}"
        notes.append(f"{of_all} labelled against the identities of {images.file}: 1 is one person")
    for kind, pairs in (("genuine", kept & same), ("impostor", kept & ~same)):
        if not pairs.any():
            raise UserError(f"{path}: no {kind} pair is left; both kinds are needed")
    chosen = np.zeros(len(images), np.bool_)
    chosen[first[kept]] = chosen[second[kept]] = True
    return PairList(first[kept], second[kept], same[kept]), chosen


def describe(inputs: Inputs, source: PairSource, seed: int, bootstrap: int, notes: Notes) -> None:
    """Notes which scores are constant, how many pairs the numbers use, and what is random."""
    for name, values in inputs.scores.items():
        if np.ptp(values) == 0:
            notes.append(f"{name} gives every image the same score: nothing can be discarded")
    identities = int(source.identities.max()) + 1
    genuine = len(source.genuine.similarity)
    images = count_of(len(source.identities), "image")
    notes.append(f"{images} of {count_of(identities, 'identity')}")
    which = "all" if inputs.pairs is None else "the list's"
    impostors = count_of(source.impostors, "impostor pair")
    if source.sampled:
        sample = f"a SAMPLE of {impostors}, drawn with replacement, seed {seed}"
        notes.append(f"all {count_of(genuine, 'genuine pair')}; {sample}")
    else:
        notes.append(f"{which} {genuine:,} genuine and {which} {impostors}")
    some = source.sample_impostors(_SAMPLED, seed).similarity
    if len(some) and genuine:
        above = np.mean(source.genuine.similarity > np.median(some))
        if above < _CHANCE:
            notes.append(
                "genuine pairs are hardly more similar than impostor pairs: do the rows of the"
                f" embeddings belong to {inputs.images.file}, and its numbers to people?"
            )
    own = np.bincount(source.identities[source.genuine.first]).max(initial=0)
    if own > 0.2 * genuine:
        share = f"{own / genuine:.0%}"
        notes.append(f"one identity makes {share} of the genuine pairs: see --max-images-per-id")
    if bootstrap:
        notes.append(
            f"[low, high]: 95 % of {bootstrap:,} bootstraps over identities, seed {seed};"
            " thresholds held"
        )


def unique_names(paths: Sequence[Path], name_of: Callable[[Path], str]) -> list[str]:
    """A name for each file; if two are the same, the folder's name comes before each.

    Raises:
        UserError: a file is given twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"{', '.join(map(str, paths))}: a file is given twice")
    for way in (name_of, lambda path: f"{path.parent.name}/{name_of(path)}", str):
        names = [way(path) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def recogniser_name(path: Path) -> str:
    """The weights that its .json names, else its file name, else its folder."""
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
