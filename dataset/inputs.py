"""What a person types as "these faces": files, folders, globs, containers, list files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from dataset.command_line import UserError
from dataset.container_lists import container_images
from dataset.containers import is_container, split_member
from dataset.images import IMAGE_SUFFIXES, is_image
from dataset.lists import read_table
from dataset.scan import LeftOut, fits_a_line, walk_images


def find_images(inputs: Sequence[str], left_out: LeftOut) -> Iterator[str]:
    """The images that some inputs name, in the order typed.

    Args:
        inputs: image files; folders, searched below; patterns with `*`, `?` or `[`; .rec, .tar and
            .bin files, and single members of them, `train.rec#17`; list files, one path a line
            (columns after a TAB are ignored).
        left_out: takes what is not an image.

    Raises:
        UserError: an input that does not exist or matches nothing.
    """
    for name in inputs:
        if os.path.isdir(name):
            yield from walk_images(name.rstrip("/") or "/", left_out)
        elif os.path.isfile(name):
            yield from _of_file(name, left_out)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise UserError(f"{name}: matches no file")
            yield from find_images([match for match in matches if os.path.exists(match)], left_out)
        elif (parts := split_member(name)) is not None and os.path.isfile(parts[0]):
            yield name
        else:
            raise UserError(f"{name}: no such file or folder")


def _of_file(name: str, left_out: LeftOut) -> Iterator[str]:
    suffix = os.path.splitext(name)[1].lower()
    if is_container(name):
        empty = True
        for path in container_images(name, left_out):
            empty = False
            yield path
        if empty:
            raise UserError(f"{name}: holds no image")
    elif suffix in IMAGE_SUFFIXES or is_image(name):
        if not fits_a_line(name):
            raise UserError(f"{name!r}: a name with a TAB or a line break; rename it")
        yield name
    else:
        yield from read_table(name).paths()
