"""The scorer: finds the faces of a photo, aligns them, and scores each."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.alignment import DetectedFace, FaceAligner
from sdd_fiqa.calibration import (
    Calibration,
    percentiles_of,
    reaches,
    threshold_that_keeps,
    usable,
)
from sdd_fiqa.cores import own_cores
from sdd_fiqa.errors import UnreadableImage, UserError
from sdd_fiqa.images import Image, decode_image, image_of_pillow
from sdd_fiqa.quality_onnx import SHIPPED, QualityModel, load_onnx_model
from sdd_fiqa.storage import read_file
from sdd_fiqa.turned import doubtful, leads, lowest_upright

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    Photo = str | os.PathLike[str] | bytes | PillowImage | npt.NDArray[Any]

Found = list[tuple[DetectedFace, Image]]  # faces with their crops
_AHEAD = 3  # photos that are begun before the first is taken, for each thread


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo. Places are in the photo's pixels, after its EXIF rotation.

    Attributes:
        score: the quality, higher is better: 0 is the worst and 100 the best of the training faces;
            not clamped. The same network output as in the scores.csv of eval.py.
        percentile: how many percent of the model's calibration faces score lower, 0 to 100; None if
            the model has no calibration.
        box: x, y, width, height; parts of it may be outside the photo.
        landmarks: (5, 2) float64, x and y: left eye, right eye, nose, left and right mouth corner
            as seen in the picture.
        detector_score: how sure the detector is that this is a face, 0 to 1.
        turned: by how many degrees clockwise the photo was turned to see the face upright: 0, or
            90, 180 or 270 for a photo that lies on its side or upside down. Box and landmarks are
            in the photo as it is.
        crop: (112, 112, 3) uint8 RGB, the aligned face that was scored.
    """

    score: float
    percentile: float | None
    box: tuple[float, float, float, float]
    landmarks: npt.NDArray[np.float64] = field(repr=False)
    detector_score: float
    turned: int
    crop: Image = field(repr=False)
    _model: QualityModel = field(repr=False)

    def accepted(self, share: float) -> bool:
        """Whether the score reaches the threshold that `share` of the calibration faces reach.

        Args:
            share: above 0, at most 1; 0.95 refuses faces worse than 95 % of the calibration faces.

        Raises:
            UserError: the share is outside (0, 1], or the model has no calibration.
        """
        if not 0 < share <= 1:
            raise UserError(f"share {share}: must be above 0 and at most 1; 0.95 keeps 95 %")
        table = usable(self._model.calibration, self._model.name)
        return bool(reaches(np.array([self.score]), threshold_that_keeps(share, table))[0])


def load(
    model: str | os.PathLike[str] = "small",
    detector: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Scorer:
    """Loads a quality model; the detector is loaded at the first photo.

    The shipped model, `small`, is for research (its training faces); for a product, name a file
    with a model of your own.

    Args:
        model: `small`, or an .onnx file of export_onnx.py.
        detector: a YuNet .onnx file. None takes the one in the cache folder; if it is not there, it
            is fetched once, at the first photo, and its SHA-256 is checked. `python -m sdd_fiqa
            --fetch` does this beforehand.
        device: where the model runs: auto, cpu, cuda or cuda:i. cuda needs onnxruntime-gpu.
        threads: how many cores to use; None: all that this process may use.

    Raises:
        UserError: no such file or name, not a quality model, no such device, or threads below 1.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads {threads}: must be 1 or more")
    path = SHIPPED.get(os.fspath(model), Path(model))
    if not path.is_file():
        raise UserError(f"{model}: no such file, and no shipped model ({', '.join(SHIPPED)})")
    aligner = None if detector is None else FaceAligner(detector)
    return Scorer(load_onnx_model(path, device, threads=threads), aligner, threads or own_cores())


class Scorer:
    """Scores faces; `load` makes one. Threads may share it."""

    def __init__(self, model: QualityModel, aligner: FaceAligner | None, threads: int) -> None:
        """Arguments as `load` makes them; aligner None: that of the cache, at the first photo."""
        self._model = model
        self._aligner = aligner
        self._threads = threads
        self._lock = threading.Lock()
        # A damaged calibration does not keep faces from their scores.
        try:
            self._table: Calibration | None = usable(model.calibration, model.name)
        except UserError:
            self._table = None
        self._lowest = lowest_upright(self._table)

    def __call__(self, photo: Photo, most: int | None = None) -> list[Face]:
        """Finds and scores the faces of one photo, the largest first; an empty list: no face.

        A photo that lies on its side or upside down is turned, as eval.py does.

        Args:
            photo: a path; the bytes of an image file (JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF, ...;
                HEIC with pillow-heif); an image of Pillow; or an (H, W, 3) uint8 RGB array, upright
                (OpenCV reads BGR: pass `bgr[..., ::-1]`). EXIF rotation is applied to the first
                three.
            most: at most so many of the largest faces, found faster since no small ones are looked
                for: 1 is what `eval.py --align` scores. None: all, as `eval.py --all-faces`.

        Raises:
            UnreadableImage: missing, damaged, or too large; the message is the reason.
            TypeError, ValueError: a photo of another type, or an array of another type or shape.
            UserError: the detector is missing and cannot be fetched, or `most` is below 1.
        """
        if most is not None and most < 1:
            raise UserError(f"most {most}: must be 1 or more, or None for all")
        image, aligner = _pixels(photo), self._detector()
        found = aligner.align(image, most)
        scores = self._scores(found)
        if not found or doubtful(found[0][0].landmarks[None], scores[:1], self._lowest)[0]:
            upright = float(scores[0]) if found else 0.0
            found = self._turned(image, aligner, most, upright) or found
            scores = self._scores(found)
        percentiles: list[float | None] = [None] * len(found)
        if self._table is not None:
            percentiles = list(percentiles_of(scores, self._table).tolist())
        return [
            Face(
                score=score,
                percentile=percentile,
                box=face.box,
                landmarks=face.landmarks,
                detector_score=face.detector_score,
                turned=face.turned,
                crop=crop,
                _model=self._model,
            )
            for (face, crop), score, percentile in zip(
                found, scores.tolist(), percentiles, strict=True
            )
        ]

    def map(
        self, photos: Iterable[Photo], most: int | None = None
    ) -> Iterator[list[Face] | UnreadableImage]:
        """Scores many photos, on all cores; only some photos are read ahead of those you take.

        Yields:
            For each photo, in the order given, its faces, as a call returns them. For one that
            cannot be read, the UnreadableImage error itself, so that it does not end the others.

        Raises:
            As a call, for all but UnreadableImage.
        """
        begun: deque[Future[list[Face] | UnreadableImage]] = deque()
        pool = ThreadPoolExecutor(self._threads, "sdd_fiqa")
        try:
            for photo in photos:
                begun.append(pool.submit(self._faces_or_error, photo, most))
                if len(begun) > _AHEAD * self._threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def score(self, crops: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Scores aligned faces. This needs no detector and fetches nothing.

        Args:
            crops: (N, 112, 112, 3) uint8 RGB, 0..255, aligned to the 5-point template
                (`sdd_fiqa.alignment.TEMPLATE`).

        Returns:
            (N,) float32, on the label scale 0..100, not clamped.

        Raises:
            TypeError: not uint8.
            ValueError: another shape; one face is `crop[None]`.
        """
        return self._model(crops)

    def _turned(
        self, image: Image, aligner: FaceAligner, most: int | None, upright: float
    ) -> Found:
        """The faces as the best turn shows them; none if no turn leads the `upright` score."""
        looks = [face for faces in aligner.search_turned(image) for face in faces[:1]]
        largest = aligner.crops(image, looks)
        scores = self._scores(largest)
        if not leads(scores, upright).any():
            return []
        best = int(scores.argmax())
        return [largest[best]] if most == 1 else aligner.align(image, most, looks[best].turned)

    def _scores(self, found: Found) -> npt.NDArray[np.float32]:
        return self.score(np.stack([crop for _, crop in found])) if found else np.empty(0, "f4")

    def _faces_or_error(self, photo: Photo, most: int | None) -> list[Face] | UnreadableImage:
        try:
            return self(photo, most)
        except UnreadableImage as error:
            return error

    def _detector(self) -> FaceAligner:
        with self._lock:
            if self._aligner is None:
                self._aligner = fetch_detector()
            return self._aligner


def fetch_detector() -> FaceAligner:
    """The detector of the cache folder, fetched if it is not there.

    Raises:
        UserError: it cannot be fetched; the message says how to prepare a machine.
    """
    try:
        return FaceAligner()
    except UserError as error:
        raise UserError(
            f"{error}; or run `python -m sdd_fiqa --fetch` where there is a network (while an "
            "image is built, say), or name a YuNet file: load(detector=FILE)"
        ) from error


def _pixels(photo: Any) -> Image:
    """(H, W, 3) uint8 RGB, upright."""
    if isinstance(photo, str | os.PathLike):
        return decode_image(read_file(photo))
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode_image(bytes(photo))
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8:
            raise TypeError(f"expected an (H, W, 3) uint8 RGB array, got dtype {photo.dtype}")
        if photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            raise ValueError(f"expected an (H, W, 3) uint8 RGB array, got shape {photo.shape}")
        return np.ascontiguousarray(photo)
    if hasattr(photo, "getbands"):  # Pillow's, without importing it
        try:
            return image_of_pillow(photo)
        except UnreadableImage:
            raise
        except Exception as error:  # it decodes late; a damaged file may raise any
            raise UnreadableImage("cannot be decoded") from error
    raise TypeError(
        f"expected a path, bytes, a Pillow image or an array, got {type(photo).__name__}"
    )
