"""Compares labels and training faces: one head on frozen trunk features for each choice.

    python benchmarks/study_heads.py --train annotations/DATA.labelpath --out-dir heads \
        --test lfw/clean/DATA.labelpath lfw/unseen/DATA.labelpath \
        --variants exact=annotations/quality_pseudo_labels.txt \
                   "clean only=annotations/quality_pseudo_labels.txt:clean"

To train a network for each of a dozen choices takes days. A linear head on the features of a frozen
recogniser takes seconds. The head is that of `train.py --fit-head` (training/closed_form_head.py).

A variant is name=<label file>[:<choice>,...]; choices:

    clean            only undegraded faces
    -<kind>          no copies degraded by this kind (alone or with another)
    balanced         each twentieth of the label range has the same weight
    cap <N>          an identity has at most the weight of N images

The scores of a test list are written to `<out-dir>/<folder of the list>/<name>.csv`, which
eval_edc.py reads.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.device import choose_compute

# isort: split
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from common.cli import EXIT_DONE, run_script
from dataset.lists import ImageList, join, read_labelpath, read_table
from dataset.loader import batches
from evaluation.by_kind import CLEAN, kind_of
from evaluation.held_out import held_out_measures
from models.backbones.layer_graph import GraphNetwork
from models.backbones.layers import FLOOR
from models.networks import FaceModel
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import replacing
from training.closed_form_head import Ridge, features_of, invert_floor
from training.start import start_network

Floats = npt.NDArray[np.float32]
_BINS = 20


def main(
    *,
    train: Path,
    variants: tuple[str, ...],
    test: tuple[Path, ...],
    out_dir: Path,
    start: str = "sface",
    held_out: float = 0.1,
    folds: int = 0,
    by_source: bool = False,
    seed: int = 0,
) -> int:
    """Trains a head for each variant and scores the test lists with it.

    Args:
        train: DATA.labelpath of the training faces.
        variants: name=<label file>[:<choice>,...].
        test: lists to score.
        out_dir: the features and the scores are written here.
        start: the recogniser that gives the trunk, as in train.py --finetuning-model.
        held_out: share of the identities held out; Spearman with their labels is printed.
        folds: cross-validation instead: the identities are cut into so many parts, and a face is
            scored by the head that was trained without its part. The test lists then show the
            people of the training list, in folders of the same names.
        by_source: cross-validation whose parts are the sources of the faces, the folders that hold
            the people (`.../<source>/<person>/<file>`): a face is scored by the head that was
            trained on the other sources.
        seed: random seed of that share, or of the parts.
    """
    table, identities = read_labelpath(train)
    features = trunk_features(start, table, out_dir)
    tests = [(path, read_table(path)) for path in test]
    seen = {path: trunk_features(start, t, out_dir) for path, t in tests}
    numbers, people = np.unique(identities), people_of(table)
    rng = np.random.default_rng([seed, 1])
    if by_source:
        sources = np.array([path.split("/")[-3] for path in table.paths()])
        parts = [np.unique(people[sources == source]) for source in np.unique(sources)]
    elif folds:
        parts = np.array_split(rng.permutation(np.unique(people)), folds)
    else:  # the same people as train.py holds out
        out = rng.choice(numbers, round(held_out * len(numbers)), replace=False)
        parts = [np.unique(people[np.isin(identities, out)])]
    kinds = [frozenset(kind_of(path).split("+")) for path in table.paths()]
    for text in variants:
        variant = Variant.of(text)
        labels, weights = variant.sees(table, identities, kinds)
        scores = {path: np.full(len(listed), np.nan, np.float32) for path, listed in tests}
        spearman = []
        for part in parts:
            unseen = np.isin(people, part)
            head = fit(features, labels, np.where(unseen, np.float32(0), weights))
            judged = unseen & (labels > 0)
            measures = held_out_measures(head(features[judged]), labels[judged])
            spearman.append(measures["spearman"])
            for path, listed in tests:
                rows = np.flatnonzero(
                    np.isin(people_of(listed), part) | (folds == 0 and not by_source)
                )
                scores[path][rows] = head(seen[path][rows])
        print(f"{variant.name}: {np.count_nonzero(weights)} faces, unseen {np.mean(spearman):.4f}")
        for path, listed in tests:
            if np.isnan(scores[path]).any():
                raise UserError(f"{path}: these parts need lists of the people in {train}")
            write(out_dir / path.parent.name / f"{variant.name}.csv", listed, scores[path])
    return EXIT_DONE


def people_of(table: ImageList) -> npt.NDArray[np.str_]:
    """(N,) the person on each face: the name of its folder."""
    return np.array([path.split("/")[-2] for path in table.paths()])


def trunk_features(start: str, table: ImageList, folder: Path) -> Floats:
    """The features of each face for the head, from the trunk's last map: (N, D) float32.

    They are kept in a file whose name has the trunk, D, and the sha256 of the list.
    """
    network = start_network(start).network
    assert isinstance(network, GraphNetwork)
    dimension = features_of(torch.zeros(1, *network.graph["map"])).shape[1]
    path = folder / f"{Path(start).stem}-{dimension}-{table.sha256[:16]}.npy"
    if path.exists():
        kept: Floats = np.load(path)
        return kept
    compute = choose_compute()
    network.quality = torch.nn.Sequential()  # no head: the output is the trunk's map
    model = FaceModel(network).to(memory_format=torch.channels_last).to(compute.device).eval()
    found = np.zeros((len(table), dimension), np.float32)
    with torch.inference_mode(), compute.autocast():
        rows = np.arange(len(table), dtype=np.int64)
        for batch in tqdm(batches(table, rows, 16, None), desc=path.name, total=len(table) // 16):
            if batch.failures:
                raise UserError(f"{table.file}: {next(iter(batch.failures.values()))}")
            found[batch.rows] = features_of(model(compute.put(batch.faces))).cpu().numpy()
    with replacing(path, "wb") as file:
        np.save(file, found)
    return found


@dataclass(frozen=True)
class Variant:
    """One choice of labels and faces."""

    name: str
    labels: Path
    choices: tuple[str, ...]

    @staticmethod
    def of(text: str) -> Variant:
        """Reads name=<label file>[:<choice>,...]."""
        name, _, rest = text.partition("=")
        path, _, choices = rest.partition(":")
        if not name or not path:
            raise UserError(f"--variants {text}: must be name=<label file>[:<choice>,...]")
        return Variant(name, Path(path), tuple(c.strip() for c in choices.split(",") if c))

    def sees(
        self, table: ImageList, identities: npt.NDArray[Any], kinds: list[frozenset[str]]
    ) -> tuple[Floats, Floats]:
        """(N,) labels and (N,) weights of the faces in the list; weight 0: not used."""
        given = read_table(self.labels, "label")
        rows = join(given, table)
        labels = np.zeros(len(table), np.float32)
        weights = np.zeros(len(table), np.float32)
        labels[rows[rows >= 0]] = given.values[rows >= 0]
        weights[rows[rows >= 0]] = 1
        for choice in self.choices:
            if choice == "clean":
                weights[[kind != {CLEAN} for kind in kinds]] = 0
            elif choice.startswith("-"):
                weights[[choice[1:] in kind for kind in kinds]] = 0
            elif choice == "balanced":
                bins = np.minimum(labels // (100 / _BINS), _BINS - 1).astype(int)
                weights /= np.maximum(np.bincount(bins, weights, _BINS), 1)[bins]
            elif choice.startswith("cap "):
                counts = np.bincount(identities, weights)[identities]
                weights *= np.minimum(1, int(choice[4:]) / np.maximum(counts, 1))
            else:
                raise UserError(f"--variants: {choice!r} is no choice")
        return labels, weights / weights[weights > 0].mean()


def fit(features: Floats, labels: Floats, weights: Floats) -> Callable[[Floats], Floats]:
    """Fits a head, (N, D) -> (N,), to (N, D) features, (N,) labels and (N,) weights (0: unused)."""
    ridge = Ridge(features.shape[1])
    rows = np.flatnonzero(weights)
    for part in np.array_split(rows, max(1, len(rows) // 8192)):
        seen, wanted, weight = (torch.from_numpy(a[part]) for a in (features, labels, weights))
        ridge.add(seen, invert_floor(wanted), weight)
    slopes, level = ridge.solve()
    slope = slopes.float().numpy()
    return lambda x: np.asarray(FLOOR * np.logaddexp(0, (x @ slope + level) / FLOOR), np.float32)


def write(path: Path, table: ImageList, scores: Floats) -> None:
    """Writes a scores.csv."""
    with replacing(path) as file:
        rows = csv.writer(file)
        rows.writerow(["path", "score", "status"])
        for name, score in zip(table.paths(), scores.tolist(), strict=True):
            rows.writerow([name, f"{score:.4f}", "ok"])


if __name__ == "__main__":
    run_script(main)
