"""Images by path: a file of its own, or a member of a container."""

from __future__ import annotations

import os

from common.cpu import one_opencv_thread
from dataset.containers import read_bytes
from sdd_fiqa.images import Image, cv2, decode_image, resize_face

one_opencv_thread()  # whatever reads images by path does so on threads of its own


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


def encode_face(face: Image, suffix: str) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a file: `.png`, or `.jpg` of quality 95."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else []
    _, content = cv2.imencode(suffix, cv2.cvtColor(face, cv2.COLOR_RGB2BGR), settings)
    return content.tobytes()
