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
from typing import Annotated

import tyro

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_at_least, note, run_script
from common.distributed import join_process_group
from dataset.lists import PSEUDO_LABELS
from generate_pseudo_labels import distributions_plot as picture
from generate_pseudo_labels import label_files, label_run
from generate_pseudo_labels.distance.array_backend import arrays_for
from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.npy_folder import NpyFolder, open_input
from sdd_fiqa.cores import usable_cores
from sdd_fiqa.errors import UserError
from sdd_fiqa.files import make_parent

PUBLISHED, NO_NPY_FOLDER = LabelSettings(), NpyFolder()


def main(
    *,
    out_dir: Path = Path("annotations"),
    process_num: int = 0,
    device: str = "auto",
    settings: Annotated[LabelSettings, tyro.conf.arg(name="")] = PUBLISHED,
    files: Annotated[NpyFolder, tyro.conf.arg(name="")] = NO_NPY_FOLDER,
) -> int:
    """Turns embeddings and identities into quality labels.

    Args:
        out_dir: folder of the list and its embeddings; the labels are written there.
        process_num: threads of each process; 0 takes all cores.
        device: auto, cpu, cuda or cuda:i.
        settings: what decides the labels.
        files: one .npy an image, in place of out_dir.
    """
    check_at_least(0, {"--process-num": process_num})
    settings.check()
    with join_process_group(device, host_arrays=True) as processes:
        arrays = arrays_for(device)
        threads = process_num or max(1, usable_cores() // processes.local_size)
        out_dir, inputs = open_input(out_dir, files, settings, threads, processes)
        make_parent(out_dir / PSEUDO_LABELS)  # before hours of work, not after
        found = label_run.find_distances(inputs, settings, arrays, processes, threads)
        if found is None:
            return EXIT_DONE
        groups, result = found
        labelling = label_run.label(inputs, settings, groups, result)
        try:
            picture.draw_picture(
                out_dir / picture.PICTURE, inputs, groups, labelling, settings.seed
            )
        except UserError as error:  # a full disk, for example: the labels are worth more
            inputs.notes.append(str(error))
        label_files.write_labels(out_dir, inputs, labelling)
    for line in inputs.notes:
        note(f"note: {line}")
    print(label_files.summary_lines(out_dir, labelling))
    skipped = any(text.startswith(label_files.UNREADABLE) for text in inputs.texts)
    return EXIT_SKIPPED if skipped else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
