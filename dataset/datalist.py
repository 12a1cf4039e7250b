"""Writes DATA.labelpath and DATA.label: the images of a set and who they show."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset.containers import read_bytes
from dataset.identities import identity_in, other_index
from dataset.left_out import NO_SUFFIX, Skipped, why_unread
from dataset.lists import LABEL, LABELPATH
from dataset.path_lists import read_paths
from dataset.video import first_bytes
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import make_parent, replacing, scratch_folder
from sdd_fiqa.images import HEIC_SUFFIXES, IMAGE_SUFFIXES, format_of
from sdd_fiqa.number import count_of

_OUTSIDE = 10_000  # paths without an identity, of which another index is chosen


def write_lists(
    images: Iterator[tuple[str, str]],
    root: str,
    out_dir: Path,
    min_images_per_id: int,
    skipped: Skipped,
) -> npt.NDArray[np.int64]:
    """Writes DATA.label and DATA.labelpath.

    Identities are numbered from 0 in the order of their first image. Both files are replaced whole.

    Args:
        images: their paths, which begin with `root`, and the names of their identities.
        root: as typed, without a `/` at its end.
        out_dir: where the two files go.
        min_images_per_id: identities with fewer images are left out.
        skipped: takes what is left out here too.

    Returns:
        (C,) how many images of each identity are listed.

    Raises:
        UserError: nothing is left to list; says whether the folder is empty, or has too few images
            an identity.
    """
    numbers: dict[str, int] = {}
    per_identity: Counter[int] = Counter()  # in the order of the numbers
    bar = tqdm(images, desc="list images", unit=" images", unit_scale=True, mininterval=0.5)
    unread = () if find_spec("pillow_heif") else HEIC_SUFFIXES
    make_parent(out_dir / LABELPATH)
    with scratch_folder(out_dir) as folder:
        draft = folder / LABELPATH
        with replacing(draft) as file, bar:
            for path, identity in bar:
                if path.lower().endswith(unread) and _is_heic(path):
                    skipped.problem("HEIC pictures (pip install pillow-heif)", path)
                    continue
                number = numbers.setdefault(identity, len(numbers))
                per_identity[number] += 1
                file.write(f"{path}\t{number}\n")
        if not numbers:
            found = "; ".join(skipped.lines()) or "it is empty"
            raise UserError(
                f"{root}: no images found ({found}); expected {root}/<identity>/<image>"
            )
        counts = np.array(list(per_identity.values()), np.int64)
        kept = counts >= min_images_per_id
        if not kept.any():
            raise UserError(
                f"{root}: no identity has {count_of(min_images_per_id, 'image')} (the largest has "
                f"{counts.max()}); lower --min-images-per-id"
            )
        if small := int((~kept).sum()):
            skipped.expected[f"identities with fewer than {min_images_per_id} images"] += small
        _finish(draft, root, out_dir, kept)
        return counts[kept]


def listed_images(image_list: Path, root: str, skipped: Skipped) -> Iterator[str]:
    """The images that a list names, as `root/...`, in its order.

    A line is a path below `root`, or begins with `root/` already. Names that are no file, videos
    and pictures that are not read go to `skipped`.
    """
    for line in read_paths(image_list).paths():
        path = line if line.startswith(root + "/") else f"{root}/{line.lstrip('/')}"
        named = os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
        if not os.path.isfile(path):
            skipped.problem("listed files that do not exist", path)
        elif named or why_unread(path) in (None, NO_SUFFIX):
            yield path
        else:
            yield from skipped.other_file(path)


def with_identities(
    images: Iterator[str], root: str, id_key_index: int, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    """Images and their identities, which part `id_key_index` of their path below `root` names.

    -2 is the folder of the image, 0 the first part.

    Raises:
        UserError: at the end, if all images lack that part; says which index to try.
    """
    outside: list[str] = []
    found = False
    for path in images:
        below = path[len(root) + 1 :]
        identity = identity_in(below, id_key_index)
        if identity is not None:
            found = True
            yield path, identity
        else:
            skipped.expected["images outside an identity folder"] += 1
            if len(outside) < _OUTSIDE:
                outside.append(below)
    if outside and not found:
        raise UserError(
            f"{root}: none of its images has a part {id_key_index} to name its identity; "
            f"{other_index(outside)}"
        )


def _is_heic(path: str) -> bool:
    """By the first bytes of a file that is named so; also where they say nothing."""
    with suppress(UnreadableImage):
        kind = format_of((first_bytes(path) or read_bytes(path))[:64])
        return kind is None or kind.name == "HEIC"
    return True


def _finish(draft: Path, root: str, out_dir: Path, kept: npt.NDArray[np.bool_]) -> None:
    """From the draft, without the identities that are not kept, the two files."""
    numbers = (np.cumsum(kept) - 1).tolist()
    keep = kept.tolist()
    with (
        open(draft, encoding="utf-8", newline="\n") as lines,
        replacing(out_dir / LABELPATH) as labelpath,
        replacing(out_dir / LABEL) as label,
    ):
        for line in lines:
            path, _, number = line.rstrip("\n").rpartition("\t")
            if keep[int(number)]:
                labelpath.write(f"{path}\t{numbers[int(number)]}\n")
                below = path[len(root) :] if root else f"/{path}"
                label.write(f"{below}\n")
