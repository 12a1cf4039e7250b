"""distributions.png: how similar people are to themselves and to others, in a labelled set."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.images import read_face
from generate_pseudo_labels.distance.array_backend import Float32, Indices, NumpyArrays
from generate_pseudo_labels.distance.blocks import Groups
from generate_pseudo_labels.distance.embedded_set import EmbeddedSet
from generate_pseudo_labels.label_files import LabelInput, Labelling
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import replacing
from sdd_fiqa.number import count_of

PICTURE = "distributions.png"
_IMAGES, _MATES, _OTHERS = 400, 64, 1500  # enough for a smooth histogram; read in milliseconds
# A little inside the range: the very best and the very worst are often accidents.
_EXAMPLES = {"good": 0.98, "middling": 0.5, "bad": 0.02}
_POSITIVE, _NEGATIVE, _NEUTRAL = "#2a7f9e", "#c8553d", "#5a5a6e"
_BINS = 80

Pair = tuple[Float32, Float32]  # similarities of an image to its identity, and to others


def _similarities(
    embedded: EmbeddedSet, others: Indices, other_rows: Float32, position: int
) -> Pair:
    """Similarities of one image: to (some of) its identity, to those of `others` outside it."""
    starts = embedded.groups.starts
    owner = int(np.searchsorted(starts, position, side="right")) - 1
    start, stop = int(starts[owner]), int(starts[owner + 1])
    face = embedded.span(position, position + 1)[0]
    mates = np.delete(np.arange(start, stop), position - start)[:: -(-(stop - start) // _MATES)]
    outside = (others < start) | (others >= stop)
    return embedded.at(mates) @ face, other_rows[outside] @ face


def draw_picture(
    path: Path, inputs: LabelInput, groups: Groups, labelling: Labelling, seed: int
) -> None:
    """Draws pooled Pos-Sim and Neg-Sim, the labels' histogram and three images' distributions.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng(seed)
    embedded = EmbeddedSet(inputs.embeddings, groups, NumpyArrays())
    others = np.sort(rng.choice(len(groups), min(_OTHERS, len(groups)), replace=False))
    of = partial(_similarities, embedded, others, embedded.at(others))
    labels = labelling.labels if groups.rows is None else labelling.labels[groups.rows]
    labelled = np.flatnonzero(~np.isnan(labels))
    some = labelled[np.linspace(0, len(labelled) - 1, min(_IMAGES, len(labelled))).astype(int)]
    pairs = [of(int(position)) for position in some]
    positives = np.concatenate([own for own, _ in pairs])
    negatives = np.concatenate([outside[:: 1 + len(outside) // 200] for _, outside in pairs])
    ends = np.concatenate([positives, negatives, [0.0, 0.01]])
    edges = np.linspace(ends.min(), ends.max(), _BINS + 1)

    figure = Figure(figsize=(12, 7.2), layout="constrained")  # no pyplot: no display is needed
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 0.9))[:, 0]
    pooled, histogram = top.subplots(1, 2, width_ratios=(1.3, 1))
    _two_histograms(pooled, (positives, negatives), edges)
    pooled.set_title("cosine similarity, pooled", loc="left")
    pooled.legend(frameon=False)
    counts = labelling.summary["label_histogram"]
    histogram.stairs(counts, np.linspace(0, 100, len(counts) + 1), fill=True, color=_NEUTRAL)
    histogram.set_title("quality pseudo-label", loc="left")
    histogram.set_ylabel("images")
    histogram.set_xlim(0, 100)
    by_label = labelled[np.argsort(labels[labelled], kind="stable")]
    panels = bottom.subplots(1, len(_EXAMPLES), squeeze=False)[0]
    for axes, (title, share) in zip(panels, _EXAMPLES.items(), strict=True):
        position = int(by_label[round(share * (len(by_label) - 1))])
        row = int(groups.rows_of(np.array([position]))[0])
        w1 = float(labelling.distances.w1[row, 0])
        _two_histograms(axes, of(position), edges[::2])
        axes.set_title(f"{title}: label {labels[position]:.1f}, W1 {w1:.3f}", loc="left")
        _show_face(axes, inputs.images.path(row))
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    summary = labelling.summary
    caption = (
        f"{count_of(summary['labelled'], 'labelled image')} of "
        f"{count_of(summary['identities'], 'identity')}; similarities of {len(some)} of them"
    )
    figure.supxlabel(caption, fontsize=9, color=_NEUTRAL)
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def _two_histograms(axes: Any, pair: Pair, edges: npt.NDArray[np.float64]) -> None:
    """Both as densities, so that few positives can be compared with many negatives."""
    for values, name, colour in (
        (pair[1], "Neg-Sim (others)", _NEGATIVE),
        (pair[0], "Pos-Sim (own identity)", _POSITIVE),
    ):
        counts, _ = np.histogram(values, edges)
        density = counts / max(1, counts.sum()) / np.diff(edges)
        axes.stairs(density, edges, fill=True, alpha=0.55, color=colour, label=name)
        if len(values):
            axes.axvline(float(np.mean(values)), color=colour, linewidth=1.2)
    axes.set_yticks([])


def _show_face(axes: Any, path: str) -> None:
    """Shows an image above the bars, where it can be read."""
    with suppress(UnreadableImage, UserError):  # the images may be elsewhere
        face = read_face(path)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.8)
        corner = axes.inset_axes((0.72, 0.52, 0.27, 0.46))
        corner.imshow(face)
        corner.set_axis_off()
