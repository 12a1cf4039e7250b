"""Finds the faces of a photo, and cuts each out upright, 112x112 pixels.

Detector: YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
Intelligence Research 2023). Alignment: the least-squares similarity transform of
five landmarks (Umeyama, "Least-squares estimation of transformation parameters between two point
patterns", IEEE TPAMI 1991) to the template that face recognisers are trained on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdd_fiqa.assets import fetch
from sdd_fiqa.detector import YuNet
from sdd_fiqa.errors import UserError
from sdd_fiqa.images import FACE_SIZE, Image, cv2

Points = npt.NDArray[np.float64]

# Left eye, right eye, nose, left and right mouth corner, as seen in the picture; x, y in pixels.
TEMPLATE: Points = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
SCORE_THRESHOLD = 0.6
# The longer side of the copies that a photo is searched at, smallest first. Each finds faces from
# 1/20 of it to all of it (docs/alignment.md).
_SIDES = (640, 1280, 2560)
TURNS = (90, 180, 270)  # degrees clockwise, of a photo that may lie on its side or upside down
_TURNED_SIDE = 320
_MARGIN = 142  # black pixels around a copy, for a face that fills the photo or is cut by its edge
_OVERLAP = 0.3  # of two boxes, intersection over union: above, they are of one face
_INSIDE = 0.6  # or if this share of the smaller box is inside the other: it shows a part of a face
_LARGER = 0.1  # added to the detector score of a box of ten times the area, to choose one of them
# Each face is detected again in an upright close-up, this many times the size of an aligned face.
# The positions of copies of one face in the crop then differ by 1 pixel, not by 3.6.
_CLOSE_UP, _CLOSE_SIDE = 2.5, 320
_FARTHEST = 0.25  # of the close-up's side: landmarks farther away belong to another face


@dataclass(frozen=True)
class DetectedFace:
    """One face of a photo, in the photo's pixels. Parts of it may be outside the photo.

    Pixel centres are whole numbers: (0, 0) is the centre of the first pixel.

    Attributes:
        box: x, y, width, height.
        landmarks: (5, 2) float64: left eye, right eye, nose, left and right mouth corner AS SEEN
            IN THE PICTURE (the person's right eye comes first).
        detector_score: how sure the detector is, in [0, 1].
        turned: 0, or the degrees by which the photo was turned clockwise to see the face: 90, 180,
            270. Box and landmarks are in the photo as it is; the eyes are named as seen in the
            turned one, so that `align` makes an upright crop.
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    detector_score: float
    turned: int = 0

    @property
    def area(self) -> float:
        """The area of the box, in pixels."""
        return max(0.0, self.box[2]) * max(0.0, self.box[3])


class FaceAligner:
    """Finds and aligns faces. Threads may share it, and it can be sent to worker processes.

    The detector is loaded at the first photo.
    """

    def __init__(
        self, model: str | os.PathLike[str] | None = None, score_threshold: float = SCORE_THRESHOLD
    ) -> None:
        """Finds the detector's file, and fetches it if the cache lacks it.

        Args:
            model: a YuNet .onnx file; None takes the one in `sdd_fiqa.assets`.
            score_threshold: faces with a lower score are left out; in (0, 1).

        Raises:
            UserError: the file is missing or cannot be fetched.
        """
        self._model = Path(model) if model is not None else fetch("yunet")
        if not self._model.is_file():
            raise UserError(f"{self._model}: is not a file; name a YuNet .onnx file")
        self._detector = YuNet(self._model, score_threshold)

    def __reduce__(self) -> tuple[type[FaceAligner], tuple[Path, float]]:
        # Sent to another process without the detector, which cannot be sent.
        return FaceAligner, (self._model, self._detector.least)

    def align(
        self, image: Image, most: int | None = None, turn: int = 0
    ) -> list[tuple[DetectedFace, Image]]:
        """The faces of a photo, the largest first, each with its crop.

        Args:
            image: (H, W, 3) uint8, RGB.
            most: return at most this many of the largest faces; None: all, the small ones too.
            turn: see `search`.
        """
        return self.crops(image, self.search(image, most is None, turn)[:most])

    def crops(self, image: Image, faces: list[DetectedFace]) -> list[tuple[DetectedFace, Image]]:
        """Faces that a search found, with exact landmarks and (112, 112, 3) uint8 RGB crops."""
        exact = [self.look_closer(image, face) for face in faces]
        return [(face, align(image, face.landmarks)) for face in exact]

    def search(self, image: Image, every: bool = False, turn: int = 0) -> list[DetectedFace]:
        """The faces of a photo, the largest first; `look_closer` makes their landmarks exact.

        Args:
            image: (H, W, 3) uint8, RGB.
            every: whether all copies of the photo are searched, the large ones for small faces;
                else a larger copy is searched only if a smaller one shows no face.
            turn: by how many degrees the photo is turned clockwise first: 0, 90, 180 or 270.
        """
        longer = max(image.shape[:2])
        faces: list[DetectedFace] = []
        for smaller, side in zip((0, *_SIDES), _SIDES, strict=False):
            if longer > smaller and (every or not faces):
                faces += self._look(image, min(1.0, side / longer), turn)
        if not faces:
            faces = self._look(image, (_SIDES[0] - 2 * _MARGIN) / longer, turn, _MARGIN)
        return _largest_first(faces)

    def search_turned(self, image: Image) -> list[list[DetectedFace]]:
        """As `search`, in a quick look at a small copy for each of TURNS."""
        scale = min(1.0, _TURNED_SIDE / max(image.shape[:2]))
        return [_largest_first(self._look(image, scale, turn)) for turn in TURNS]

    def _look(
        self, image: Image, scale: float, turn: int = 0, margin: int = 0
    ) -> list[DetectedFace]:
        """The faces of a photo, seen on a copy: scaled, turned, with a black margin."""
        height, width = image.shape[:2]
        seen = image
        if scale != 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            seen = np.asarray(cv2.resize(image, size, interpolation=how), np.uint8)
        # The exact factor of each axis, since sides are whole pixels.
        ratio = np.array([width / seen.shape[1], height / seen.shape[0]])
        seen = np.asarray(np.rot90(seen, -turn // 90), np.uint8)
        if margin:
            seen = np.pad(seen, ((margin, margin), (margin, margin), (0, 0)))
        rows = self._detector.rows(seen)
        rows[:, :2] -= margin
        rows[:, 4:14] -= margin
        height, width = seen.shape[0] - 2 * margin, seen.shape[1] - 2 * margin
        return [_face(row, ratio, turn, (width, height)) for row in rows]

    def look_closer(self, image: Image, face: DetectedFace) -> DetectedFace:
        """The same face, with the mean landmarks of an upright close-up and its mirror image."""
        middle = (FACE_SIZE - 1) / 2
        wanted = (TEMPLATE - middle) * _CLOSE_UP + (_CLOSE_SIDE - 1) / 2
        try:
            matrix = similarity_transform(face.landmarks, wanted)
        except ValueError:  # all five landmarks at one point, for example
            return face
        close = _cut(image, matrix, _CLOSE_SIDE)
        mirrored = np.ascontiguousarray(close[:, ::-1])
        looks = [self._nearest(close, wanted), self._nearest(mirrored, _mirrored(wanted))]
        if looks[1] is not None:
            looks[1] = _mirrored(looks[1])
        seen = [look for look in looks if look is not None]
        if not seen:
            return face
        landmarks = (np.mean(seen, axis=0) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
        return replace(face, landmarks=landmarks)

    def _nearest(self, seen: Image, wanted: Points) -> Points | None:
        """(5, 2) landmarks of the face in `seen` nearest to `wanted`; None if none is near."""
        rows = self._detector.rows(seen)[:, 4:14].astype(np.float64).reshape(-1, 5, 2)
        away = np.linalg.norm(rows - wanted, axis=2).mean(axis=1)
        near = away.min(initial=np.inf) < _FARTHEST * _CLOSE_SIDE
        return rows[int(np.argmin(away))] if near else None


def similarity_transform(source: Points, target: Points) -> Points:
    """The least-squares similarity transform from `source` points to `target` points.

    It minimises sum_i |s R a_i + t - b_i|^2 over scale s > 0, rotation R (no mirroring) and shift
    t. In two dimensions that is a straight line fit in complex numbers: b = z a + t with
    z = s exp(i angle), so z = sum conj(a - mean a) (b - mean b) / sum |a - mean a|^2.

    Both are (N, 2), N >= 2. Returns (2, 3) float64, what cv2.warpAffine takes.

    Raises:
        ValueError: the shapes differ, or no scale above 0 fits (all points are equal, for example).
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) < 2:
        raise ValueError(f"expected two arrays of shape (N, 2), N >= 2; got {a.shape}, {b.shape}")
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - a_mean, b - b_mean
    spread = float(np.sum(a * a))
    real = float(np.sum(a * b)) / max(spread, 1e-300)
    imaginary = float(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])) / max(spread, 1e-300)
    if not np.hypot(real, imaginary) > 1e-9:
        raise ValueError("no similarity transform fits these points; they have no size")
    turn = np.array([[real, -imaginary], [imaginary, real]])
    return np.column_stack([turn, b_mean - turn @ a_mean])


def align(image: Image, landmarks: Points) -> Image:
    """Cuts one face out of a photo so that its landmarks, (5, 2) in its pixels, fall on TEMPLATE.

    (H, W, 3) -> (112, 112, 3) uint8, RGB; black outside the photo.

    Raises:
        ValueError: the landmarks are not (5, 2), or have no size (all are equal, for example).
    """
    return _cut(image, similarity_transform(landmarks, TEMPLATE), FACE_SIZE)


def _cut(image: Image, matrix: Points, side: int) -> Image:
    """(side, side, 3): `image` moved by `matrix` (2, 3); black outside the image."""
    turn, shift = matrix[:, :2], matrix[:, 2]
    ends = np.array([(0, 0), (0, side - 1), (side - 1, 0), (side - 1, side - 1)])
    corners = (ends - shift) @ np.linalg.inv(turn).T  # of the result, in the image
    low = np.floor(corners.min(axis=0)) - 2
    high = np.ceil(corners.max(axis=0)) + 3
    left, top = np.clip(low, 0, (image.shape[1], image.shape[0])).astype(int)
    right, bottom = np.clip(high, 0, (image.shape[1], image.shape[0])).astype(int)
    if right <= left or bottom <= top:
        return np.zeros((side, side, 3), np.uint8)
    part = image[top:bottom, left:right]
    # Bilinear sampling reads 2x2 pixels, so it aliases if it shrinks to less than half. Shrink by
    # area first, to between one and two times the final size.
    shrink = int(1 / np.sqrt(np.linalg.det(turn)))
    ratio = np.ones(2)
    if shrink > 1:
        size = (max(1, part.shape[1] // shrink), max(1, part.shape[0] // shrink))
        ratio = np.array([part.shape[1] / size[0], part.shape[0] / size[1]])
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    # Pixel centres: x = (x' + 1/2) * ratio - 1/2 + left.
    offset = 0.5 * ratio - 0.5 + (left, top)
    moved = np.column_stack([turn * ratio, turn @ offset + shift])
    result = cv2.warpAffine(part, moved, (side, side), flags=cv2.INTER_LINEAR)
    return np.asarray(result, np.uint8)


def rolls(landmarks: Points) -> Points:
    """(N, 5, 2) landmarks -> (N,) how far each face is turned clockwise, in degrees, -180 to 180.

    The angle of `similarity_transform` from TEMPLATE; NaN where a landmark is.
    """
    faces = np.asarray(landmarks, np.float64) @ np.array([1, 1j])
    template = (TEMPLATE - TEMPLATE.mean(axis=0)) @ np.array([1, 1j])
    degrees: Points = np.degrees(np.angle(faces @ template.conj()))
    return degrees


def _face(
    row: npt.NDArray[np.float32], ratio: Points, turn: int, size: tuple[int, int]
) -> DetectedFace:
    """A detector's row of a copy of the photo, in the pixels of the photo.

    The photo is `ratio` (x, y) times as large as the copy, which is turned clockwise by `turn`
    degrees and then has this width and height.
    """
    values = row.astype(np.float64)
    # YuNet lists the person's right eye and right mouth corner first; seen in the picture those
    # are on the left: the order of TEMPLATE already. Pixel centres: see `_cut`.
    landmarks = _turned_back(values[4:14].reshape(5, 2) + 0.5, turn, size) * ratio - 0.5
    ends = np.stack([values[0:2], values[0:2] + values[2:4]])
    ends = _turned_back(ends, turn, size) * ratio
    x, y = np.min(ends, axis=0).tolist()
    width, height = np.ptp(ends, axis=0).tolist()
    return DetectedFace((x, y, width, height), landmarks, float(values[14]), turn)


def _turned_back(points: Points, turn: int, size: tuple[int, int]) -> Points:
    """Undoes a clockwise turn of a picture: moves (N, 2) points to their place before it.

    `size` is the turned picture's width and height. (0, 0) is the corner of its first pixel.
    """
    width, height = size
    for _ in range(turn // 90):
        points = np.column_stack([points[:, 1], width - points[:, 0]])
        width, height = height, width
    return points


def _largest_first(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Removes duplicates: of overlapping boxes one is kept, by detector score and size."""
    kept: list[DetectedFace] = []
    ranks = [face.detector_score + _LARGER * np.log10(max(face.area, 1.0)) for face in faces]
    for place in np.argsort(-np.array(ranks), kind="stable").tolist():
        if not any(_overlap(faces[place], other) for other in kept):
            kept.append(faces[place])
    return sorted(kept, key=lambda face: face.area, reverse=True)


def _overlap(a: DetectedFace, b: DetectedFace) -> bool:
    """Whether two boxes are of one face."""
    shared = shared_area(a.box, b.box)
    return shared > _OVERLAP * (a.area + b.area - shared) or shared > _INSIDE * min(a.area, b.area)


def shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    """The area of the intersection of two boxes: x, y, width, height each."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _mirrored(landmarks: Points) -> Points:
    """Mirrors the landmarks of a close-up; their order is as seen in the mirrored picture."""
    mirrored = landmarks[[1, 0, 2, 4, 3]].copy()
    mirrored[:, 0] = _CLOSE_SIDE - 1 - mirrored[:, 0]
    return mirrored
