"""The best shot of each group: of a person's folder, a part of the path, or a track in a video."""

from __future__ import annotations

import filecmp
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
import numpy.typing as npt

from common.cli import note
from dataset.containers import split_member
from dataset.faces import Faces
from dataset.identities import identity_in
from dataset.images import encode_face
from dataset.lists import ImageList
from dataset.scores import NumberColumn
from dataset.video import is_video
from sdd_fiqa.calibration import DECIMALS, reaches
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import make_parent, replacing
from sdd_fiqa.names import printable
from sdd_fiqa.number import whole_number
from sdd_fiqa.storage import read_file

Key = Literal["folder", "track"] | int


@dataclass(frozen=True)
class BestShots:
    """N rows in groups, ranked by score.

    Attributes:
        names: of the G groups, in the order of their first rows.
        group: (N,) int32, 0..G-1; -1: in none.
        ranked: of each group the rows that have a score, the best first; equal ones in their order.
    """

    names: list[str]
    group: npt.NDArray[np.int32]
    ranked: list[npt.NDArray[np.intp]]

    @classmethod
    def of(
        cls, names: list[str], group: npt.NDArray[np.int32], values: npt.NDArray[np.float32]
    ) -> BestShots:
        """Ranks (N,) scores, NaN where there is none; they compare as scores.csv shows them."""
        shown = np.round(values.astype(np.float64), DECIMALS)
        order = np.lexsort((-shown, group))
        order = order[np.isfinite(shown[order]) & (group[order] >= 0)]
        starts = np.searchsorted(group[order], np.arange(1, len(names)))
        return cls(names, group, np.split(order, starts)[: len(names)])

    def column(self) -> tuple[str, Sequence[str]]:
        """The column `rank` of scores.csv: 1 for the best; empty without a score or a group."""
        rank = np.full(len(self.group), np.nan)
        for rows in self.ranked:
            rank[rows] = np.arange(1, len(rows) + 1)
        return "rank", NumberColumn(rank, 0)


def key_of(per: str, table: ImageList, videos: bool = False) -> Key:
    """What --per groups by, checked against the paths of a list before they are scored.

    Raises:
        UserError: an unknown word, a path without that part, or tracks where no videos are wanted.
    """
    if per == "folder":
        return "folder"
    if per == "track":
        if not videos:
            raise UserError("--per track: is for videos; add --frames-per-second 2")
        return "track"
    try:
        key = whole_number(per)
    except ValueError:
        raise UserError(
            f"--per {per}: must be folder, track or the number of a part of the path (-2 is the "
            "name of the image's folder)"
        ) from None
    if key == -1:
        raise UserError("--per -1: is the image's own name; -2 is the name of its folder")
    for path in table.paths():
        if identity_in(path, key) is None:
            raise UserError(
                f"--per {per}: {path} has no such part; -2 is the name of the image's folder, and "
                "`folder` all of its path"
            )
    return key


def best_shots(faces: Faces, values: npt.NDArray[np.float32], key: Key | None) -> BestShots:
    """Groups and ranks the rows of some faces; without a key all are one group, called ``."""
    if key is None:
        return BestShots.of([""], np.zeros(len(faces), np.int32), values)
    numbers: dict[str, int] = {}
    group = np.empty(len(faces), np.int32)
    tracks = dict(faces.columns()).get("track") if key == "track" else None
    for row in range(len(faces)):
        name = _group_of(faces.photo_path(row), key, tracks[row] if tracks else "")
        group[row] = -1 if name is None else numbers.setdefault(name, len(numbers))
    return BestShots.of(list(numbers), group, values)


def _group_of(photo: str, key: Key, track: str = "") -> str | None:
    if key == "folder":
        return os.path.dirname(photo) or "."
    if key == "track":
        return f"{photo} track {track}" if track else None
    return identity_in(photo, key)


def print_best(
    shots: BestShots,
    values: npt.NDArray[np.float32],
    paths_at: Callable[[Iterable[int]], Iterator[str]],
    top: int,
    bottom: int,
    threshold: float | None,
    to: TextIO,
) -> None:
    """Prints a line for each of the `top` best, and of the `bottom` worst, of each group.

    A line holds, with TAB between them: the group, the score, the path, how many the group has with
    a score, and the next best score (of the worst: the next worst). Groups without a score, and
    those whose best of the (N,) values is below the threshold, are named on stderr.
    """
    groups = list(zip(shots.names, shots.ranked, strict=True))
    for title, most, step in (("best", top, 1), ("worst", bottom, -1)):
        if top and bottom:
            print(f"the {title} of each group:", file=to)
        for name, ranked in groups:
            rows = ranked[::step]
            shown = [*(f"{value:.2f}" for value in values[rows[: most + 1]]), "none"]
            for place, path in enumerate(paths_at(rows[:most])):
                parts = [name, shown[place], path, f"of {len(rows)}", f"next {shown[place + 1]}"]
                print(printable("\t".join(parts), to), file=to)
    for name, rows in groups:
        if not len(rows):
            note(f"no face scored in {name}")
    if threshold is not None:
        for name, rows in groups:
            if not reaches(values[rows[:1]], threshold).all():
                note(f"below the threshold: {name} (best {values[rows[0]]:.2f})")


def check_copies(
    folder: Path, inputs: Sequence[str], table: ImageList, key: Key | None, all_faces: bool
) -> None:
    """Refuses, before scoring, what --copy-to must not write.

    Raises:
        UserError: the folder lies inside an input, so that the next run would score the copies; it
            cannot be written; or it holds a file of other bytes in the place of one that may come.
    """
    for name in inputs:
        if _is_inside(folder, name):
            raise UserError(
                f"--copy-to {folder}: lies inside {name}, which is read; name another folder"
            )
    make_parent(folder / "copy")
    if not os.listdir(folder):
        return
    equal: dict[str, bool] = {}  # by files that are there: whether an image has the same bytes
    for path in table.paths():
        if all_faces or split_member(path) is not None or is_video(path):
            continue  # the bytes of a crop are known when it is copied
        target = _target(folder, "" if key is None else _group_of(path, key), path)
        if os.path.lexists(target) and not equal.get(target):
            both = os.path.isfile(path) and os.path.isfile(target)
            equal[target] = both and filecmp.cmp(path, target, shallow=False)
    for target, same in equal.items():
        if not same:
            raise _other_bytes(target)


def copy_best(folder: Path, shots: BestShots, top: int, faces: Faces, all_faces: bool) -> int:
    """Copies the `top` best of each group to <folder>/<group>/<file name>.

    A photo is copied as it is. Of a face among all faces, of a video's frame and of a container's
    member the crop is written, as PNG. Of two files of one name the later gets `_2`. Returns how
    many could not be read any more.

    Raises:
        UserError: a file of other bytes is there; or the disk is full.
    """
    written: set[str] = set()
    failed = 0
    groups = zip(shots.names, shots.ranked, strict=True)
    for group, row in ((name, row) for name, rows in groups for row in rows[:top].tolist()):
        name, photo = faces.path(row), faces.photo_path(row)
        crop = all_faces or name != photo or split_member(photo) is not None
        if crop:
            name = f"{name.replace('#', '-')}.png"
        try:
            content = encode_face(faces.crop(row), ".png") if crop else read_file(photo)
        except UnreadableImage as error:
            note(f"not copied: {faces.path(row)}: {error}")
            failed += 1
            continue
        target = _target(folder, group, name)
        (stem, suffix), number = os.path.splitext(target), 2
        while target in written:
            target, number = f"{stem}_{number}{suffix}", number + 1
        written.add(target)
        if not os.path.lexists(target):
            with replacing(target, "wb") as file:
                file.write(content)
        elif not os.path.isfile(target) or Path(target).read_bytes() != content:
            raise _other_bytes(target)
    note(f"{len(written)} copies are in {folder}")
    return failed


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a folder is, lies in, or would match what was typed as an input."""
    if glob.has_magic(name) and fnmatch(os.path.abspath(folder), os.path.abspath(name)):
        return True
    roots = filter(os.path.isdir, [name, *glob.glob(name, recursive=True)])
    return any(folder.resolve().is_relative_to(os.path.realpath(root)) for root in roots)


def _target(folder: Path, group: str | None, name: str) -> str:
    parts = [part for part in (group or "").split("/") if part not in ("", ".", "..")]
    return os.path.join(folder, *parts, os.path.basename(name))


def _other_bytes(target: str) -> UserError:
    return UserError(
        f"--copy-to: {target} is there, with other bytes than the copy would have; move it away "
        "or name another folder"
    )
