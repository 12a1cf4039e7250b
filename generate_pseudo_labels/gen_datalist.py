"""Lists the faces of a folder or a container: who is where.

    python generate_pseudo_labels/gen_datalist.py --data-root faces
    python generate_pseudo_labels/gen_datalist.py --data-root ms1m/train.rec

takes `faces/<identity>/<image>` (identity folders at any depth), an InsightFace .rec, WebDataset
tars or a .bin of pairs, and writes annotations/DATA.label and annotations/DATA.labelpath.
"""

from __future__ import annotations

import os
from pathlib import Path

from common.cli import EXIT_DONE, EXIT_SKIPPED, check_at_least, note, run_script
from dataset.alignment_check import doubt_alignment
from dataset.containers import FORMATS
from dataset.containers.listing import PAIRS, containers_of, identified_members, write_pairs
from dataset.containers.pack import pack_images
from dataset.datalist import listed_images, with_identities, write_lists
from dataset.find import walk_images
from dataset.left_out import Skipped
from dataset.lists import LABELPATH, read_table
from generate_pseudo_labels.labels import doubt_identities
from sdd_fiqa.errors import UserError
from sdd_fiqa.number import count_of


def main(
    data_root: str,
    out_dir: Path = Path("annotations"),
    id_key_index: int = -2,
    image_list_file: Path | None = None,
    min_images_per_id: int = 1,
    to_rec: Path | None = None,
) -> int:
    """Lists the images of a folder or a container with their identities.

    Args:
        data_root: the folder that holds the identity folders, at any depth; or a .rec file, tars
            (one, a pattern, or a folder of them) or a .bin of pairs, which name identities
            themselves.
        out_dir: folder for DATA.label and DATA.labelpath; for a .bin also pairs.txt.
        id_key_index: of a folder, which part of an image's path names its identity; -2 is the
            folder it lies in.
        image_list_file: list these images (one path a line, below data-root) in place of all that
            the folder or the .rec holds.
        min_images_per_id: leave out identities with fewer images.
        to_rec: also pack the listed images into this .rec file, with its .idx beside it.
    """
    containers = containers_of(data_root)
    root = check(data_root, containers, id_key_index, min_images_per_id, to_rec)
    skipped = Skipped()
    if containers:
        identified = identified_members(containers, image_list_file, skipped)
    else:
        if image_list_file is None:
            images = walk_images(root, skipped)
        else:
            images = listed_images(image_list_file, root, skipped)
        identified = with_identities(images, root, id_key_index, skipped)
    counts = write_lists(identified, root, out_dir, min_images_per_id, skipped)
    found = f"{count_of(int(counts.sum()), 'image')} of {count_of(len(counts), 'identity')}"
    print(f"{out_dir / LABELPATH}: {found}")
    table = read_table(out_dir / LABELPATH)
    if doubt := doubt_identities(table, counts):
        note(f"note: {doubt}")
    if doubt := doubt_alignment(table):
        note(f"note: {doubt}")
    if containers == [data_root] and (pairs := write_pairs(root, out_dir / PAIRS)):
        print(f"{out_dir / PAIRS}: {count_of(pairs, 'pair')}")
    if to_rec is not None:
        packed = pack_images(out_dir / LABELPATH, to_rec, skipped)
        print(f"{to_rec}: {count_of(packed, 'image')}")
    print(*skipped.lines(), sep="\n", end="\n" if skipped.lines() else "")
    return EXIT_SKIPPED if skipped.problems else EXIT_DONE


def check(
    data_root: str,
    containers: list[str],
    id_key_index: int,
    min_images_per_id: int,
    to_rec: Path | None,
) -> str:
    """Refuses wrong arguments; returns the root, with which all paths begin."""
    if not containers and not os.path.isdir(data_root):
        is_file = os.path.exists(data_root)
        what = "is a file" if is_file else "does not exist"
        raise UserError(
            f"--data-root {data_root}: {what}; name the folder of identity folders, or a container "
            f"({', '.join(FORMATS)})"
        )
    if containers and id_key_index != -2:
        raise UserError(
            f"--id-key-index {id_key_index}: is for folders; {data_root} names identities itself"
        )
    if id_key_index == -1:
        raise UserError("--id-key-index -1: is the image's own name; -2 is the folder it lies in")
    check_at_least(1, {"--min-images-per-id": min_images_per_id})
    if to_rec is not None and to_rec.suffix != ".rec":
        raise UserError(f"--to-rec {to_rec}: must end in .rec")
    if to_rec is not None and os.path.realpath(to_rec) in map(os.path.realpath, containers):
        raise UserError(f"--to-rec {to_rec}: is the file that is read; name another")
    if containers and containers != [data_root]:  # several, below a folder of theirs
        return os.path.commonpath([os.path.dirname(container) for container in containers])
    return data_root.rstrip("/") or "/"


if __name__ == "__main__":
    run_script(main)
