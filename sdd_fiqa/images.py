"""From the bytes of an image file to RGB pixels: one decoder, one set of rules, for every stage."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import cv2 as cv2  # others import it from here
import numpy as np
import numpy.typing as npt

from sdd_fiqa import jpeg
from sdd_fiqa.errors import UnreadableImage

MAX_PIXELS = 1 << 27  # 134 megapixels: above any camera, far below what would exhaust memory
FACE_SIZE = 112  # pixels a side of every network's input

Image = npt.NDArray[np.uint8]
Content = bytes | npt.NDArray[np.uint8]  # of an image file; an array is a part of a larger block

_ROWS = 256  # rows of an image with transparency that are converted at a time
_ORIENTATION, _FLOAT = 0x0112, 3  # TIFF: a tag, and a value of the tag SampleFormat
_SIZ = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)  # how a JPEG 2000's data begin
_log = logging.getLogger("sdd_fiqa")
_noted: set[str] = set()  # the notes that were given


class Format(NamedTuple):
    """A kind of image file.

    Attributes:
        name: for messages.
        suffixes: by which a walk through a folder selects files; nothing else looks at them.
        start: a pattern of how a file begins.
        decode: from the bytes of a file to (H, W, 3) uint8 RGB, upright.
    """

    name: str
    suffixes: tuple[str, ...]
    start: bytes
    decode: Callable[[bytes], Image]


def format_of(content: bytes) -> Format | None:
    """The kind of image that some bytes begin (the first 64 are enough), by content alone."""
    return next((kind for kind in FORMATS if re.match(kind.start, content, re.DOTALL)), None)


def decode_image(content: Content) -> Image:
    """From the bytes of an image file to (H, W, 3) uint8, RGB, upright.

    The first bytes tell the kind. Only the first of several frames is decoded. EXIF rotation is
    applied. Grey, palette, CMYK and 16-bit images become 8-bit RGB. Transparent parts are blended
    with black.

    Raises:
        UnreadableImage: empty, damaged, truncated, larger than MAX_PIXELS, or no image.
    """
    if not len(content):
        raise UnreadableImage("is empty (0 bytes)")
    data = content.tobytes() if isinstance(content, np.ndarray) else content
    kind = format_of(data[:64])
    if kind is None:
        raise UnreadableImage("is not an image that can be decoded")
    try:
        return kind.decode(data)
    except UnreadableImage:
        raise
    except Exception as error:  # each library has its own; a damaged file may raise any of them
        raise UnreadableImage("cannot be decoded") from error


def resize_face(image: Image) -> Image:
    """Resizes (H, W, 3) to (112, 112, 3); it does not keep the proportions.

    Enlarges by bilinear interpolation, as the published code. Shrinks by area, so that the result
    has no aliasing.
    """
    height, width = image.shape[:2]
    if height == width == FACE_SIZE:
        return image
    shrinks = min(height, width) > FACE_SIZE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (FACE_SIZE, FACE_SIZE), interpolation=method), np.uint8)


def _jpeg(content: bytes) -> Image:
    header = jpeg.read_header(content)
    _check_size(header.width, header.height)
    return _upright(jpeg.decode_jpeg(content, header), _exif_orientation(header.exif))


def _png(content: bytes) -> Image:
    """By OpenCV: Pillow lets one thread decode at a time, and drops half of the bits of 16."""
    exif = grey = kind = b""
    place = 8
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", content, place)
        value = content[place + 8 : place + 8 + size]
        check = content[place + 8 + size : place + 12 + size]
        # OpenCV would set aside as much memory as a damaged length asks for.
        if kind.isupper() and int.from_bytes(check, "big") != zlib.crc32(kind + value):
            raise UnreadableImage("is damaged (a part of the PNG has another checksum)")
        if kind == b"eXIf":
            exif = value
        elif kind == b"tRNS" and content[25] == 0:
            grey = value
        place += 12 + size
    _check_size(*struct.unpack_from(">II", content, 16))
    pixels = _by_opencv(content)
    if grey:  # OpenCV ignores which grey is transparent
        key, bits = int.from_bytes(grey, "big"), content[24]
        pixels[pixels == (key if bits > 8 else key * 255 // ((1 << bits) - 1))] = 0
    return _upright(_over_black(pixels), _exif_orientation(exif))


def _jpeg2000(content: bytes) -> Image:
    for size in _SIZ.finditer(content):
        right, bottom, left, top = struct.unpack(">4I", size[1])
        _check_size(right - left, bottom - top)
    return _over_black(_by_opencv(content))


def _tiff(content: bytes) -> Image:
    tags = _tiff_tags(content)
    bits = max(tags.get(258, (1,)))
    if _FLOAT in tags.get(339, (1,)):
        raise UnreadableImage("is a float TIFF: save it with 8 or 16 bits a colour")
    if bits > 16:
        raise UnreadableImage(f"is a TIFF of {bits} bits a colour: save it with 8 or 16")
    if bits <= 8:
        return _by_pillow("TIFF", content)
    _check_size(*(tags.get(tag, (0,))[0] for tag in (256, 257)))
    pixels = _by_opencv(content)  # upright already
    if 1 in tags.get(338, ()):  # the colours are blended with black already
        pixels = pixels[:, :, :3]
    return _over_black(pixels)


def _heic(content: bytes) -> Image:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise UnreadableImage("HEIC: pip install pillow-heif") from error
    # pillow-heif types its arguments only.
    with HeifImageFile(io.BytesIO(content)) as opened:  # type: ignore[no-untyped-call]
        return image_of_pillow(opened)


def _by_pillow(kind: str, content: bytes) -> Image:
    """The first frame by a reader of Pillow, upright; Image.open would warn of a large picture."""
    import PIL.Image

    PIL.Image.preinit()  # the most usual readers
    if kind not in PIL.Image.OPEN:
        PIL.Image.init()  # all others, in .07 s
    with PIL.Image.OPEN[kind][0](io.BytesIO(content), "") as opened:
        _check_size(*opened.size)
        image = _rgb(opened)
        exif = opened.info.get("exif", b"").removeprefix(b"Exif\0\0")
    return _upright(image, _exif_orientation(exif))


HEIC_SUFFIXES = (".heic", ".heif", ".hif")
# Every kind that is read. The reserved bytes of a BMP are zero, which a text that begins with "BM"
# has not. AVIF and HEIC share a container: what is inside is named by a list of four letters each.
FORMATS = (
    Format("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"), rb"\xff\xd8\xff", _jpeg),
    Format("PNG", (".png", ".apng"), rb"\x89PNG\r\n\x1a\n", _png),
    Format("WebP", (".webp",), rb"RIFF.{4}WEBP", partial(_by_pillow, "WEBP")),
    Format("GIF", (".gif",), rb"GIF8[79]a", partial(_by_pillow, "GIF")),
    Format("BMP", (".bmp",), rb"BM.{4}\0\0\0\0", partial(_by_pillow, "BMP")),
    Format(
        "PNM",
        (".pgm", ".ppm", ".pnm", ".pbm"),
        rb"P[1-6](?:\s+\d|\s*#)",
        partial(_by_pillow, "PPM"),
    ),
    Format("JPEG 2000", (".jp2",), rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jpeg2000),
    Format("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", _tiff),
    Format("AVIF", (".avif",), rb".{4}ftyp(?:.{4})*?avi[fs]", partial(_by_pillow, "AVIF")),
    Format("HEIC", HEIC_SUFFIXES, rb".{4}ftyp(?:.{4})*?(?:he[iv][cxms]|mif1|msf1)", _heic),
)
IMAGE_SUFFIXES = frozenset(suffix for kind in FORMATS for suffix in kind.suffixes)


def _check_size(width: int, height: int) -> None:
    """Refuses, before any pixel is decoded, what would take too much memory."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"has more than {MAX_PIXELS} pixels")


def _by_opencv(content: bytes) -> npt.NDArray[Any]:
    """The first frame as stored: (H, W, C), BGR or grey, with its alpha where it has one."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise UnreadableImage("cannot be decoded")
    return np.asarray(pixels if pixels.ndim == 3 else pixels[:, :, None])


def image_of_pillow(opened: Any) -> Image:
    """From an image of Pillow to (H, W, 3) uint8, RGB, upright, blended with black.

    Raises:
        UnreadableImage: larger than MAX_PIXELS, or of a mode without 8 or 16 bits a colour.
    """
    from PIL import ImageOps

    _check_size(*opened.size)
    return _rgb(ImageOps.exif_transpose(opened))


def _rgb(opened: Any) -> Image:
    if opened.mode.startswith("I"):
        pixels = np.asarray(opened)
        if not (pixels >> 16).any():
            return _over_black(pixels.astype(np.uint16)[:, :, None])
    if opened.mode in ("F", "I"):
        raise UnreadableImage(f"is of Pillow's mode {opened.mode}: convert it to RGB")
    if "A" in opened.getbands() or "a" in opened.getbands() or "transparency" in opened.info:
        return _over_black(np.asarray(opened.convert("RGBA"))[:, :, [2, 1, 0, 3]])
    return np.asarray(opened.convert("RGB"), np.uint8)


def _over_black(pixels: npt.NDArray[Any]) -> Image:
    """Blends with black: (H, W, 1..4) grey or BGR, of 8 or 16 bits, alpha last -> 8-bit RGB."""
    if pixels.dtype == np.uint16:
        pixels = _to_eight_bits(pixels)
    if pixels.dtype != np.uint8:
        raise UnreadableImage(f"has pixels of an unknown kind ({pixels.dtype})")
    if pixels.shape[2] == 1:
        return np.asarray(np.repeat(pixels, 3, axis=2), np.uint8)
    if pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_BGR2RGB), np.uint8)
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for start in range(0, len(pixels), _ROWS):  # or products would take several times the image
        part = pixels[start : start + _ROWS]
        alpha = part[:, :, -1:].astype(np.uint16)
        out[start : start + _ROWS] = (part[:, :, -2::-1].astype(np.uint16) * alpha + 127) // 255
    return out


def _to_eight_bits(pixels: npt.NDArray[np.uint16]) -> Image:
    """Scales by the bits in use: cameras' 10 or 12 bits are often stored in the lower part of 16.

    An image of 8 bits that was spread over 16, v * 257, uses them all, however dark it is.
    """
    colours = pixels if pixels.shape[2] in (1, 3) else pixels[:, :, :-1]
    most = int(colours.max())
    # Lossy compression overshoots a little.
    bits = next((bits for bits in (8, 10, 12, 14) if most < (1 << bits) + (1 << bits >> 6)), 16)
    if bits == 16 or not (colours % 257).any():
        return np.asarray(pixels >> 8, np.uint8)
    if "bits" not in _noted:
        _noted.add("bits")
        _log.warning("note: a 16-bit image uses %d bits only; such images are scaled to 8", bits)
    scaled: Image = np.minimum(pixels >> (bits - 8), 255).astype(np.uint8)
    if colours.shape != pixels.shape and int(pixels[:, :, -1].max()) >> bits:
        scaled[:, :, -1] = pixels[:, :, -1] >> 8  # transparency that uses all bits
    return scaled


def _exif_orientation(block: bytes) -> int:
    """1 to 8, of a block of EXIF; 1 where it says nothing, or is damaged: the picture is not."""
    try:
        return int(_tiff_tags(block).get(_ORIENTATION, (1,))[0]) if block else 1
    except (struct.error, UnreadableImage):
        return 1


def _upright(image: Image, orientation: int) -> Image:
    """Turns and mirrors an image as EXIF's orientation says; other numbers change nothing."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _tiff_tags(block: bytes) -> dict[int, tuple[int, ...]]:
    """The whole numbers in the first directory of a TIFF or EXIF block: {tag: values}."""
    order = "<" if block[:2] == b"II" else ">"
    big = block[2:3] == b"+" or block[3:4] == b"+"
    word, count_kind, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    (place,) = struct.unpack_from(order + word, block, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_kind, block, place)
    place += struct.calcsize(count_kind)
    tags = {}
    for start in range(place, min(place + count * entry, len(block) - entry + 1), entry):
        tag, kind, number = struct.unpack_from(f"{order}HH{word}", block, start)
        letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if letter is None or not 0 < number <= 64:
            continue
        values = f"{order}{number}{letter}"
        at = start + entry - (8 if big else 4)
        if struct.calcsize(values) > (8 if big else 4):
            (at,) = struct.unpack_from(order + word, block, at)
        tags[tag] = struct.unpack_from(values, block, at)
    return tags
