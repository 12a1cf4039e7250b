"""JPEG: strict decoding, and the damage that no decoder notices.

A decoder fills what is missing with grey and goes on with a warning, so a warning means damage. Two
kinds of damage are valid codes and bring no warning:

- Zeros over a part of the scan. In most files they are codes that no encoder writes in a row.
- A short piece cut out, or two files joined, where by chance the number of blocks is right. The
  colours of all later blocks are then off by a constant. Encoders store colours that lie inside the
  RGB cube; so the brightness of a block as stored, and as computed from its RGB pixels, must agree.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from sdd_fiqa.errors import UnreadableImage

Image = npt.NDArray[np.uint8]

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of a frame
_DHT, _SOS, _DQT, _APP1 = 0xC4, 0xDA, 0xDB, 0xE1
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_DECODING = frozenset({_DHT, _DQT, _SOS, 0xDD, 0xE0, 0xEE}) | _SOF  # what decoding needs
_END = b"\xff\xd9"
_ZEROS = bytes(16)  # 42 coefficients of -1 in a row
# By how much the two brightnesses of a block may differ. In 46,393 photographed faces they differ
# by at most 2; at JPEG quality 10, whose colours have a step of 85, by at most 10. Where pure
# colours meet they differ by at most 10, and only near the edge.
_MOST_OFF, _MOST_OFF_WHERE_FLAT, _MOST_OFF_A_STEP = 10, 3, 1 / 8
_FLAT = 128  # the largest range of a colour in a block and its neighbours


class Header(NamedTuple):
    """What a JPEG file says before its first scan.

    Attributes:
        width, height: pixels.
        components: 1 grey, 3 colour, 4 CMYK.
        exif: the TIFF block of the EXIF segment; empty without one.
        segments: (marker, start, end) of each, the marker's two bytes included.
        scan: where the data of the first scan begin.
    """

    width: int
    height: int
    components: int
    exif: bytes
    segments: list[tuple[int, int, int]]
    scan: int


def read_header(content: bytes) -> Header:
    """Walks through the segments up to the first scan.

    Raises:
        UnreadableImage: no frame or no scan.
    """
    width = height = components = 0
    exif = b""
    segments = []
    position = 2
    while (start := content.find(b"\xff", position)) >= 0 and start + 4 <= len(content):
        marker = content[start + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position = start + (1 if marker == 0xFF else 2)
            continue
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        segments.append((marker, start, end))
        if marker in _SOF and not components:
            height = int.from_bytes(content[start + 5 : start + 7], "big")
            width = int.from_bytes(content[start + 7 : start + 9], "big")
            components = content[start + 9] if start + 9 < len(content) else 0
        elif marker == _APP1 and content.startswith(b"Exif\0\0", start + 4) and not exif:
            exif = content[start + 10 : end]
        elif marker == _SOS and components:
            return Header(width, height, components, exif, segments, end)
        position = max(end, start + 2)
    raise UnreadableImage("cannot be decoded (a JPEG that ends before its pixels)")


def decode_jpeg(content: bytes, header: Header) -> Image:
    """Decodes as OpenCV does, not turned: (H, W, 3) uint8 RGB.

    Bytes after the end marker, a missing end marker and zeros before it are no damage.

    Raises:
        UnreadableImage: damaged, or a kind of JPEG that no decoder here reads.
    """
    end = content.find(_END, header.scan)
    data = content if end < 0 else content[:end]
    if end < 0:
        content += _END
    space = "CMYK" if header.components == 4 else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(content, space, strict=True)
    except ValueError as error:
        if not _decodes_with_warnings(content, space):
            return _other_kind(content)
        data = _without_padding(data, header)
        content = data + _END
        try:
            header = read_header(content)
            pixels = simplejpeg.decode_jpeg(content, space, strict=True)
        except ValueError:
            reason = str(error).removeprefix("Corrupt JPEG data: ")
            raise UnreadableImage(f"is damaged ({reason})") from error
    if data.find(_ZEROS, header.scan) >= 0 and _zeros_are_no_code(data, header):
        raise UnreadableImage("is damaged (zeros inside the picture's data)")
    if header.components == 4:
        return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), _CMYK), np.uint8)
    if header.components == 3 and _has_impossible_colours(pixels, content, header):
        raise UnreadableImage("is damaged (colours that no picture has: some data are missing)")
    return np.asarray(pixels, np.uint8)


_CMYK = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def _decodes_with_warnings(content: bytes, space: str) -> bool:
    try:
        simplejpeg.decode_jpeg(content, space, strict=False)
    except ValueError:
        return False
    return True


def _other_kind(content: bytes) -> Image:
    """Decodes with Pillow the kinds of JPEG that simplejpeg does not read."""
    import io

    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(content)) as opened:
            return np.asarray(opened.convert("RGB"), np.uint8)
    except Exception as error:
        raise UnreadableImage("cannot be decoded") from error


def _without_padding(data: bytes, header: Header) -> bytes:
    """Removes zeros at the end and bytes between segments: decoders warn, but they do no harm."""
    whole = data.rstrip(b"\0")
    if whole.endswith(b"\xff") and len(whole) < len(data):
        whole += b"\0"  # an 0xff of the scan is written as 0xff 0
    needed = (data[start:end] for kind, start, end in header.segments if kind in _DECODING)
    return b"".join((b"\xff\xd8", *needed, whole[header.scan :]))


def _zeros_are_no_code(data: bytes, header: Header) -> bool:
    """Whether zeros in the scan code coefficients other than 0: no picture has so many of -1.

    The shortest code of a table is all zeros and belongs to its first symbol. Where that means
    "the block ends", as in some optimised files, zeros are a flat area.
    """
    frame = next(kind for kind, _, _ in header.segments if kind in _SOF)
    _, start, _ = header.segments[-1]
    if frame > 0xC1 or data[start + 4] != header.components:
        return False  # progressive, or components one after the other
    wanted = 0x10 | data[start + 6] & 15  # the table of the brightness
    first = None
    for kind, start, end in header.segments:
        place = start + 4
        while kind == _DHT and place + 17 < end:
            if data[place] == wanted:
                first = data[place + 17]
            place += 17 + sum(data[place + 1 : place + 17])
    return bool(first)


def _has_impossible_colours(pixels: Image, content: bytes, header: Header) -> bool:
    """Whether blocks of 8 x 8 pixels were stored with colours outside the RGB cube."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    if not (rows and columns):
        return False
    whole = pixels[: rows * 8, : columns * 8]
    grey = cv2.cvtColor(whole, cv2.COLOR_RGB2GRAY)
    computed = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA)
    # Stored: an eighth of the size takes each block's mean, and grey takes the brightness alone.
    stored = simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, min_factor=8)
    off = cv2.absdiff(computed, stored[:rows, :columns, 0])
    worst = cv2.minMaxLoc(off)[1]
    slack = _MOST_OFF_A_STEP * _colour_step(content, header)
    if worst <= _MOST_OFF_WHERE_FLAT + slack:
        return False
    blocks = whole.reshape(rows, 8, columns, 8, 3)
    around = np.ones((3, 3), np.uint8)
    highest, lowest = blocks.max(axis=(1, 3)), blocks.min(axis=(1, 3))
    ranges = (cv2.dilate(highest, around) - cv2.erode(lowest, around)).max(axis=2)
    flat = off[ranges < _FLAT].max(initial=0)
    return bool(worst > _MOST_OFF + slack or flat > _MOST_OFF_WHERE_FLAT + slack)


def _colour_step(content: bytes, header: Header) -> int:
    """The largest first entry of the quantisation tables: the step of the blocks' means."""
    step = 0
    for kind, start, end in header.segments:
        place = start + 4
        while kind == _DQT and place + 1 < end:
            wide = content[place] >> 4 != 0
            step = max(step, int.from_bytes(content[place + 1 : place + 2 + wide], "big"))
            place += 1 + (128 if wide else 64)
    return step
