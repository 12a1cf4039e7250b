"""Scores every listed face by how far its embedding is from unrecognisable faces (ERS).

    python generate_pseudo_labels/gen_ers_scores.py --ui-from-degraded 200 --weights sface

needs no identities, so single images are scored too. Writes annotations/ers_scores.txt. The four
sources of unrecognisable faces: embeddings (--ui-feats), images (--ui-image-dir), faces of the list
spoilt beyond recognition (--ui-from-degraded), or a cluster in the set (--ui-from-cluster).
"""

from __future__ import annotations

from pathlib import Path

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, note, run_script
from common.cpu import one_blas_thread


def main(
    *,
    out_dir: Path = Path("annotations"),
    ui_feats: Path | None = None,
    ui_image_dir: Path | None = None,
    ui_from_degraded: int | None = None,
    ui_from_cluster: bool = False,
    weights: str | None = None,
    backbone: str | None = None,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Embedding recognisability scores of all listed faces.

    Args:
        out_dir: folder of the list and its embeddings; ers_scores.txt is written there.
        ui_feats: .npy with embeddings of unrecognisable images, one a row.
        ui_image_dir: folder of unrecognisable face images (needs weights).
        ui_from_degraded: spoil this many faces of the list beyond recognition (needs weights).
        ui_from_cluster: look for the place where images of different people gather.
        weights: the recogniser that made the list's embeddings: a known name or a file.
        backbone: of a torch checkpoint; found from the file when not given.
        seed: of the choice of faces and of their degradation.
        device: auto, cpu, cuda or cuda:i.
    """
    check_seed(seed)
    one_blas_thread()
    from generate_pseudo_labels import ers as ers_files
    from generate_pseudo_labels.label_files import read_input

    given = read_input(out_dir)
    wanted = ers_files.UnrecognisableSource(
        ui_feats, ui_image_dir, ui_from_degraded, ui_from_cluster, weights, backbone, seed, device
    )
    centre, about = ers_files.find_centre(wanted, given, out_dir)
    print(ers_files.write_scores(out_dir, given, centre, about))
    for line in given.notes:
        note(f"note: {line}")
    return EXIT_SKIPPED if given.reasons.any() else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
