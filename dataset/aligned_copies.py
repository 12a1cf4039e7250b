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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.cli import EXIT_DONE, EXIT_SKIPPED, note, run_script
from dataset.faces import LANDMARK_COLUMNS, NO_FACE
from dataset.find import walk_images
from dataset.images import encode_face, read_image
from dataset.left_out import VIDEO, Skipped
from dataset.loader import default_workers
from sdd_fiqa.alignment import DetectedFace, FaceAligner, Points, align
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.files import lock_folder, parse_json, replacing, sha256_of
from sdd_fiqa.images import Image
from sdd_fiqa.number import plain_number
from sdd_fiqa.storage import read_file

JOURNAL = "aligned_copies.jsonl"  # in the out folder
SKIPPED = "skipped.csv"
_AHEAD = 64  # photos under way at once
_SHOWN = 5
_HALF = re.compile(r"\..+\.\d+\.\d+\.tmp")  # what a killed run leaves of a file (`replacing`)
_NUMBER = re.compile(r"#\d+$")  # of a face, after the path of its photo

Pick = Literal["largest", "central"]


@dataclass(frozen=True)
class Choice:
    """Which face of a photo is cut out.

    Attributes:
        pick: of several faces, the largest, or the one nearest to the photo's middle.
        own: (5, 2) landmarks of the faces of each photo, as `read_landmarks` gives them; None: the
            detector finds them.
        aligner: the detector; None with own landmarks.
    """

    pick: Pick
    own: dict[str, list[Points]] | None = None
    aligner: FaceAligner | None = None

    def cut_out(self, path: str, name: str) -> tuple[Image | None, int]:
        """The aligned face of a photo, (112, 112, 3) uint8 RGB, and how many faces it shows.

        Args:
            path: the photo.
            name: its path below the root.

        Raises:
            UnreadableImage: the photo cannot be read, or its landmarks cannot be used.
        """
        if self.aligner is not None:
            image = read_image(path)
            faces = self.aligner.search(image)
        else:
            faces = self._own_faces(path, name)
            image = read_image(path)
        if not faces:
            return None, 0
        face = faces[0]
        if self.pick == "central":
            middle = np.array(image.shape[1::-1]) / 2
            face = min(faces, key=lambda one: float(np.linalg.norm(_centre(one) - middle)))
        if self.aligner is not None:
            face = self.aligner.look_closer(image, face)
        elif not np.all(
            (face.landmarks > -1) & (face.landmarks < image.shape[1::-1]), axis=1
        ).any():
            raise UnreadableImage("all its landmarks are outside the photo")
        try:
            return align(image, face.landmarks), len(faces)
        except ValueError as error:
            raise UnreadableImage(str(error)) from error

    def _own_faces(self, path: str, name: str) -> list[DetectedFace]:
        """The faces that a person gave, the largest first; a box is that of the landmarks."""
        assert self.own is not None
        found = self.own.get(os.path.normpath(path), self.own.get(os.path.normpath(name)))
        if found is None:
            raise UnreadableImage(f"the landmarks have no line for {path} or {name}")
        faces = []
        for points in found:
            (x, y), (width, height) = points.min(axis=0), np.ptp(points, axis=0)
            box = float(x), float(y), float(width), float(height)
            faces.append(DetectedFace(box, points, 1.0))
        return sorted(faces, key=lambda face: face.area, reverse=True)


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
    root = data_root.rstrip("/") or "/"
    if not Path(root).is_dir():
        raise UserError(f"--data-root {data_root}: is no folder; name the folder of photos")
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--num-workers {num_workers}: must be 1 or more")
    settings: dict[str, Any] = {"pick": pick, "format": format, "landmarks": None}
    if landmarks is None:
        choice = Choice(pick, aligner=FaceAligner())
    else:
        choice = Choice(pick, read_landmarks(landmarks))
        settings["landmarks"] = sha256_of(landmarks)
    skipped, suffix = Skipped(), f".{format}"
    with lock_folder(out_dir):
        with closing(Journal(out_dir / JOURNAL, settings)) as journal:
            copies = write_copies(root, out_dir, choice, suffix, journal, skipped, num_workers)
        with replacing(out_dir / SKIPPED) as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *copies.skipped])
    print(f"{out_dir}: {copies.made} aligned faces of {copies.photos} photos")
    if copies.several:
        taken = "the largest" if pick == "largest" else "the one nearest to the middle"
        note(f"{copies.several} photos show several faces; {taken} was taken (--pick)")
    for path, reason in copies.skipped[:_SHOWN]:
        note(f"skipped: {path}: {reason}")
    if copies.skipped:
        note(f"skipped: {len(copies.skipped)} photos in all, named in {out_dir / SKIPPED}")
    for line in skipped.lines():
        note(line)
    return EXIT_SKIPPED if copies.skipped or skipped.problems else EXIT_DONE


@dataclass
class Copies:
    """What became of the photos of a folder.

    Attributes:
        photos: how many there are.
        made: how many have a copy, now or from before.
        several: how many of those show several faces.
        skipped: path of each photo without a copy, and why.
    """

    photos: int
    made: int
    several: int
    skipped: list[tuple[str, str]]


class Journal:
    """What is done: each photo's size, time and number of faces; 0 faces: it has no copy.

    A JSON line a photo, after a line of settings. Nothing of what is written here is needed for
    the right result, only for not doing work twice.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Reads what is there, without a line that a killed run left half.

        Raises:
            UserError: it is of other settings, or another kind of file.
        """
        self.done: dict[str, tuple[int, int, int]] = {}
        _remove_halves(path.parent)
        if path.exists():
            try:
                first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                made = parse_json(first)
            except ValueError as error:
                raise UserError(f"{path}: is damaged; remove it, and the copies there") from error
            for line in lines:
                with suppress(ValueError):
                    name, size, time, faces = parse_json(line)
                    self.done[str(name)] = int(size), int(time), int(faces)
            if self.done and made != settings:
                raise UserError(
                    f"{path}: the copies there were made with {json.dumps(made)}; name another "
                    "--out-dir, or remove that one"
                )
        with replacing(path) as file:
            file.write(json.dumps(settings) + "\n")
            file.writelines(_line(name, *done) for name, done in self.done.items())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def add(self, name: str, size: int, time: int, faces: int) -> None:
        """A photo is done."""
        self.done[name] = size, time, faces
        self._file.write(_line(name, size, time, faces))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def write_copies(
    root: str,
    out_dir: Path,
    choice: Choice,
    suffix: str,
    journal: Journal,
    skipped: Skipped,
    num_workers: int | None = None,
) -> Copies:
    """Writes the copies that are missing, on all cores; what is no photo goes to `skipped`.

    Raises:
        UserError: the root has no image, the storage is gone, or a copy cannot be written.
    """
    from tqdm import tqdm

    copies = Copies(0, 0, 0, [])
    unread = skipped.unread = {}  # pictures and videos that cannot be photos
    waiting: list[tuple[str, str, tuple[int, int], Future[int]]] = []

    def finish(path: str, name: str, state: tuple[int, int], written: Future[int]) -> None:
        bar.update()
        try:
            faces = written.result()
        except UnreadableImage as error:
            copies.skipped.append((path, str(error)))
        else:
            if faces:
                copies.made, copies.several = copies.made + 1, copies.several + (faces > 1)
            else:
                copies.skipped.append((path, NO_FACE))
            if journal.done.get(name) != (*state, faces):
                journal.add(name, *state, faces)

    pool = ThreadPoolExecutor(default_workers() if num_workers is None else num_workers)
    try:
        with tqdm(desc="align", unit=" photos") as bar:
            for path, target in _targets(root, out_dir, suffix, skipped):
                copies.photos += 1
                name = path[len(root) + 1 :]
                state, before = _state(path), journal.done.get(name)
                task: Future[int] = Future()  # in its place in the order
                if why := unread.get(path):
                    task.set_exception(UnreadableImage(why.replace(VIDEO, "is a video")))
                elif (
                    before is not None
                    and before[:2] == state
                    and (target.is_file() or not before[2])
                ):
                    task.set_result(before[2])
                else:
                    own = before is not None and before[2] > 0
                    task = pool.submit(_write_copy, path, name, target, choice, own)
                waiting.append((path, name, state, task))
                if len(waiting) >= _AHEAD:
                    finish(*waiting.pop(0))
            for photo in waiting:
                finish(*photo)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what has not begun will not
    if not copies.photos:
        same = os.path.realpath(root) == os.path.realpath(out_dir)
        why = "is --out-dir, of which nothing is read" if same else "has no images"
        raise UserError(f"{root}: {'; '.join([why, *skipped.lines()])}")
    return copies


def _targets(root: str, out_dir: Path, suffix: str, skipped: Skipped) -> Iterator[tuple[str, Path]]:
    """Each photo and the file of its copy. Beside `x.heic`, the copy of x.jpg is `x.jpg.jpg`."""
    inside = out_dir.resolve()
    folder, taken = out_dir, set[str]()  # the names in the folder that the walk is in
    for path in walk_images(root, skipped):
        if inside in Path(path).resolve().parents:
            continue  # a copy: the out folder may be below the root
        target = (out_dir / path[len(root) + 1 :]).with_suffix(suffix)
        if target.parent != folder:
            folder, taken = target.parent, set()
            _remove_halves(folder)
        if path in (skipped.unread or ()):  # it has no copy
            yield path, target
            continue
        if target.name in taken:
            target = target.with_name(os.path.basename(path) + suffix)
        while target.name in taken:
            target = target.with_name(target.name + suffix)
        taken.add(target.name)
        yield path, target


def _write_copy(path: str, name: str, target: Path, choice: Choice, own: bool) -> int:
    """Writes the copy of one photo, if it shows a face; returns how many it shows.

    `own`: a copy of the photo as it was before may be there.
    """
    if own:
        target.unlink(missing_ok=True)
    face, faces = choice.cut_out(path, name)
    if face is None:
        return 0
    content = encode_face(face, target.suffix)
    if not own and target.is_file() and read_file(target) != content:
        raise UnreadableImage(f"its copy would replace {target}, which is another file")
    with replacing(target, "wb") as file:
        file.write(content)
    return faces


def read_landmarks(path: Path) -> dict[str, list[Points]]:
    """Reads the landmarks of photos from a CSV with a header line (RFC 4180).

    The columns are path and LANDMARK_COLUMNS; others are ignored. A photo with several faces has
    several lines; `#k` after its path is ignored. A line without numbers: it shows no face.

    Returns:
        {path: its faces, (5, 2) each, in pixels, in the order of `sdd_fiqa.alignment.TEMPLATE`}.

    Raises:
        UserError: missing, not CSV, a column or a number is missing, or left is right.
    """
    faces: dict[str, list[Points]] = {}
    swapped = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
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
                    points = np.array([*map(plain_number, texts)]).reshape(5, 2)
                except ValueError:
                    points = np.full((5, 2), np.nan)
                if not np.isfinite(points).all():
                    raise UserError(
                        f"{path}:{reader.line_num}: expected a path and ten finite numbers"
                    )
                of_photo.append(points)
                across, down = (
                    points[1] - points[0],
                    points[3:].sum(axis=0) - points[:2].sum(axis=0),
                )
                swapped.append(across[0] * down[1] < across[1] * down[0])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except csv.Error as error:
        raise UserError(f"{path}: is not CSV ({error})") from error
    if swapped and np.mean(swapped) > 0.5:
        raise UserError(
            f"{path}: left and right are swapped; the left eye is the left one in the picture"
        )
    return faces


def _centre(face: DetectedFace) -> Points:
    x, y, width, height = face.box
    return np.array([x + width / 2, y + height / 2])


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file, by which a change is seen; -1 where it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _remove_halves(folder: Path) -> None:
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _HALF.fullmatch(entry.name):
                os.unlink(entry.path)


def _line(name: str, size: int, time: int, faces: int) -> str:
    return json.dumps([name, size, time, faces]) + "\n"


if __name__ == "__main__":
    run_script(main)
