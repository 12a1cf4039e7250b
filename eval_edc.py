"""Proof: error-versus-discard curves and every published area under them, from scores and faces.

    python eval_edc.py --scores scores.csv --feats annotations/feats_npy/Embedding_Features.npy \
        --image-list annotations/DATA.labelpath --reference random norm --bootstrap 1000

prints one table and writes results.md, results.csv, results.json, edc.png and, from the scores
given, calibration.json.
docs/evaluation.md says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, run_script
from dataset.embeddings import read_norms
from dataset.lists import Identities, ImageList, read_labelpath, refuse_repeats
from dataset.loader import batches
from dataset.scores import read_scores
from evaluation.edc import gather
from evaluation.edc.advice import Advice, advise
from evaluation.edc.areas import FULL_LIMIT
from evaluation.edc.curves import DiscardRule, Rules, ThresholdRule, Values
from evaluation.edc.plots import plot_curves
from evaluation.edc.references import laplacian_variance, own_labels, random_scores
from evaluation.edc.results import Report, markdown, write_calibration, write_results
from evaluation.edc.study import PROTOCOLS, Cell, differences, study
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import make_parent

Reference = Literal["random", "norm", "sharpness", "labels", "ers"]
MIN_REPLICATES = 20  # below, the ends of a 95 % interval are the extremes


def main(
    feats: tuple[Path, ...],
    image_list: Path,
    scores: tuple[Path, ...] = (),
    fmr: tuple[float, ...] = (1e-2, 1e-3, 1e-4),
    pairs: Path | None = None,
    protocol: Literal["sdd-fiqa", "iso", "cr-fiqa", "fraunhofer"] | None = None,
    threshold_at: tuple[ThresholdRule, ...] = (),
    discard: tuple[DiscardRule, ...] = (),
    limit: tuple[float, ...] = (0.2, 0.3),
    max_images_per_id: int | None = None,
    min_images_per_id: int = 2,
    exclude: Path | None = None,
    impostor_pairs: int = 0,
    bootstrap: int = 0,
    reference: tuple[Reference, ...] = (),
    advise_at: float | None = None,
    seed: int = 0,
    out_dir: Path = Path("edc"),
) -> int:
    """Says how well quality scores foretell recognition errors, under any published protocol.

    Args:
        feats: embeddings, (N, D) .npy, row i = line i of the image list; one file a recogniser.
        image_list: DATA.labelpath, `<path> TAB <identity index>`.
        scores: `path,score` CSV with a header, or `path TAB score` text; one file a scorer.
        fmr: target false match rates.
        pairs: a verification list (LFW's pairs.txt, `image image 0|1`, or a .bin) instead of all
            pairs.
        protocol: sets threshold, discard and the area that orders the table, as the papers do;
            sdd-fiqa's where nothing is named.
        threshold_at: recomputed on what remains (the default), or fixed at no discard, or both.
        discard: images with their pairs (the default), or pairs by their worse image, or both.
        limit: L of the partial areas.
        max_images_per_id: draw at most so many images of each identity.
        min_images_per_id: leave out identities with fewer images.
        exclude: a text file of images to leave out, one a line.
        impostor_pairs: look at so many impostor pairs, drawn at random; 0 for all of them.
        bootstrap: redraw the identities so many times, for 95 % intervals; 0 for none.
        reference: scores to compare with, made from the same inputs.
        advise_at: the FMR of the advice and of calibration.json; 1e-3 if it is among --fmr, else
            the first of them.
        seed: of every draw.
        out_dir: the folder to write to.
    """
    fmr, limit = tuple(dict.fromkeys(fmr)), tuple(dict.fromkeys(limit))
    rules, area = choose_rules(protocol, threshold_at, discard, limit)
    if not feats:
        raise UserError("--feats: give at least one")
    check_numbers(fmr, limit, impostor_pairs, bootstrap)
    check_seed(seed)
    at = choose_fmr(fmr, advise_at)
    check_out_dir(out_dir, [*feats, image_list, *scores, *filter(None, (pairs, exclude))])
    notes = gather.Notes()
    table, identities = read_labelpath(image_list)
    refuse_repeats(table)
    features = gather.load_features(feats, table, notes)
    scored = gather.load_scores(scores, table, notes)
    files = dict(zip(features, feats, strict=True))
    lone = pairs is not None or min_images_per_id == 1  # an image without a mate takes part
    made = reference_scores(reference, table, identities, files, seed, lone, notes)
    if clash := scored.keys() & made.keys():
        raise UserError(f"--scores and --reference both give {min(clash)}: rename the file")
    judged = scored | made
    if not judged:
        raise UserError("nothing to judge: give --scores, --reference or both")
    needed = {name: own for name, own in judged.items() if lone or not is_label(name, made)}
    usable = gather.usable_images(table, features, needed, notes)
    excluded = gather.excluded_images(exclude, table, notes)
    listed = None
    if pairs is None:
        limits = (max_images_per_id, min_images_per_id)
        chosen = gather.select_images(
            image_list, identities, usable & ~excluded, *limits, seed, notes
        )
    elif max_images_per_id or impostor_pairs or min_images_per_id != 2:
        raise UserError(
            "--pairs says which pairs to compare: leave out --max-images-per-id,"
            " --min-images-per-id and --impostor-pairs"
        )
    else:
        listed, chosen = gather.select_pairs(pairs, table, usable, excluded, notes)

    of_chosen = gather.choose_scores(judged, chosen, notes)
    by_images = Rules(rules[0].threshold, "images")  # what the advice is about
    cells: list[Cell] = []
    passes = 2 * len(features) * int(np.count_nonzero(chosen))  # over the rows of all similarities
    with tqdm(total=passes, unit=" rows", unit_scale=True, leave=False) as bar:
        for name, array in features.items():
            bar.set_description(name)
            try:
                source = gather.open_pairs(
                    array, identities, chosen, listed, impostor_pairs, seed, bar.update
                )
                if not cells:
                    gather.describe(source, listed, seed, bootstrap, notes)
                cells += study(
                    {name: source},
                    of_chosen,
                    fmr,
                    list(dict.fromkeys([*rules, by_images])),
                    area,
                    limit,
                    bootstrap,
                    seed,
                )
            except ValueError as error:
                raise UserError(f"{image_list}: {error}") from error

    advice = advise_on(cells, list(scored or judged), at, by_images)
    shown = [cell for cell in cells if cell.curve.rules in rules]
    report = Report(notes.lines, shown, differences(shown, area, limit), advice, area)
    print(markdown(report))
    write_results(out_dir, report)
    plot_curves(out_dir / "edc.png", shown, area)
    write_calibrations(out_dir, report, list(scored))
    return EXIT_SKIPPED if notes.skipped else EXIT_DONE


def check_out_dir(out_dir: Path, read: Sequence[Path]) -> None:
    """Refuses what cannot be written, and what would be written over an input: now, not later."""
    for name in ("results.md", "results.csv", "results.json", "edc.png", "calibration.json"):
        make_parent(out_dir / name)
        if any((out_dir / name).resolve() == path.resolve() for path in read):
            raise UserError(f"--out-dir {out_dir}: its {name} is read; name another folder")


def choose_rules(
    protocol: str | None,
    threshold_at: Sequence[ThresholdRule],
    discard: Sequence[DiscardRule],
    limits: Sequence[float],
) -> tuple[list[Rules], str]:
    """The curves to draw, and the area that orders the table."""
    if protocol is None:
        rules = [
            Rules(threshold, what)
            for threshold in threshold_at or ("recomputed",)
            for what in discard or ("images",)
        ]
        return list(dict.fromkeys(rules)), "aoc"
    if threshold_at or discard:
        raise UserError(f"--protocol {protocol} sets --threshold-at and --discard: leave them out")
    threshold, what, area = PROTOCOLS[protocol]
    if area.endswith("_0.3") and 0.3 not in limits:
        raise UserError(f"--protocol {protocol} compares up to L = 0.3: add 0.3 to --limit")
    return [Rules(threshold, what)], area


def check_numbers(
    fmrs: Sequence[float], limits: Sequence[float], impostor_pairs: int, bootstrap: int
) -> None:
    """Raises UserError on numbers outside their range."""
    if not fmrs:
        raise UserError("--fmr: give at least one")
    for fmr in fmrs:
        if not 0 < fmr < 1:
            raise UserError(f"--fmr {fmr:g}: must lie between 0 and 1")
    for limit in limits:
        if not 0 < limit <= FULL_LIMIT:
            raise UserError(f"--limit {limit:g}: must lie above 0 and not above {FULL_LIMIT:g}")
    if impostor_pairs < 0:
        raise UserError(f"--impostor-pairs {impostor_pairs}: must be 0 (all) or more")
    if bootstrap < 0 or 0 < bootstrap < MIN_REPLICATES:
        raise UserError(f"--bootstrap {bootstrap}: must be 0 (none) or at least {MIN_REPLICATES}")


def choose_fmr(fmrs: Sequence[float], advise_at: float | None) -> float:
    """The FMR of the advice."""
    if advise_at is None:
        return 1e-3 if 1e-3 in fmrs else fmrs[0]
    if advise_at not in fmrs:
        raise UserError(f"--advise-at {advise_at:g}: must be one of --fmr")
    return advise_at


def reference_scores(
    references: Sequence[Reference],
    table: ImageList,
    identities: Identities,
    feats: Mapping[str, Path],
    seed: int,
    lone: bool,
    notes: gather.Notes,
) -> gather.ScoreTable:
    """The scores of --reference, by name; NaN for images that have none.

    `lone`: images without a mate, which have no label, would else take part.
    """
    found: gather.ScoreTable = {}
    for name in references:
        if name == "random":
            found[name] = random_scores(len(table), seed)
        elif name == "sharpness":
            found[name] = sharpness(table)
        elif name == "ers":
            path = table.file.with_name("ers_scores.txt")
            if not path.exists():
                raise UserError(f"{path}: is missing; make it with gen_ers_scores.py")
            found[name] = read_scores(path, table).values
        else:
            for recogniser, path in feats.items():
                full = name if len(feats) == 1 else f"{name} ({recogniser})"
                found[full] = (
                    read_norms(path, table)
                    if name == "norm"
                    else own_labels(path, table, identities)
                )
    for scorer, values in found.items():
        if is_label(scorer, found) and not lone:
            continue
        lost = int(np.count_nonzero(np.isnan(values)))
        notes.leave_out(lost, f"{lost:,} of {len(table):,} images have no {scorer}")
    return found


def is_label(scorer: str, made: Mapping[str, Values]) -> bool:
    """Whether a scorer is --reference labels, for one of the recognisers."""
    return scorer in made and scorer.startswith("labels")


def sharpness(table: ImageList) -> Values:
    """(N,) variance of the Laplacian of every image of the list; NaN where it cannot be read."""
    found = np.full(len(table), np.nan)
    for batch in batches(table, np.arange(len(table)), 256):
        good = batch.readable
        found[batch.rows[good]] = laplacian_variance(batch.faces[good])
    if np.all(np.isnan(found)):
        raise UserError(f"{table.file}: no image can be read; --reference sharpness needs them")
    return found


def advise_on(
    cells: Sequence[Cell], scorers: Sequence[str], fmr: float, rules: Rules
) -> dict[str, tuple[Cell, Advice]]:
    """The advice of the first recogniser, at one FMR under one pair of rules, by scorer."""
    first = cells[0].recogniser
    return {
        cell.scorer: (cell, advise(cell.curve, cell.replicates))
        for cell in cells
        if (cell.recogniser, cell.curve.fmr, cell.curve.rules) == (first, fmr, rules)
        and cell.scorer in scorers
        and not np.isnan(cell.curve.fnmr[0])
    }


def write_calibrations(folder: Path, report: Report, scorers: Sequence[str]) -> None:
    """calibration.json for the first scorer given, calibration_<name>.json for the others."""
    (folder / "calibration.json").unlink(missing_ok=True)  # an earlier run's
    for scorer in scorers:
        name = "" if scorer == scorers[0] else "_" + scorer.replace("/", "_")
        path = folder / f"calibration{name}.json"
        if scorer in report.advice:
            write_calibration(path, *report.advice[scorer])
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    run_script(main)
