"""Do listed images look like photos, and not like aligned faces? By size, else by landmarks."""

from __future__ import annotations

import threading
import time

import numpy as np

from dataset.images import read_image
from dataset.lists import ImageList
from sdd_fiqa.alignment import TEMPLATE, FaceAligner
from sdd_fiqa.assets import cached
from sdd_fiqa.images import FACE_SIZE, Image, cv2
from sdd_fiqa.number import count_of

_SAMPLE = 50
_SECONDS = 2.0
_LAST_IMAGE = 10.0  # more seconds for the image that is being looked at then
# Mean distance of five landmarks from the template, in pixels of a 112x112 crop. Medians of aligned
# sets were 3.4 to 4.3; of photos cut to about the face, 9.8 to 14.6 (LFW).
_FARTHEST = 7.0


def like_photo(image: Image) -> bool:
    """Whether (H, W, 3) pixels are too large or too oblong for a face crop."""
    shorter, longer = sorted(image.shape[:2])
    return bool(longer > 2 * FACE_SIZE or longer > 1.1 * shorter)


def doubt_alignment(table: ImageList) -> str:
    """Why the images of a list look like photos, and what to do; empty where they do not.

    A sample of 50 images is looked at: their sizes, and where those say nothing their landmarks, if
    the cache holds the detector. It is never fetched for this. Nothing is said of landmarks where
    most of the sample shows no face, and nothing counts that is not seen within _SECONDS.
    """
    rows = np.random.default_rng(0).choice(len(table), min(_SAMPLE, len(table)), replace=False)
    paths, until = list(table.paths_at(rows)), time.monotonic() + _SECONDS
    seen: list[bool] = []  # of each image looked at, whether it is a photo
    away: list[float] = []  # mean distances of landmarks, in the pixels of a crop

    def look() -> None:
        model = cached("yunet")
        aligner = None if model is None else FaceAligner(model)
        for path in paths:
            try:
                image = read_image(path)
                photo = like_photo(image)
                faces = [] if aligner is None or photo else aligner.search(image)
            except (ValueError, cv2.error):  # unreadable: told when it is needed
                continue
            if time.monotonic() > until:
                return
            seen.append(photo)
            if faces:  # of the largest one
                scale = FACE_SIZE / np.array(image.shape[1::-1])
                landmarks = (faces[0].landmarks + 0.5) * scale - 0.5
                away.append(float(np.linalg.norm(landmarks - TEMPLATE, axis=1).mean()))

    # In a thread, as storage may hang. Python must not end while OpenCV works in it: that aborts.
    thread = threading.Thread(target=look, name="alignment", daemon=True)
    thread.start()
    thread.join(_SECONDS + _LAST_IMAGE)
    remedy = (
        "unaligned faces give wrong labels and scores; align photos with: python -m "
        "dataset.aligned_copies --data-root PHOTOS --out-dir FACES"
    )
    if photos := sum(seen):
        tried = f"{photos} of {count_of(len(seen), 'image')} tried"
        return f"look like photos, not aligned faces: {tried}; {remedy}"
    if len(away) > len(seen) / 2 and np.median(away) > _FARTHEST:
        return (
            f"faces in {count_of(len(away), 'image')} tried are not where those of aligned faces "
            f"are (median distance of the landmarks: {np.median(away):.0f} pixels of {FACE_SIZE}); "
            f"{remedy}"
        )
    return ""
