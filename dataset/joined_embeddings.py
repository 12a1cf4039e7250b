"""One set of embeddings from several recognisers', so that labels do not depend on one alone.

    python -m dataset.joined_embeddings --out-dir both \
        --feats a/feats_npy/Embedding_Features.npy b/feats_npy/Embedding_Features.npy

`both` has the DATA.labelpath that all of them were extracted from. The cosine of two joined rows is
the mean of the recognisers' cosines, so every later step sees the mean recogniser.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.cli import EXIT_DONE, EXIT_SKIPPED, run_script
from dataset.embedding_writer import FeatureWriter, to_unit_length
from dataset.embeddings import open_embeddings
from dataset.lists import LABELPATH, read_table
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of

_BLOCK = 8192  # rows at once


def main(*, feats: tuple[Path, ...], out_dir: Path = Path("annotations")) -> int:
    """Joins embeddings of one list, row by row; writes `<out-dir>/feats_npy/`.

    A row that one recogniser has no embedding for stays without. The joined norms say nothing of
    quality: all are equal.

    Args:
        feats: the Embedding_Features.npy files, one a recogniser.
        out_dir: the folder of the DATA.labelpath that they were all made from.
    """
    if len(feats) < 2:
        raise UserError("--feats: name the embeddings of two recognisers or more")
    table = read_table(out_dir / LABELPATH)
    files = [open_embeddings(path, table) for path in feats]
    missing = {
        row: f"{file.path}: {reason}" for file in files for row, reason in file.unreadable.items()
    }
    about = {
        "list": {"path": str(table.file), "sha256": table.sha256, "rows": len(table)},
        "joined": [str(path) for path in feats],
    }
    folder = out_dir / "feats_npy"
    if any(file.path.resolve().parent == folder.resolve() for file in files):
        raise UserError(f"--out-dir {out_dir}: holds one of --feats; choose another folder")
    writer = FeatureWriter(folder, len(table), sum(file.shape[1] for file in files), about)
    writer.prepare()
    for start in tqdm(range(0, len(table), _BLOCK), desc="join", unit=" blocks"):
        stop = min(start + _BLOCK, len(table))
        gone = {row - start: why for row, why in missing.items() if start <= row < stop}
        # Stored rows are unit only to float16, and files made elsewhere not at all.
        parts = [file.read(start, stop).astype(np.float32) for file in files]
        writer.write(start, np.hstack([to_unit_length(part, gone)[0] for part in parts]), gone)
    unreadable = writer.finish(table)
    rows = count_of(len(table) - len(unreadable), "row")
    print(f"{writer.features}: {rows} of {writer.dimension}")
    return EXIT_SKIPPED if unreadable else EXIT_DONE


if __name__ == "__main__":
    run_script(main)
