"""Images by path: a file of its own, or a member of a container."""

from __future__ import annotations

import os

import numpy as np

from common.cpu import set_up_image_libraries
from dataset.containers import read_bytes
from sdd_fiqa.images import Image, cv2, decode_image, resize_face

set_up_image_libraries()  # whatever reads images by path does so on threads of its own


def read_image(path: str | os.PathLike[str]) -> Image:
    """Reads one image, of a file or a container, as `decode_image`: (H, W, 3) uint8, RGB, upright.

    Raises:
        UnreadableImage: missing, empty, damaged, truncated, or larger than MAX_PIXELS.
        UserError: the storage is gone (sdd_fiqa/storage.py).
    """
    return decode_image(read_bytes(path))


def read_face(path: str | os.PathLike[str]) -> Image:
    """Reads one aligned face: (112, 112, 3) uint8, RGB. Raises as `read_image`."""
    return resize_face(read_image(path))


def thumbnail(image: Image, side: int = 96) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG bytes, at most `side` pixels wide and high."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return encode_face(np.asarray(small, np.uint8), ".jpg", 80)


def encode_face(face: Image, suffix: str, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a file: `.png`, or `.jpg` of this quality."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []
    _, content = cv2.imencode(suffix, cv2.cvtColor(face, cv2.COLOR_RGB2BGR), settings)
    return content.tobytes()
