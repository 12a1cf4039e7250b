"""Scores every listed face by how far its embedding is from unrecognisable faces (ERS).

    python generate_pseudo_labels/gen_ers_scores.py --ui-from-degraded 200 --weights sface

needs no identities, so single images are scored too. Writes annotations/ers_scores.txt. The four
sources of unrecognisable faces: embeddings (--ui-feats), images (--ui-image-dir), faces of the list
degraded beyond recognition (--ui-from-degraded), or a cluster in the set (--ui-from-cluster).
"""

from __future__ import annotations

from common.cpu import one_blas_thread

if __name__ == "__main__":
    one_blas_thread()  # before numpy is imported

# isort: split
from pathlib import Path
from typing import Annotated

import tyro

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_seed, note, run_script
from generate_pseudo_labels.ers import UnrecognisableSource, find_centre, write_scores
from generate_pseudo_labels.label_files import read_input

NO_SOURCE = UnrecognisableSource()


def main(
    *,
    out_dir: Path = Path("annotations"),
    source: Annotated[UnrecognisableSource, tyro.conf.arg(name="")] = NO_SOURCE,
) -> int:
    """Embedding recognisability scores of all listed faces.

    Args:
        out_dir: folder of the list and its embeddings; ers_scores.txt is written there.
        source: where unrecognisable faces come from.
    """
    check_seed(source.seed)
    inputs = read_input(out_dir)
    centre, about = find_centre(source, inputs, out_dir)
    print(write_scores(out_dir, inputs, centre, about))
    for line in inputs.notes:
        note(f"note: {line}")
    return EXIT_SKIPPED if inputs.reasons.any() else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
