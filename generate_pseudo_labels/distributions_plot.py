"""What distributions.png shows of a labelled set: a sample of similarities and three images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dataset.containers import split_member
from generate_pseudo_labels.distance.array_backend import NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups, Positions
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet
from generate_pseudo_labels.label_files import LabelInput, Labelling
from sdd_fiqa.errors import UserError

PICTURE = "distributions.png"
_IMAGES, _MATES, _OTHERS = 400, 64, 1500  # enough for a smooth histogram; read in milliseconds
# A little inside the range: the very best and worst are often accidents.
_EXAMPLES = {"good": 0.98, "middling": 0.5, "bad": 0.02}

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Sample:
    """Random outsiders, and the means to compare an image with them and with its own identity."""

    embedded: EmbeddedSet
    others: Positions
    other_rows: Values

    def of(self, position: int) -> tuple[Values, Values]:
        """Similarities of one image: to (some of) its identity, to others."""
        starts = self.embedded.groups.starts
        owner = int(np.searchsorted(starts, position, side="right")) - 1
        start, stop = int(starts[owner]), int(starts[owner + 1])
        face = self.embedded.span(position, position + 1)[0]
        step = -(-(stop - start) // _MATES)
        mates = np.arange(start, stop, step)
        mates = mates[mates != position]
        if len(mates) == 0:  # of a pair, the step may leave only the image itself
            mates = np.array([start if position != start else start + 1])
        outside = (self.others < start) | (self.others >= stop)
        return self.embedded.at(mates) @ face, self.other_rows[outside] @ face


def draw_picture(
    path: Path, given: LabelInput, groups: Groups, result: Labelling, seed: int
) -> None:
    """Draws distributions.png for a labelled set."""
    from evaluation.distributions import Example, draw_distributions

    rng = np.random.default_rng(seed)
    embedded = EmbeddedSet(given.source, groups, NumpyArrays())
    others = np.sort(rng.choice(len(groups), min(_OTHERS, len(groups)), replace=False))
    sample = _Sample(embedded, others, embedded.at(others))
    labels = result.labels if groups.rows is None else result.labels[groups.rows]
    labelled = np.flatnonzero(~np.isnan(labels))
    some = labelled[np.linspace(0, len(labelled) - 1, min(_IMAGES, len(labelled))).astype(int)]
    pairs = [sample.of(int(position)) for position in some]
    by_label = labelled[np.argsort(labels[labelled], kind="stable")]
    examples = []
    for title, share in _EXAMPLES.items():
        position = int(by_label[round(share * (len(by_label) - 1))])
        row = int(groups.rows_of(np.array([position]))[0])
        own, outside = sample.of(position)
        w1 = float(result.distances.w1[row, 0])
        face = _face(given.table.path(row))
        examples.append(Example(title, float(result.labels[row]), w1, own, outside, face))
    draw_distributions(
        path,
        positives=np.concatenate([own for own, _ in pairs]),
        negatives=np.concatenate([outside[:: 1 + len(outside) // 200] for _, outside in pairs]),
        label_counts=result.summary["label_histogram"],
        examples=examples,
        caption=f"{result.summary['labelled']:,} labelled images of "
        f"{result.summary['identities']:,} identities; similarities of {len(some)} of them",
    )


def _face(path: str) -> npt.NDArray[np.uint8] | None:
    """The face, or None: labels need embeddings only, the images may be elsewhere."""
    inside = split_member(path)
    if not Path(inside[0] if inside else path).is_file():
        return None  # without loading what decodes images
    from dataset.images import read_face
    from sdd_fiqa.errors import UnreadableImage

    with suppress(UnreadableImage, UserError):
        return read_face(path)
    return None
