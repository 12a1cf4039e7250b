"""Lists the faces of a folder: who is where.

    python generate_pseudo_labels/gen_datalist.py --data-root faces

takes `faces/<identity>/<image>` (identity folders at any depth) and writes annotations/DATA.label
and annotations/DATA.labelpath.
"""

from __future__ import annotations

import os
from pathlib import Path

from dataset.command_line import EXIT_DONE, EXIT_SKIPPED, UserError, run_script
from dataset.lists import LABELPATH
from dataset.scan import LeftOut, listed_images, walk_images, write_lists


def main(
    data_root: str,
    out_dir: Path = Path("annotations"),
    id_key_index: int = -2,
    image_list_file: Path | None = None,
    min_images_per_id: int = 1,
) -> int:
    """Lists the images of a folder with their identities.

    Args:
        data_root: the folder that holds the identity folders, at any depth.
        out_dir: folder for DATA.label and DATA.labelpath.
        id_key_index: which part of an image's path names its identity; -2 is the folder it lies in.
        image_list_file: list these images (one path a line, below data-root) in place of all that
            the folder holds.
        min_images_per_id: leave out identities with fewer images.
    """
    root = check(data_root, id_key_index, min_images_per_id)
    left_out = LeftOut()
    if image_list_file is None:
        images = walk_images(root, left_out)
    else:
        images = listed_images(image_list_file, root, left_out)
    counts = write_lists(images, root, out_dir, id_key_index, min_images_per_id, left_out)
    print(f"{out_dir / LABELPATH}: {counts.images} images of {counts.identities} identities")
    print(*left_out.lines(), sep="\n", end="\n" if left_out.lines() else "")
    return EXIT_SKIPPED if left_out.troubles else EXIT_DONE


def check(data_root: str, id_key_index: int, min_images_per_id: int) -> str:
    """Refuses wrong arguments; returns the root without a `/` at its end."""
    if not os.path.isdir(data_root):
        is_file = os.path.exists(data_root)
        what = "is a file" if is_file else "does not exist"
        raise UserError(f"--data-root {data_root}: {what}; name the folder of identity folders")
    if id_key_index == -1:
        raise UserError("--id-key-index -1: is the image's own name; -2 is the folder it lies in")
    if min_images_per_id < 1:
        raise UserError(f"--min-images-per-id {min_images_per_id}: must be 1 or more")
    return data_root.rstrip("/") or "/"


if __name__ == "__main__":
    run_script(main)
