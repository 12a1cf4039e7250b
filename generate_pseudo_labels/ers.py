"""Embedding recognisability scores (ERS): how far a face is from unrecognisable ones.

"Harnessing Unrecognizable Faces for Improving Face Recognition" (Deng et al., arXiv 2106.04112):
unrecognisable faces of all people gather in one cluster of the embedding space, the unrecognisable
identity (UI). With f_UI its normalised mean, ERS_i = min(1, 1 - <f_i, f_UI>). No identity is
needed, so every image gets a score, and a face without mates too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from dataset.columns import write_columns
from dataset.degradations import TRAINING_KINDS, degrade
from dataset.embeddings import EMBEDDINGS, EmbeddingsFile
from dataset.find import find_images
from dataset.images import read_face
from dataset.left_out import Skipped
from dataset.lists import LABELPATH
from generate_pseudo_labels.distance.array_backend import Float32, NumpyArrays
from generate_pseudo_labels.distance.blocks import group_by_identity
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet, UnusableRow
from generate_pseudo_labels.label_files import LabelInput
from models.recognisers import load_recogniser
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import read_json
from sdd_fiqa.images import Image
from sdd_fiqa.number import count_of

ERS_SCORES = "ers_scores.txt"
_BATCH = 64  # faces
_BLOCK = 8192  # images
_SAMPLE = 4096  # images among which a cluster is searched
_NEIGHBOURS = 8  # identities
_STANDS_OUT = 0.15  # similarity of a cluster's images above the usual
_ROUNDS = 20


@dataclass(frozen=True)
class UnrecognisableSource:
    """Where unrecognisable faces come from. Each field is a flag of gen_ers_scores.

    Attributes:
        ui_feats: .npy with embeddings of unrecognisable images, one a row.
        ui_image_dir: folder of unrecognisable face images (needs weights).
        ui_from_degraded: degrade this many faces of the list beyond recognition (needs weights).
        ui_from_cluster: look for the place where images of different people gather.
        weights: the recogniser that made the list's embeddings: a known name or a file.
        backbone: of a torch checkpoint; found from the file when not given.
        seed: of the choice of faces and of their degradation.
        device: auto, cpu, cuda or cuda:i.
    """

    ui_feats: Path | None = None
    ui_image_dir: Path | None = None
    ui_from_degraded: int | None = None
    ui_from_cluster: bool = False
    weights: str | None = None
    backbone: str | None = None
    seed: int = 0
    device: str = "auto"


def find_centre(
    source: UnrecognisableSource, inputs: LabelInput, out_dir: Path
) -> tuple[Float32, str]:
    """The centre of the unrecognisable identity, (D,), and a line about its origin.

    Raises:
        UserError: not exactly one source, a source that cannot be used, or another recogniser.
    """
    sources = (source.ui_feats, source.ui_image_dir, source.ui_from_degraded)
    if sum(one is not None for one in sources) + source.ui_from_cluster != 1:
        raise UserError(
            "give one source of unrecognisable faces: --ui-feats, --ui-image-dir, "
            "--ui-from-degraded or --ui-from-cluster"
        )
    dimension = inputs.embeddings.shape[1]
    try:
        if source.ui_from_cluster:
            groups = group_by_identity(inputs.identities, inputs.reasons == 0)
            embedded = EmbeddedSet(inputs.embeddings, groups, NumpyArrays())
            centre, count = find_cluster(embedded, source.seed)
            return centre, f"a cluster of {count_of(count, 'image')} of different people"
        if source.ui_feats is not None:
            name = str(source.ui_feats)
            file = EmbeddingsFile(source.ui_feats)
            rows = np.asarray(file.read(0, file.shape[0]), np.float32)
        elif source.ui_image_dir is not None:
            name = str(source.ui_image_dir)
            rows = _embed(source, out_dir, _images_of(source.ui_image_dir))
        else:
            rows = _embed(source, out_dir, _degraded(source, inputs))
            name = count_of(len(rows), "degraded face")
        if rows.shape[1] != dimension:
            raise UserError(
                f"{name}: has embeddings of {rows.shape[1]} numbers, the list's have {dimension}; "
                "use the recogniser that made the list's"
            )
        return centre_of(rows), f"{count_of(len(rows), 'unrecognisable face')} ({name})"
    except UnusableRow as error:
        raise inputs.unusable(error) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"unrecognisable faces: {error}; try another source") from error


def write_scores(out_dir: Path, inputs: LabelInput, centre: Float32, about: str) -> str:
    """Writes ers_scores.txt in list order; returns what to tell the user."""
    images = len(inputs.images)
    # Identities do not matter here: all images are one group, in list order.
    groups = group_by_identity(np.zeros(images, np.int32), inputs.reasons == 0)
    rows = groups.all_rows()
    if not len(rows):
        raise UserError(f"{inputs.images.file}: none of its images has an embedding")
    embedded = EmbeddedSet(inputs.embeddings, groups, NumpyArrays())
    scores = np.empty(len(rows), np.float32)
    try:
        for start in range(0, len(rows), _BLOCK):
            faces = embedded.span(start, min(start + _BLOCK, len(rows)))
            scores[start : start + len(faces)] = np.clip(1 - faces @ centre, 0, 1)
    except UnusableRow as error:
        raise inputs.unusable(error) from error
    write_columns(out_dir / ERS_SCORES, inputs.images, rows, [(scores, 6)])
    low, middle, high = np.percentile(scores, (5, 50, 95))
    skipped = (
        f"; {count_of(images - len(rows), 'unreadable image')} without"
        if len(rows) < images
        else ""
    )
    return (
        f"{count_of(len(rows), 'image')} scored against {about}: {out_dir / ERS_SCORES}\n"
        f"scores: median {middle:.3f}, 90 % between {low:.3f} and {high:.3f}{skipped}"
    )


def centre_of(unrecognisable: Float32) -> Float32:
    """(n, D) embeddings of unrecognisable images -> (D,) f_UI, of length 1.

    Raises:
        ValueError: there are none, or they cancel each other out.
    """
    lengths = np.linalg.norm(unrecognisable, axis=1, keepdims=True)
    usable = (np.isfinite(lengths) & (lengths > 0))[:, 0]
    if not usable.any():
        raise ValueError("holds no embedding that has a direction")
    mean = (unrecognisable[usable] / lengths[usable]).mean(0, dtype=np.float64)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise ValueError("its embeddings cancel each other out")
    centre: Float32 = (mean / length).astype(np.float32)
    return centre


def find_cluster(embedded: EmbeddedSet, seed: int) -> tuple[Float32, int]:
    """Looks for the UI in the set itself: the direction where images of different people gather.

    Recognisable faces are close to their own identity only; unrecognisable ones of all identities
    are close to each other. So, in a sample, the first member of the cluster is the image that is
    most similar to images of several OTHER identities, one of each. (With one other identity, it
    would be a mislabelled image.) Images belong to the cluster that are at least half as far above
    the usual similarity as the first member's neighbours are; they are found in rounds.

    Returns:
        (D,) f_UI and how many images of the sample belong to the cluster.

    Raises:
        ValueError: no such cluster: fewer than 3 identities, or images of different people do not
            gather.
    """
    rng = np.random.default_rng(seed)
    count = len(embedded.groups)
    positions = np.sort(rng.choice(count, min(_SAMPLE, count), replace=False))
    owner = np.searchsorted(embedded.groups.starts, positions, side="right") - 1
    rows: Float32 = embedded.at(positions)
    similarity = rows @ rows.T
    similarity[owner[:, None] == owner] = -1
    begins = np.flatnonzero(np.diff(owner, prepend=-1))  # positions are sorted by identity
    closest = np.maximum.reduceat(similarity, begins, axis=1)  # (n, identities)
    near = min(_NEIGHBOURS, len(begins) - 1)
    if near < 2:
        raise ValueError("it has fewer than 3 identities")
    crowd = np.partition(closest, -near, axis=1)[:, -near:].mean(1)
    first = int(crowd.argmax())
    # The typical image has close strangers too, by chance.
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


def _embed(source: UnrecognisableSource, out_dir: Path, faces: Iterator[Image]) -> Float32:
    """(n, D) embeddings of faces, by the recogniser that made the list's."""
    if source.weights is None:
        raise UserError("--weights: needed to embed images; name the recogniser of the list")
    recogniser = load_recogniser(source.weights, source.backbone, source.device)
    about = (out_dir / EMBEDDINGS).with_suffix(".json")
    made_by = read_json(about).get("weights") if about.exists() else {}  # checked with the rows
    made_by = made_by if isinstance(made_by, dict) else {}
    if made_by.get("sha256") not in (None, recogniser.about["sha256"]):
        raise UserError(
            f"--weights {source.weights}: is not the recogniser that made {out_dir / EMBEDDINGS} "
            f"({made_by.get('weights', 'another file')}); their embeddings cannot be compared"
        )
    parts: list[Float32] = []
    while batch := list(islice(faces, _BATCH)):
        parts.append(recogniser.embed(np.stack(batch)))
    return np.concatenate(parts)


def _images_of(folder: Path) -> Iterator[Image]:
    paths = list(find_images([str(folder)], Skipped()))
    if not paths:
        raise UserError(f"--ui-image-dir {folder}: holds no images")
    for path in paths:
        try:
            yield read_face(path)
        except UnreadableImage as error:
            raise UserError(f"{path}: {error}; take it out of {folder}") from error


def _degraded(source: UnrecognisableSource, inputs: LabelInput) -> Iterator[Image]:
    """Faces of the list, degraded at full strength by every kind in turn."""
    count = source.ui_from_degraded or 0
    if count < 1:
        raise UserError(f"--ui-from-degraded {count}: must be 1 or more")
    rng = np.random.default_rng(source.seed)
    rows = rng.permutation(np.flatnonzero(inputs.reasons == 0))
    if len(rows) < count:
        raise UserError(
            f"--ui-from-degraded {count}: the list has {count_of(len(rows), 'readable image')}"
        )
    paths = inputs.images.paths_at(rows[:count])
    for path, kind in zip(paths, cycle(TRAINING_KINDS), strict=False):
        try:
            yield degrade(read_face(path), kind, 1.0, rng)
        except UnreadableImage as error:
            raise UserError(
                f"{path}: {error}; --ui-from-degraded needs the images of {LABELPATH}"
            ) from error
