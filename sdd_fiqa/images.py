"""From an image file to RGB pixels: one decoder, one set of rules, for every stage."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from sdd_fiqa.errors import UnreadableImage

MAX_PIXELS = 1 << 27  # 134 megapixels: above any camera, far below what would exhaust memory
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read once, by cv2's import
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # a damaged file is reported by us, once

import cv2 as cv2  # noqa: E402  (the limits above must stand first: others import it from here)

cv2.setNumThreads(0)  # the loaders' workers are the parallelism

_ROWS = 256  # of an image with transparency at a time
FACE_SIZE = 112  # pixels a side of every network's input
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".jp2"}
)
# How the files begin: JPEG, PNG, BMP (its reserved bytes are zero), WebP, TIFF, PNM, JPEG 2000,
# GIF.
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM.{4}\0\0\0\0|RIFF.{4}WEBP|II\*\0|MM\0\*|P[1-6]\s"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|GIF8[79]a",
    re.DOTALL,
)

_ORIENTATION = 0x0112  # EXIF

Image = npt.NDArray[np.uint8]
Content = bytes | npt.NDArray[np.uint8]  # of an image file; an array is a part of a larger block


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether the first bytes of a file are those of a kind of image that can be decoded.

    (`cv2.haveImageReader` brings Python down on a name that is not UTF-8, and takes a list that
    begins with "BM" for a bitmap.)
    """
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return _SIGNATURES.match(start) is not None


def thumbnail(image: Image, side: int = 96, quality: int = 80) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG bytes, at most `side` pixels wide and high."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, content = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), settings)
    return content.tobytes()


def decode_image(content: Content) -> Image:
    """As `read_image`, from the bytes of an image file."""
    if not len(content):
        raise UnreadableImage("is empty (0 bytes)")
    buffer = content if isinstance(content, np.ndarray) else np.frombuffer(content, np.uint8)
    flags = cv2.IMREAD_UNCHANGED if _has_alpha(content) else cv2.IMREAD_COLOR_RGB
    try:
        pixels = cv2.imdecode(buffer, flags)
    except cv2.error as error:
        if "pixels" in str(error).lower() or "CV_IO_MAX_IMAGE" in str(error):
            raise UnreadableImage(f"has more than {MAX_PIXELS} pixels") from error
        raise UnreadableImage("cannot be decoded") from error
    if pixels is None:
        raise UnreadableImage("is not an image that can be decoded")
    if flags == cv2.IMREAD_UNCHANGED:
        return _upright(_over_black(pixels), content)
    return np.asarray(pixels, np.uint8)


def resize_face(image: Image, size: int = FACE_SIZE) -> Image:
    """Resizes (H, W, 3) to (size, size, 3), as it is, without regard to its proportions.

    Bilinear, as the published code; where an image shrinks, by area, so that it does not alias.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shrinks = height > size and width > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def _has_alpha(content: Content) -> bool:
    """Whether a PNG or WebP file says that it holds transparency."""
    if content[0] not in b"\x89R":
        return False
    content = bytes(content)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        # Colour types 4 and 6 have an alpha channel; others may name transparent colours.
        return content[25:26] in (b"\4", b"\6") or b"tRNS" in content[: content.find(b"IDAT")]
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        if content[12:16] == b"VP8X":
            return content[20:21] > b"" and bool(content[20] & 0x10)
        return content[12:16] == b"VP8L" and content[24:25] > b"" and bool(content[24] & 0x10)
    return False


def _upright(image: Image, content: Content) -> Image:
    """Turned as the file's EXIF says, which cv2 does to images without transparency alone."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(bytes(content))) as opened:
            orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata: the picture itself was decoded
        return image
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _over_black(pixels: npt.NDArray[Any]) -> Image:
    """(H, W, 4) BGRA or (H, W, 2) grey + alpha of 8 or 16 bits, over black: RGB of 8 bits.

    Without an alpha channel after all, (H, W) or (H, W, 3) BGR, as it is.
    """
    shift = 8 if pixels.dtype == np.uint16 else 0
    if pixels.ndim == 2:
        return np.repeat((pixels >> shift).astype(np.uint8)[:, :, None], 3, axis=2)
    if pixels.shape[2] == 3:
        return np.ascontiguousarray((pixels[:, :, ::-1] >> shift).astype(np.uint8))
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for start in range(0, len(pixels), _ROWS):  # or products would take several times the image
        part = pixels[start : start + _ROWS] >> shift
        alpha = part[:, :, -1:].astype(np.uint16)
        out[start : start + _ROWS] = (part[:, :, -2::-1].astype(np.uint16) * alpha + 127) // 255
    return out
