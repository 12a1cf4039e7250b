"""Gives every listed face a quality label from 0 to 100, by its embedding alone.

    python generate_pseudo_labels/gen_pseudo_labels.py
    torchrun --nproc-per-node 2 generate_pseudo_labels/gen_pseudo_labels.py --estimator exact

reads annotations/DATA.labelpath and annotations/feats_npy/Embedding_Features.npy, and writes
annotations/quality_pseudo_labels.txt, w_distances.txt, unlabelled.txt, mislabelled.txt,
distribution_info.json and distributions.png. One .npy an image is read as well:

    python generate_pseudo_labels/gen_pseudo_labels.py --feature-root F --image-list-file list.txt
        --image-root /data/faces --id-key-index -3 --score-dst scores
"""

from __future__ import annotations

from common.cpu import one_blas_thread

if __name__ == "__main__":
    one_blas_thread()  # before numpy is imported

# isort: split
from pathlib import Path
from typing import Literal

from common.cli import EXIT_DONE, EXIT_SKIPPED, note, run_script
from dataset.lists import PSEUDO_LABELS
from sdd_fiqa.cores import usable_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import make_parent


def main(
    *,
    out_dir: Path = Path("annotations"),
    estimator: Literal["sampled", "exact"] = "sampled",
    fix_num: int = 24,
    repeats: int = 12,
    seed: int = 0,
    pool_size: int = 1024,
    min_images_per_id: int = 2,
    drop_top_percent: float = 0.0,
    exclude_mislabelled: bool = False,
    level_identities: bool = False,
    label_power: float = 1.0,
    feature_root: Path | None = None,
    image_list_file: Path | None = None,
    image_root: Path | None = None,
    id_key_index: int = -3,
    score_dst: Path | None = None,
    process_num: int = 0,
    load_feature: Literal["True", "False"] = "False",
    device: str = "auto",
) -> int:
    """Turns embeddings and identities into quality labels.

    Args:
        out_dir: folder of the list and its embeddings; the labels are written there.
        estimator: `sampled` is the published one; `exact` compares with everybody.
        fix_num: positives and negatives drawn for an image and repeat (sampled).
        repeats: how many times they are drawn (sampled).
        seed: of all draws; the same seed gives the same labels.
        pool_size: negatives that stand for all others where distributions overlap (exact).
        min_images_per_id: identities with fewer images get no labels.
        drop_top_percent: drop this share of the best labels, and normalise the rest again.
        exclude_mislabelled: give images that look mislabelled no label.
        level_identities: scale each identity's distances to one upper quartile, so that labels tell
            pictures apart and not people; for labels to train on (not in the paper).
        label_power: raise labels, as shares of 100, to this power: above 1 tells good pictures
            apart from each other, below 1 bad ones; for labels to train on (not in the paper).
        feature_root: folder with one .npy an image; with it, image-list-file and score-dst take
            the place of out-dir.
        image_list_file: the list that goes with feature-root, one image path a line.
        image_root: what the list's paths begin with; the .npy files mirror what follows.
        id_key_index: which part of a listed path names the identity (with feature-root).
        score_dst: folder for everything written (with feature-root).
        process_num: threads of each process; 0 takes all cores.
        load_feature: True keeps the .npy files' content in memory; False gathers it in one file
            below score-dst, which stays.
        device: auto, cpu, cuda or cuda:i.
    """
    from common.distributed import join_process_group
    from generate_pseudo_labels import distributions_plot as picture
    from generate_pseudo_labels import label_files, label_run
    from generate_pseudo_labels.distance.array_backend import arrays_for
    from generate_pseudo_labels.npy_folder import Features, open_input

    if process_num < 0:
        raise UserError(f"--process-num {process_num}: must be 0 (all cores) or more")
    settings = label_run.checked(
        label_run.Settings(
            estimator=estimator,
            fix_num=fix_num,
            repeats=repeats,
            seed=seed,
            pool_size=pool_size,
            min_images_per_id=min_images_per_id,
            drop_top_percent=drop_top_percent,
            exclude_mislabelled=exclude_mislabelled,
            level_identities=level_identities,
            label_power=label_power,
        )
    )
    with join_process_group(device, host_arrays=True) as processes:
        arrays = arrays_for(device, processes.local_rank)
        threads = process_num or max(1, usable_cores() // processes.local_size)
        features = Features(image_list_file, feature_root, image_root, id_key_index, score_dst)
        out_dir, given = open_input(out_dir, features, load_feature == "True", threads, processes)
        make_parent(out_dir / PSEUDO_LABELS)  # before hours of work, not after
        found = label_run.find_distances(given, settings, arrays, processes, threads)
        if found is None:
            return EXIT_DONE
        result = label_run.label(given, settings, found)
        try:
            picture.draw_picture(out_dir / picture.PICTURE, given, found[0], result, seed)
        except UserError as error:  # a full disk, say: the labels are worth more
            given.notes.append(str(error))
        label_files.write_labels(out_dir, given, result)
    for line in given.notes:
        note(f"note: {line}")
    print(label_files.summary_lines(out_dir, given, result))
    skipped = any(text.startswith(label_files.UNREADABLE) for text in given.texts)
    return EXIT_SKIPPED if skipped else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
