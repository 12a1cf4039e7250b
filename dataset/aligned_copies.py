"""Aligned copies of the faces of a folder of photos, 112x112 pixels, for labels and training.

    python -m dataset.aligned_copies --data-root photos --out-dir faces

Of `photos/<identity>/<photo>` it writes `faces/<identity>/<photo>`, and names in faces/skipped.csv
the photos that have no copy. The same command again does only what is missing or has changed.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.cli import check_at_least, note, run_script
from dataset.copies import images_below, in_order, report, root_of
from dataset.images import encode_face, read_image
from dataset.journal import state_of
from dataset.left_out import VIDEO, Skipped
from dataset.photo_faces import LANDMARK_COLUMNS, NO_FACE
from sdd_fiqa.alignment import DetectedFace, FaceAligner, align
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import lock_folder, parse_json, reading, replacing, sha256_of
from sdd_fiqa.images import Image
from sdd_fiqa.number import count_of, plain_number
from sdd_fiqa.storage import read_file

JOURNAL = "aligned_copies.jsonl"  # in the out folder
SKIPPED = "skipped.csv"
_NUMBER = re.compile(r"#\d+$")  # of a face, after the path of its photo

Pick = Literal["largest", "central"]
CutOut = Callable[[str, str], tuple[Image | None, int]]  # of a photo and its name
Done = dict[str, list[int]]  # of a photo, by its name: size, time, number of faces


def main(
    *,
    data_root: str,
    out_dir: Path,
    pick: Pick = "largest",
    landmarks: Path | None = None,
    format: Literal["jpg", "png"] = "jpg",
    num_workers: int | None = None,
) -> int:
    """Writes an aligned 112x112 copy of a face of each photo: of `<root>/a/1.heic` as `a/1.jpg`.

    The same command resumes after a stop, and does again only photos that have changed.

    Args:
        data_root: folder of photos, at any depth.
        out_dir: gets the copies, in the same folders, and skipped.csv: photos without a copy, with
            the reason.
        pick: of several faces in a photo, the largest, or the one nearest to the photo's middle.
        landmarks: your own landmarks in place of the detector: a CSV with the columns path,
            left_eye_x, left_eye_y, right_eye_x, .., nose_x, .., mouth_left_x, .., mouth_right_x,
            mouth_right_y, in pixels, left and right as seen in the picture; or a scores.csv of
            eval.py --all-faces.
        format: jpg (quality 95) or png.
        num_workers: threads; by default one a core.
    """
    root = root_of(data_root)
    check_at_least(1, {"--num-workers": num_workers})
    own = {} if landmarks is None else read_landmarks(landmarks)
    aligner = FaceAligner() if landmarks is None else None
    cut_out = partial(_cut_out, pick=pick, own=own, aligner=aligner)
    settings = {"pick": pick, "format": format, "landmarks": landmarks and sha256_of(landmarks)}
    skipped = Skipped(unread={})
    counts: list[int] = []  # of faces in each photo with a copy
    failures: list[tuple[str, str]] = []
    with lock_folder(out_dir):
        done = read_journal(out_dir / JOURNAL, settings)
        tasks = _tasks(root, out_dir, f".{format}", cut_out, done, skipped)
        with open(out_dir / JOURNAL, "a", encoding="utf-8") as journal:
            for (path, name, state), faces in in_order(tasks, "align", failures, num_workers):
                if faces:
                    counts.append(faces)
                else:
                    failures.append((path, NO_FACE))
                if done.get(name) != [*state, faces]:
                    journal.write(json.dumps([name, *state, faces]) + "\n")
                    journal.flush()
        with replacing(out_dir / SKIPPED) as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *failures])
    photos = count_of(len(counts) + len(failures), "photo")
    print(f"{out_dir}: {count_of(len(counts), 'aligned face')} of {photos}")
    if several := sum(count > 1 for count in counts):
        taken = "the largest" if pick == "largest" else "the one nearest to the middle"
        note(f"several faces in {count_of(several, 'photo')}; {taken} was taken (--pick)")
    return report(failures, skipped, f", named in {out_dir / SKIPPED}")


def read_journal(path: Path, settings: dict[str, Any]) -> Done:
    """Reads what is done, and removes a line that a killed run left half; a new file if none is.

    After a line of settings, the file has a JSON line a photo: its path below the root, its size,
    its time, and how many faces it shows; 0: it has no copy. Nothing of it is needed for the right
    result, only for not doing work twice.

    Raises:
        UserError: it is of other settings, or another kind of file.
    """
    done: Done = {}
    if path.exists():
        try:
            first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            made = parse_json(first)
        except ValueError as error:
            raise UserError(f"{path}: is damaged; remove it, and the copies there") from error
        for line in lines:
            with suppress(ValueError):
                name, size, time, faces = parse_json(line)
                done[str(name)] = [int(size), int(time), int(faces)]
        if done and made != settings:
            raise UserError(
                f"{path}: the copies there were made with {json.dumps(made)}; name another "
                "--out-dir, or remove that one"
            )
    with replacing(path) as file:
        file.write(json.dumps(settings) + "\n")
        file.writelines(json.dumps([name, *entry]) + "\n" for name, entry in done.items())
    return done


def _tasks(
    root: str, out_dir: Path, suffix: str, cut_out: CutOut, done: Done, skipped: Skipped
) -> Iterator[tuple[tuple[str, str, list[int]], Callable[[], int | UnreadableImage]]]:
    """A photo, its path below the root, its size and time; and what writes its copy if need be.

    The copy of x.jpg beside x.heic is x.jpg.jpg.
    """
    folder, taken = out_dir, set[str]()  # the names in the folder that the walk is in
    for path, name in images_below(root, out_dir, skipped):
        if why := (skipped.unread or {}).get(path):  # a picture or video that is no photo
            yield (path, name, []), partial(UnreadableImage, why.replace(VIDEO, "is a video"))
            continue
        target = (out_dir / name).with_suffix(suffix)
        if target.parent != folder:
            folder, taken = target.parent, set()
        if target.name in taken:
            target = target.with_name(os.path.basename(path) + suffix)
        while target.name in taken:
            target = target.with_name(target.name + suffix)
        taken.add(target.name)
        state = state_of(path) or [-1, -1]
        *before, faces = done.get(name, [0, 0, 0])
        if before == state and (target.is_file() or not faces):
            yield (path, name, state), partial(int, faces)
        else:
            write = partial(_write_copy, path, name, target, cut_out, own=faces > 0)
            yield (path, name, state), write


def _write_copy(path: str, name: str, target: Path, cut_out: CutOut, own: bool) -> int:
    """Writes a copy, if there is a face (`own`: one may be there); returns how many there are."""
    if own:
        target.unlink(missing_ok=True)
    face, faces = cut_out(path, name)
    if face is None:
        return 0
    content = encode_face(face, target.suffix)
    if not own and target.is_file() and read_file(target) != content:
        raise UnreadableImage(f"its copy would replace {target}, which is another file")
    with replacing(target, "wb") as file:
        file.write(content)
    return faces


def _cut_out(
    path: str,
    name: str,
    pick: Pick,
    own: dict[str, list[DetectedFace]],
    aligner: FaceAligner | None,
) -> tuple[Image | None, int]:
    """The aligned face of a photo, and how many faces it shows; by an aligner, else `own`."""
    faces = own.get(os.path.normpath(path), own.get(os.path.normpath(name)))
    if aligner is None and faces is None:
        raise UnreadableImage(f"the landmarks have no line for {path} or {name}")
    image = read_image(path)
    if aligner is not None:
        faces = aligner.search(image)
    if not faces:
        return None, 0
    face = faces[0]
    if pick == "central":
        boxes = np.array([one.box for one in faces])
        away = boxes[:, :2] + boxes[:, 2:] / 2 - np.array(image.shape[1::-1]) / 2
        face = faces[int(np.linalg.norm(away, axis=1).argmin())]
    inside = (face.landmarks > -1) & (face.landmarks < image.shape[1::-1])
    if aligner is not None:
        face = aligner.look_closer(image, face)
    elif not inside.all(axis=1).any():
        raise UnreadableImage("all its landmarks are outside the photo")
    try:
        return align(image, face.landmarks), len(faces)
    except ValueError as error:
        raise UnreadableImage(str(error)) from error


def read_landmarks(path: Path) -> dict[str, list[DetectedFace]]:
    """Reads the landmarks of photos from a CSV with a header line (RFC 4180).

    The columns are path and LANDMARK_COLUMNS; others are ignored. A photo with several faces has
    several lines; `#k` after its path is ignored. A line without numbers: it shows no face.

    Returns:
        {path: its faces, the largest first; a box is that of the landmarks}.

    Raises:
        UserError: missing, not CSV, a column or a number is missing, or left is right.
    """
    faces: dict[str, list[DetectedFace]] = {}
    swapped = []
    with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = ("path", *LANDMARK_COLUMNS)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise UserError(
                f"{path}:1: the header lacks {', '.join(missing)}; expected {','.join(columns)}"
            )
        for row in reader:
            texts = [row[name] or "" for name in LANDMARK_COLUMNS]
            of_photo = faces.setdefault(os.path.normpath(_NUMBER.sub("", row["path"])), [])
            if not any(texts):
                continue
            try:
                points = np.asarray_chkfinite([*map(plain_number, texts)]).reshape(5, 2)
            except ValueError as error:
                where = f"{path}:{reader.line_num}"
                raise UserError(f"{where}: expected a path and ten finite numbers") from error
            (x, y), (width, height) = points.min(axis=0).tolist(), np.ptp(points, axis=0).tolist()
            of_photo.append(DetectedFace((x, y, width, height), points, 1.0))
            of_photo.sort(key=lambda face: face.area, reverse=True)
            across = points[1] - points[0]
            down = points[3:].sum(axis=0) - points[:2].sum(axis=0)
            swapped.append(across[0] * down[1] < across[1] * down[0])
    if swapped and np.mean(swapped) > 0.5:
        raise UserError(
            f"{path}: left and right are swapped; the left eye is the left one in the picture"
        )
    return faces


if __name__ == "__main__":
    run_script(main)
