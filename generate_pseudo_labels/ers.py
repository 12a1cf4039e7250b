"""The files of the ERS step: where unrecognisable faces come from, and where scores go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.columns import write_columns
from dataset.embeddings import EMBEDDINGS, EmbeddingsFile
from dataset.find import find_images
from dataset.images import read_face
from dataset.left_out import Skipped
from dataset.lists import LABELPATH
from generate_pseudo_labels.distance.array_backend import NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups, group_by_identity
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, UnusableRow
from generate_pseudo_labels.label_files import LabelInput
from generate_pseudo_labels.unrecognisable import centre_of, find_cluster, scores_of
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import read_json
from sdd_fiqa.images import Image

ERS_SCORES = "ers_scores.txt"
_BATCH = 64

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class UnrecognisableSource:
    """Where unrecognisable faces come from; one of the first four. See gen_ers_scores."""

    feats: Path | None
    image_dir: Path | None
    from_degraded: int | None
    from_cluster: bool
    weights: str | None
    backbone: str | None
    seed: int
    device: str


def find_centre(
    wanted: UnrecognisableSource, given: LabelInput, out_dir: Path
) -> tuple[Floats, str]:
    """The unrecognisable identity's centre, and a line about where it comes from.

    Raises:
        UserError: not exactly one source, a source that cannot be used, or another recogniser.
    """
    sources = (wanted.feats, wanted.image_dir, wanted.from_degraded)
    if sum(source is not None for source in sources) + wanted.from_cluster != 1:
        raise UserError(
            "give one source of unrecognisable faces: --ui-feats, --ui-image-dir, "
            "--ui-from-degraded or --ui-from-cluster"
        )
    try:
        if wanted.from_cluster:
            embedded = _embedded(given, group_by_identity(given.identities, given.reasons == 0))
            centre, count = find_cluster(embedded, wanted.seed)
            return centre, f"a cluster of {count} images of different people"
        if wanted.feats is not None:
            name = str(wanted.feats)
            file = EmbeddingsFile(wanted.feats)
            rows = np.asarray(file.read(0, file.shape[0]), np.float32)
        elif wanted.image_dir is not None:
            name = str(wanted.image_dir)
            rows = _embed(wanted, given, out_dir, _images_of(wanted.image_dir))
        else:
            name = f"{wanted.from_degraded} degraded faces"
            rows = _embed(wanted, given, out_dir, _degraded(wanted, given))
        if rows.shape[1] != given.source.shape[1]:
            raise UserError(
                f"{name}: has embeddings of {rows.shape[1]} numbers, the list's have "
                f"{given.source.shape[1]}; use the recogniser that made the list's"
            )
        return centre_of(rows), f"{len(rows)} unrecognisable faces ({name})"
    except UnusableRow as error:
        raise _unusable(given, error) from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"unrecognisable faces: {error}; try another source") from error


def write_scores(out_dir: Path, given: LabelInput, centre: Floats, about: str) -> str:
    """Writes ers_scores.txt in list order; returns what to tell the user."""
    rows = np.flatnonzero(given.reasons == 0)
    if not len(rows):
        raise UserError(f"{given.table.file}: none of its images has an embedding")
    # Identities do not matter here: the images are taken as they stand.
    groups = Groups(rows if len(rows) < len(given.table) else None, np.array([0, len(rows)]))
    scores = np.empty(len(rows), np.float32)
    start = 0
    try:
        for part in scores_of(_embedded(given, groups), centre):
            scores[start : start + len(part)] = part
            start += len(part)
    except UnusableRow as error:
        raise _unusable(given, error) from error
    write_columns(out_dir / ERS_SCORES, given.table, rows, [(scores, 6)])
    low, middle, high = np.percentile(scores, (5, 50, 95))
    skipped = len(given.table) - len(rows)
    return (
        f"{len(rows)} images scored against {about}: {out_dir / ERS_SCORES}\n"
        f"scores: median {middle:.3f}, 90 % between {low:.3f} and {high:.3f}"
        + (f"; {skipped} unreadable images have none" if skipped else "")
    )


def _embedded(given: LabelInput, groups: Groups) -> EmbeddedSet:
    return EmbeddedSet(given.source, groups, NumpyArrays())


def _unusable(given: LabelInput, error: UnusableRow) -> UserError:
    return UserError(
        f"{EMBEDDINGS}: row {error.row} ({given.table.path(error.row)}) {error.fault}; extract the "
        "embeddings again, or take that image out of the list"
    )


def _embed(
    wanted: UnrecognisableSource, given: LabelInput, out_dir: Path, faces: Iterator[Image]
) -> Floats:
    """(n, D) embeddings of faces, by the recogniser that made the list's."""
    if wanted.weights is None:
        raise UserError("--weights: needed to embed images; name the recogniser of the list")
    from models.recognisers import load_recogniser

    recogniser = load_recogniser(wanted.weights, wanted.backbone, wanted.device)
    beside = (out_dir / EMBEDDINGS).with_suffix(".json")
    made_by = read_json(beside).get("weights", {}) if beside.exists() else {}
    theirs = made_by.get("sha256") if isinstance(made_by, dict) else None
    ours = recogniser.about.get("sha256")
    if theirs and ours and theirs != ours:
        raise UserError(
            f"--weights {wanted.weights}: is not the recogniser that made {out_dir / EMBEDDINGS} "
            f"({made_by.get('weights', 'another file')}); their embeddings cannot be compared"
        )
    parts: list[Floats] = []
    batch: list[Image] = []
    for face in faces:
        batch.append(face)
        if len(batch) == _BATCH:
            parts.append(recogniser.embed(np.stack(batch)))
            batch = []
    if batch:
        parts.append(recogniser.embed(np.stack(batch)))
    return np.concatenate(parts)


def _images_of(folder: Path) -> Iterator[Image]:
    found = 0
    for path in find_images([str(folder)], Skipped()):
        try:
            face = read_face(path)
        except UnreadableImage as error:
            raise UserError(f"{path}: {error}; take it out of {folder}") from error
        found += 1
        yield face
    if not found:
        raise UserError(f"--ui-image-dir {folder}: holds no images")


def _degraded(wanted: UnrecognisableSource, given: LabelInput) -> Iterator[Image]:
    """Faces of the list, spoilt at full strength by every kind in turn."""
    from dataset.degradations import TRAINING_KINDS, degrade

    count = wanted.from_degraded or 0
    if count < 1:
        raise UserError(f"--ui-from-degraded {count}: must be 1 or more")
    rng = np.random.default_rng(wanted.seed)
    rows = rng.permutation(np.flatnonzero(given.reasons == 0))
    if len(rows) < count:
        raise UserError(f"--ui-from-degraded {count}: the list has {len(rows)} readable images")
    for path, kind in zip(given.table.paths_at(rows[:count]), cycle(TRAINING_KINDS), strict=False):
        try:
            yield degrade(read_face(path), kind, 1.0, rng)
        except UnreadableImage as error:
            raise UserError(
                f"{path}: {error}; --ui-from-degraded needs the images of {LABELPATH}"
            ) from error
