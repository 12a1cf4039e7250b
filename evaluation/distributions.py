"""The picture of the label step: how similar people are to themselves and to others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.files import replacing

POSITIVE, NEGATIVE, NEUTRAL = "#2a7f9e", "#c8553d", "#5a5a6e"
_BINS = 80

Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """One image's own two distributions.

    Attributes:
        title: "good", "middling" or "bad".
        label: its label, 0..100.
        w1: its W1(P_i, N_i).
        positives: its similarities to the other images of its identity.
        negatives: its similarities to images of others.
        face: (H, W, 3) uint8, RGB; None when the list's paths do not exist.
    """

    title: str
    label: float
    w1: float
    positives: Values
    negatives: Values
    face: npt.NDArray[np.uint8] | None = None


def draw_distributions(
    path: str | os.PathLike[str],
    *,
    positives: Values,
    negatives: Values,
    label_counts: Sequence[int],
    examples: Sequence[Example],
    caption: str,
) -> None:
    """Draws pooled Pos-Sim and Neg-Sim, the labels' histogram and some images' own distributions.

    Args:
        path: the .png, written whole or not at all.
        positives: similarities within identities, of a sample of images.
        negatives: similarities to other identities, of the same images.
        label_counts: images in equal steps of the label, 0..100.
        examples: drawn below, one panel each.
        caption: a line about the set, at the bottom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.2), layout="constrained")  # no pyplot: no display is needed
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    columns = max(len(examples), 2)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 0.9))[:, 0]
    pooled, labels = top.subplots(1, 2, width_ratios=(1.3, 1))
    edges = _edges(positives, negatives)
    _two_histograms(pooled, positives, negatives, edges)
    pooled.set_title("cosine similarity, pooled", loc="left")
    pooled.legend(frameon=False)
    steps = np.linspace(0, 100, len(label_counts) + 1)
    labels.stairs(label_counts, steps, fill=True, color=NEUTRAL)
    labels.set_title("quality pseudo-label", loc="left")
    labels.set_ylabel("images")
    labels.set_xlim(0, 100)
    for axes, example in zip(bottom.subplots(1, columns, squeeze=False)[0], examples, strict=False):
        _two_histograms(axes, example.positives, example.negatives, edges[::2])
        axes.set_title(
            f"{example.title}: label {example.label:.1f}, W1 {example.w1:.3f}", loc="left"
        )
        if example.face is not None:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.8)  # room for the face above the bars
            corner = axes.inset_axes((0.72, 0.52, 0.27, 0.46))
            corner.imshow(example.face)
            corner.set_axis_off()
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=9, color=NEUTRAL)
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def _edges(positives: Values, negatives: Values) -> npt.NDArray[np.float64]:
    both = np.concatenate([positives, negatives])
    low, high = float(both.min(initial=0.0)), float(both.max(initial=0.01))
    return np.linspace(low, high, _BINS + 1)


def _two_histograms(
    axes: Any, positives: Values, negatives: Values, edges: npt.NDArray[np.float64]
) -> None:
    """Both as densities, so that few positives stand beside many negatives."""
    for values, name, colour in (
        (negatives, "Neg-Sim (others)", NEGATIVE),
        (positives, "Pos-Sim (own identity)", POSITIVE),
    ):
        counts, _ = np.histogram(values, edges)
        density = counts / max(1, counts.sum()) / np.diff(edges)
        axes.stairs(density, edges, fill=True, alpha=0.55, color=colour, label=name)
        if len(values):
            axes.axvline(float(np.mean(values)), color=colour, linewidth=1.2)
    axes.set_yticks([])
