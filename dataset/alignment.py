"""From a photo to aligned faces: find them, and turn each upright into 112x112 pixels.

Detector: YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
Intelligence Research 2023), through OpenCV. Alignment: the least-squares similarity transform of
five landmarks (Umeyama, "Least-squares estimation of transformation parameters between two point
patterns", IEEE TPAMI 1991) to the template that face recognisers are trained on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.assets import fetch
from dataset.command_line import UserError
from dataset.images import FACE_SIZE, Image, cv2

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
DETECTION_SIDE = 640  # pixels of the longer side at which a photo is searched
SCORE_THRESHOLD = 0.6
_OVERLAP = 0.3  # of two boxes: above, the one with the lower score goes
_MOST_FACES = 5000  # candidates before overlapping ones go
_PADDING = 0.4  # of the longer side, for a second look at a picture in which nothing was found


@dataclass(frozen=True)
class Face:
    """One face of a photo, in the photo's pixels; parts may lie outside the photo.

    Attributes:
        box: x, y, width, height.
        landmarks: (5, 2) float64: left eye, right eye, nose, left and right mouth corner AS SEEN
            IN THE PICTURE (the person's right eye comes first).
        score: the detector's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: Points
    score: float

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return max(0.0, self.box[2]) * max(0.0, self.box[3])


class FaceAligner:
    """Finds and aligns faces. Costs nothing to make, and can be sent to a loader's workers.

    The detector is made at the first photo, one a process.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        score_threshold: float = SCORE_THRESHOLD,
    ) -> None:
        """Looks the detector's file up, and fetches it where it is not in the cache yet.

        Args:
            model: a YuNet .onnx file; None: the known one (see `dataset.assets`).
            score_threshold: faces with a lower score are not reported; in (0, 1).

        Raises:
            UserError: the file is missing or cannot be fetched.
        """
        self._model = Path(model) if model is not None else fetch("yunet")
        if not self._model.is_file():
            raise UserError(f"{self._model}: is no file; name a YuNet .onnx file")
        self._score_threshold = score_threshold
        self._detector: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the detector, which belongs to its process."""
        return {**self.__dict__, "_detector": None}

    def detect(self, image: Image) -> list[Face]:
        """The faces of a photo, the largest first.

        A photo larger than DETECTION_SIDE is searched on a smaller copy. Where nothing is found,
        it is searched once more with a black margin, for faces cut close to the edge.

        Args:
            image: (H, W, 3) uint8, RGB.
        """
        height, width = image.shape[:2]
        longer = max(height, width)
        faces = self._search(image, DETECTION_SIDE / longer, 0)
        if not faces:
            margin = round(_PADDING * longer)
            faces = self._search(image, DETECTION_SIDE / (longer + 2 * margin), margin)
        return sorted(faces, key=lambda face: face.area, reverse=True)

    def align(self, image: Image) -> list[tuple[Face, Image]]:
        """The faces of a photo, the largest first, each with its (112, 112, 3) RGB crop."""
        return [(face, align(image, face.landmarks)) for face in self.detect(image)]

    def _search(self, image: Image, scale: float, margin: int) -> list[Face]:
        """Faces in `image` with a black margin of `margin` pixels, shrunk to `scale` if below 1."""
        seen = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # the detector wants BGR
        if margin:
            seen = cv2.copyMakeBorder(seen, *[margin] * 4, cv2.BORDER_CONSTANT)
        height, width = seen.shape[:2]
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
        # By how much each axis really shrank: sides are whole pixels.
        ratio = np.array([width / seen.shape[1], height / seen.shape[0]])
        return [_face(row, ratio, margin) for row in self._rows(seen)]

    def _rows(self, seen: Image) -> npt.NDArray[np.float32]:
        """(F, 15) rows of the detector: box, five landmarks, score."""
        if self._detector is None:
            self._detector = _load(self._model, self._score_threshold)
        self._detector.setInputSize((seen.shape[1], seen.shape[0]))
        rows = self._detector.detect(seen)[1]
        return np.empty((0, 15), np.float32) if rows is None else np.asarray(rows, np.float32)


def similarity_transform(source: Points, target: Points) -> Points:
    """The similarity transform that takes `source` points to `target` points, in least squares.

    It minimises sum_i |s R a_i + t - b_i|^2 over scale s > 0, rotation R (no mirroring) and shift
    t. In two dimensions that is a straight line fit in complex numbers: b = z a + t with
    z = s exp(i angle), so z = sum conj(a - mean a) (b - mean b) / sum |a - mean a|^2.

    Args:
        source: (N, 2), N >= 2, not all the same.
        target: (N, 2).

    Returns:
        (2, 3) float64, what cv2.warpAffine takes for "source to target".

    Raises:
        ValueError: the shapes differ, or all source points are the same.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or len(a) < 2:
        raise ValueError(f"expected two arrays of shape (N, 2), N >= 2; got {a.shape}, {b.shape}")
    a_mean, b_mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - a_mean, b - b_mean
    spread = float(np.sum(a * a))
    if not spread > 0:
        raise ValueError("the source points are all the same; no transform can be found")
    real = float(np.sum(a * b)) / spread
    imaginary = float(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])) / spread
    turn = np.array([[real, -imaginary], [imaginary, real]])
    return np.column_stack([turn, b_mean - turn @ a_mean])


def align(image: Image, landmarks: Points) -> Image:
    """Cuts one face out of a photo so that its landmarks fall on TEMPLATE.

    Args:
        image: (H, W, 3) uint8, RGB.
        landmarks: (5, 2), in the order of TEMPLATE, in the photo's pixels.

    Returns:
        (112, 112, 3) uint8, RGB; black where the photo does not reach.

    Raises:
        ValueError: the landmarks are not (5, 2), or all the same.
    """
    matrix = similarity_transform(landmarks, TEMPLATE)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    # Bilinear sampling reads 2x2 pixels: a face much larger than 112 would alias, so the photo is
    # first shrunk by area, to at most twice the final size.
    shrink = int(0.5 / scale) if scale < 0.5 else 1
    if shrink > 1:
        size = (max(1, image.shape[1] // shrink), max(1, image.shape[0] // shrink))
        ratio = np.array([image.shape[1] / size[0], image.shape[0] / size[1]])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        # Pixel centres: x' + 1/2 = (x + 1/2) / ratio.
        matrix = similarity_transform((landmarks + 0.5) / ratio - 0.5, TEMPLATE)
    face = cv2.warpAffine(image, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR)
    return np.asarray(face, np.uint8)


def _face(row: npt.NDArray[np.float32], ratio: Points, margin: int) -> Face:
    """A detector's row in the pixels of the photo: undo the shrinking, then the margin."""
    corner = row[0:2] * ratio - margin
    size = row[2:4] * ratio
    # YuNet lists the person's right eye and right mouth corner first; seen in the picture those
    # stand on the left: the order of TEMPLATE already.
    landmarks = (row[4:14].reshape(5, 2).astype(np.float64) + 0.5) * ratio - 0.5 - margin
    box = (float(corner[0]), float(corner[1]), float(size[0]), float(size[1]))
    return Face(box, landmarks, float(row[14]))


def _load(model: Path, score_threshold: float) -> Any:
    try:
        return cv2.FaceDetectorYN.create(
            str(model), "", (FACE_SIZE, FACE_SIZE), score_threshold, _OVERLAP, _MOST_FACES
        )
    except cv2.error as error:
        raise UserError(f"{model}: is no YuNet model that OpenCV can load") from error
