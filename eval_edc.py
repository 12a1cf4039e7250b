"""Error-versus-discard curves and every published area under them, from scores and faces.

    python eval_edc.py --scores scores.csv --feats annotations/feats_npy/Embedding_Features.npy \
        --image-list annotations/DATA.labelpath --reference random norm --bootstrap 1000

prints one table and writes results.md, results.csv, results.json, edc.png and, from the scores
given, calibration.json.
docs/evaluation.md says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_at_least, check_seed, run_script
from dataset.lists import read_labelpath, refuse_repeats
from dataset.score_files import ScoreForm
from evaluation.edc import gather
from evaluation.edc.advice import advise_scorers, write_calibrations
from evaluation.edc.areas import FULL_LIMIT, use_fmr
from evaluation.edc.curves import DiscardRule, Rules, ThresholdRule
from evaluation.edc.groups import compare_groups, group_section, read_groups
from evaluation.edc.plots import plot_curves
from evaluation.edc.references import Reference, is_label, reference_scores
from evaluation.edc.results import EdcReport, markdown, write_results
from evaluation.edc.study import PROTOCOLS, EdcResult, differences, study
from evaluation.edc.templates import (
    PLAIN,
    compare_templates,
    read_templates,
    template_pairs,
    template_section,
)
from evaluation.edc.thresholds import allowed_false_matches
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import make_parent, scratch_folder

FMRS = (1e-2, 1e-3, 1e-4)
WRONG_WAY = 1.2  # times the error at no discard: the best images are discarded first
MIN_REPLICATES = 20  # with fewer, the ends of a 95 % interval are the extremes


@dataclass(frozen=True)
class Settings:
    """Says how well quality scores predict recognition errors, under any published protocol."""

    # embeddings, (N, D) .npy, row i = line i of the image list, or a folder with one .npy per
    # image; one per recogniser.
    feats: tuple[Path, ...]
    # DATA.labelpath, `<path> TAB <identity index>`.
    image_list: Path
    # `path,score` CSV (also `;` or TAB), `path score`, or embeddings as text, whose norm is the
    # score; one file per scorer.
    scores: tuple[Path, ...] = ()
    # the column of --scores with the scores, by name, or by number in a file without a header.
    score_column: str = "score"
    # the column with the paths.
    path_column: str = "path"
    # the scores given are worse if higher: they are negated.
    lower_is_better: bool = False
    # target false match rates; default: those of 0.01 0.001 0.0001 that the pairs can show.
    fmr: tuple[float, ...] = ()
    # compare the pairs of a verification list instead of all pairs: LFW's pairs.txt, that of
    # CPLFW, `image image 0|1`, `0|1 image image`, or a .bin file.
    pairs: Path | None = None
    # sets threshold, discard and the area that orders the table, as the papers do; default:
    # sdd-fiqa.
    protocol: Literal["sdd-fiqa", "iso", "cr-fiqa", "fraunhofer"] | None = None
    # recomputed on what remains (the default), or fixed at no discard, or both.
    threshold_at: tuple[ThresholdRule, ...] = ()
    # images with their pairs (the default), or pairs by their worse image, or both.
    discard: tuple[DiscardRule, ...] = ()
    # L of the partial areas.
    limit: tuple[float, ...] = (0.2, 0.3)
    # draw at most so many images of each identity at random.
    max_images_per_id: int | None = None
    # leave out identities with fewer images.
    min_images_per_id: int = 2
    # a text file of images to leave out, one a line.
    exclude: Path | None = None
    # also compare templates (several images of a person): lines `path template person`; by plain
    # means and by means that the scores weight.
    templates: Path | None = None
    # also compare groups of people at common thresholds: lines `path group`.
    group: Path | None = None
    # compare so many impostor pairs, drawn at random; 0 for all of them.
    impostor_pairs: int = 0
    # draw the identities again so many times, for 95 % intervals; 0 for none.
    bootstrap: int = 0
    # scores to compare with, made from the same inputs.
    reference: tuple[Reference, ...] = ()
    # the FMR of the advice and of calibration.json; default: 1e-3 if it is among --fmr, else the
    # first of them.
    advise_at: float | None = None
    # random seed.
    seed: int = 0
    # the folder to write to.
    out_dir: Path = Path("edc")


def main(settings: Annotated[Settings, tyro.conf.arg(name="")]) -> int:
    """Says how well quality scores predict recognition errors, under any published protocol."""
    rules, area = choose_rules(settings)
    check_numbers(settings)
    check_out_dir(settings)
    notes = gather.Notes()
    with scratch_folder() as scratch:
        inputs = load(settings, scratch, notes)
        report = compute(settings, inputs, rules, area, notes)
        add_templates(settings, inputs, report, notes)
    print(markdown(report))
    write_results(settings.out_dir, report)
    plot_curves(settings.out_dir / "edc.png", report.results, area)
    write_calibrations(settings.out_dir, report.advice, inputs.given)
    return EXIT_SKIPPED if notes.skipped else EXIT_DONE


def choose_rules(settings: Settings) -> tuple[list[Rules], str]:
    """The curves to compute, and the area that orders the table."""
    protocol = settings.protocol
    if protocol is None:
        both = product(settings.threshold_at or ("recomputed",), settings.discard or ("images",))
        return list(dict.fromkeys(Rules(*one) for one in both)), "aoc"
    if settings.threshold_at or settings.discard:
        raise UserError(f"--protocol {protocol} sets --threshold-at and --discard: leave them out")
    threshold, what, area = PROTOCOLS[protocol]
    if area.endswith("_0.3") and 0.3 not in settings.limit:
        raise UserError(f"--protocol {protocol} compares up to L = 0.3: add 0.3 to --limit")
    return [Rules(threshold, what)], area


def check_numbers(settings: Settings) -> None:
    """Raises UserError on numbers outside their range."""
    if not settings.feats:
        raise UserError("--feats: give at least one")
    for fmr in settings.fmr:
        if not 0 < fmr < 1:
            raise UserError(f"--fmr {fmr:g}: must be between 0 and 1")
    for limit in settings.limit:
        if not 0 < limit <= FULL_LIMIT:
            raise UserError(f"--limit {limit:g}: must be above 0 and at most {FULL_LIMIT:g}")
    check_at_least(0, {"--impostor-pairs": settings.impostor_pairs})
    fewest, most = settings.min_images_per_id, settings.max_images_per_id
    check_at_least(1, {"--min-images-per-id": fewest, "--max-images-per-id": most})
    if settings.bootstrap < 0 or 0 < settings.bootstrap < MIN_REPLICATES:
        raise UserError(
            f"--bootstrap {settings.bootstrap}: must be 0 (none) or at least {MIN_REPLICATES}"
        )
    if settings.advise_at is not None and settings.advise_at not in (settings.fmr or FMRS):
        raise UserError(f"--advise-at {settings.advise_at:g}: must be one of --fmr")
    check_seed(settings.seed)
    if settings.pairs is not None and (most or settings.impostor_pairs or fewest != 2):
        raise UserError(
            "--pairs says which pairs to compare: leave out --max-images-per-id,"
            " --min-images-per-id and --impostor-pairs"
        )


def check_out_dir(settings: Settings) -> None:
    """Refuses, before the work, what cannot be written and what would replace an input."""
    others = (settings.pairs, settings.exclude, settings.templates, settings.group)
    named = [*settings.feats, settings.image_list, *settings.scores, *filter(None, others)]
    read = {path.resolve() for path in named}
    for name in ("results.md", "results.csv", "results.json", "edc.png", "calibration.json"):
        make_parent(settings.out_dir / name)
        if (settings.out_dir / name).resolve() in read:
            raise UserError(
                f"--out-dir {settings.out_dir}: its {name} is an input; name another folder"
            )


def load(settings: Settings, scratch: Path, notes: gather.Notes) -> gather.Inputs:
    """Reads all inputs, makes the references, and chooses the images that take part.

    `scratch`: a folder for what is gathered from folders of embeddings.
    """
    images, identities = read_labelpath(settings.image_list)
    refuse_repeats(images)
    features = gather.load_features(settings.feats, images, scratch, notes)
    form = ScoreForm(settings.score_column, settings.path_column, settings.lower_is_better)
    given = gather.load_scores(settings.scores, images, form, notes)
    made = reference_scores(settings.reference, images, identities, features, settings.seed)
    if clash := given.keys() & made.keys():
        raise UserError(f"--scores and --reference both give {min(clash)}: rename the file")
    scores = given | made
    if not scores:
        raise UserError("nothing to evaluate: give --scores, --reference or both")
    required = dict(scores)
    for name, values in made.items():
        if is_label(name) and settings.pairs is None and settings.min_images_per_id > 1:
            del required[name]  # an image without a label has no mate, and takes no part anyway
        else:
            missing = int(np.isnan(values).sum())
            notes.leave_out(missing, "image", f"without {name}", len(images))
    scored = gather.usable_images(features, required, notes)
    excluded = gather.excluded_images(settings.exclude, images, notes)
    usable = scored & ~excluded
    if settings.pairs is None:
        limits = settings.max_images_per_id, settings.min_images_per_id, settings.seed
        pairs, chosen = None, gather.select_images(images, identities, usable, *limits, notes)
    else:
        both = images, identities
        pairs, chosen = gather.select_pairs(settings.pairs, *both, scored, excluded, notes)
    return gather.Inputs(images, identities, features, chosen, list(given), pairs, usable, scores)


def compute(
    settings: Settings, inputs: gather.Inputs, rules: list[Rules], area: str, notes: gather.Notes
) -> EdcReport:
    """All curves, areas and intervals, the advice, and the groups."""
    advised = Rules(rules[0].threshold, "images")
    both, draws = list(dict.fromkeys([*rules, advised])), (settings.bootstrap, settings.seed)
    limits = list(dict.fromkeys(settings.limit))
    groups = read_groups(settings.group, inputs.images, inputs.chosen, notes)
    results: list[EdcResult] = []
    fmrs: list[float] = []
    passes = 2 * len(inputs.features) * int(np.count_nonzero(inputs.chosen))
    with tqdm(total=passes, unit=" rows", unit_scale=True, leave=False) as bar:
        for name in inputs.features:
            bar.set_description(name)
            try:
                source = inputs.open_pairs(name, settings.impostor_pairs, settings.seed, bar.update)
                if not results:
                    first = source
                    fmrs = choose_fmrs(settings.fmr, source.impostors, notes, settings.advise_at)
                    gather.describe(inputs, source, settings.seed, settings.bootstrap, notes)
                results += study(name, source, inputs.scores, fmrs, both, area, limits, *draws)
            except UserError:
                raise
            except ValueError as error:
                raise UserError(f"{settings.image_list}: {error}") from error
    for one in results:
        fnmr = one.curve.fnmr[~np.isnan(one.curve.fnmr)]
        worse = len(fnmr) > 0 and fnmr.mean() > WRONG_WAY * fnmr[0]
        if one.scorer in inputs.given and worse and not one.few_errors:
            remedy = f"try {'without' if settings.lower_is_better else 'with'} --lower-is-better"
            notes.append(f"discarding by {one.scorer} raises the error: {remedy}")
    shown = [result for result in results if result.curve.rules in rules]
    at = settings.advise_at or (1e-3 if 1e-3 in fmrs else fmrs[0])
    sign = -1 if settings.lower_is_better and inputs.given else 1
    scorers = inputs.given or list(inputs.scores)
    advice = advise_scorers(results, scorers, at, advised, sign)
    report = EdcReport(notes, shown, differences(shown, area, limits), advice, area)
    for scorer, (whole, _) in advice.items() if groups else ():
        found = compare_groups(first, inputs.scores[scorer], whole, groups, *draws)
        report.sections.append(group_section(whole, found, sign))
        report.more.setdefault("groups", []).extend(vars(one) for one in found)
    return report


def add_templates(
    settings: Settings, inputs: gather.Inputs, report: EdcReport, notes: gather.Notes
) -> None:
    """Adds the verification of templates to the report."""
    if settings.templates is None:
        return
    templates = read_templates(settings.templates, inputs.images, inputs.usable, notes)
    for name, features in inputs.features.items():
        try:
            pairs = template_pairs(features, templates, inputs.all_scores, notes)
            impostors = pairs[PLAIN].impostors
            kind = "impostor pairs of templates"
            fmrs = choose_fmrs(settings.fmr, impostors, notes, kind=kind)
            found = compare_templates(name, pairs, fmrs, settings.bootstrap, settings.seed)
        except ValueError as error:
            raise UserError(f"{settings.templates}: {error}") from error
        report.sections.append(template_section(templates, found))
        report.more.setdefault("templates", []).extend(vars(one) for one in found)


def choose_fmrs(
    typed: Sequence[float],
    impostors: int,
    notes: gather.Notes,
    required: float | None = None,
    kind: str = "impostor pairs",
) -> list[float]:
    """The target FMRs, each once; a default that the impostor pairs cannot show is dropped.

    Raises:
        UserError: they cannot show one that was typed or is required, or none of the defaults.
    """
    fmrs = list(dict.fromkeys(typed or FMRS))
    if impostors == 0:
        return fmrs  # refused with the pairs
    few = [fmr for fmr in fmrs if allowed_false_matches(fmr, np.array([impostors]))[0] == 0]
    for fmr in few:
        if typed or fmr == required or few == fmrs:
            raise UserError(f"--fmr {fmr:g}: too few {kind} ({impostors:,}); {use_fmr(impostors)}")
    if few:
        dropped = ", ".join(f"{fmr:g}" for fmr in few)
        notes.append(f"without FMR {dropped}: too few {kind} ({impostors:,})")
    return [fmr for fmr in fmrs if fmr not in few]


if __name__ == "__main__":
    run_script(main)
