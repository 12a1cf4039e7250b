"""Every format against its twin in PNG: frames, turns, transparency, bits; and sizes that lie."""

import io
import logging
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

import sdd_fiqa.images
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import FORMATS, IMAGE_SUFFIXES, decode_image, format_of

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def face(make_face: Callable[[int, int], Pixels]) -> Image.Image:
    return Image.fromarray(make_face(0, 0)[:, :80])  # not square: turns show


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def off(content: bytes, wanted: Any) -> int:
    """The largest difference of a decoded file to some pixels."""
    pixels = decode_image(content)
    assert pixels.shape == np.asarray(wanted).shape
    return int(np.abs(pixels.astype(int) - np.asarray(wanted)).max())


LOSS = {"JPEG": 24, "WEBP": 24, "AVIF": 24, "HEIF": 24}  # the made-up faces are very colourful
OPTIONS = {kind: {"quality": 95} for kind in LOSS}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_rotation_and_mirroring_are_applied_once(
    face: Image.Image, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()  # AVIF's writer changes the object
    content = encode(face, kind, exif=block, **OPTIONS.get(kind, {}))
    png = encode(face, "PNG", exif=block)
    twin = ImageOps.exif_transpose(Image.open(io.BytesIO(png)))
    assert off(png, twin) == 0
    assert off(content, twin) <= LOSS.get(kind, 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "MPO", "TIFF"])
def test_the_first_of_several_frames_is_taken(face: Image.Image, kind: str) -> None:
    first = face.quantize(200).convert("RGB") if kind == "GIF" else face
    others = [ImageOps.invert(face), ImageOps.mirror(face)]
    options = {"lossless": True} if kind == "WEBP" else OPTIONS.get(kind, {})
    content = encode(first, kind, save_all=True, append_images=others, **options)
    assert off(content, first) <= {"GIF": 2, "MPO": 60}.get(kind, LOSS.get(kind, 0))


def over_black(face: Image.Image, alpha: Pixels) -> npt.NDArray[np.float64]:
    return np.asarray(face) * (alpha[:, :, None] / 255)


@pytest.mark.parametrize(
    "kind", ["PNG", "WEBP", "TIFF", "TIFF LA", "JPEG2000", "AVIF", "HEIF", "GIF"]
)
def test_transparency_is_laid_over_black(face: Image.Image, kind: str) -> None:
    alpha = np.full((112, 80), 255, np.uint8)
    alpha[:, :40] = 0
    if kind != "GIF":  # in which a pixel is transparent or not
        alpha[50:, :] = 128
    image = face.convert("L").convert("RGB") if kind.endswith("LA") else face
    wanted = over_black(image, alpha)
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    if kind.endswith("LA"):
        image = image.convert("LA")
    options = {"lossless": True, "exact": True} if kind == "WEBP" else OPTIONS.get(kind, {})
    pixels = decode_image(encode(image, kind.split()[0], **options))
    bound = {"AVIF": 24, "HEIF": 30, "GIF": 60}.get(kind, 1)
    assert np.abs(pixels - wanted)[:, 44:].max() <= bound  # loss spreads over the border
    assert pixels[:50, :36].max(initial=0) <= (0 if bound == 1 else 4)


def test_a_colour_that_stands_for_transparency_is_black(face: Image.Image) -> None:
    grey = np.asarray(face.convert("L"))
    key = int(grey[50, 40])
    wanted = np.where(grey == key, 0, grey)[:, :, None].repeat(3, axis=2)
    assert off(encode(Image.fromarray(grey), "PNG", transparency=key), wanted) == 0
    colours = np.asarray(face).copy()
    colours[:30] = (250, 0, 250)
    content = encode(Image.fromarray(colours), "PNG", transparency=(250, 0, 250))
    colours[:30] = 0
    assert off(content, colours) == 0


def test_bitmaps_whose_fourth_byte_is_not_used_are_opaque(face: Image.Image) -> None:
    for alpha in (0, 60):
        image = face.copy()
        image.putalpha(alpha)
        assert off(encode(image, "BMP"), face) == 0
    masked = cv2.imencode(".bmp", np.dstack([np.asarray(face)[:, :, ::-1], np.full((112, 80), 60)]))
    assert np.abs(decode_image(masked[1].tobytes()) - np.asarray(face) * (60 / 255)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jp2"])
def test_sixteen_bits_are_scaled_by_those_in_use(
    face: Image.Image, suffix: str, bits: int, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(sdd_fiqa.images, "_noted", set())
    wide = (np.asarray(face).astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)
    wide[0, 0] = (1 << bits) - 1
    content = cv2.imencode(suffix, wide[:, :, ::-1])[1].tobytes()
    with caplog.at_level(logging.WARNING, "sdd_fiqa"):
        for _ in range(2):
            assert np.abs(decode_image(content)[1:] - np.asarray(face)[1:].astype(int)).max() <= 2
    assert [record.name for record in caplog.records] == ["sdd_fiqa"]
    assert f"{bits} bits" in caplog.text


def test_dark_images_of_sixteen_bits_stay_dark(face: Image.Image) -> None:
    dark = np.asarray(face) // 8
    content = cv2.imencode(".png", dark[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert off(content, dark) == 0


@pytest.mark.parametrize("maximum", [100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_pnm_is_scaled_by_its_own_maximum(face: Image.Image, kind: str, maximum: int) -> None:
    colours = np.asarray(face).astype(np.uint32)
    values = (colours if kind in ("P3", "P6") else colours[:, :, :1]) * maximum // 255
    head = f"{kind}\n# made here\n80 112\n{maximum}\n".encode()
    body = values.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    if kind in ("P2", "P3"):
        body = " ".join(map(str, values.ravel())).encode()
    assert np.abs(decode_image(head + body) - values * 255 / maximum).max() <= 1


def test_tiffs_of_other_numbers_are_refused_by_name(face: Image.Image) -> None:
    values = np.asarray(face)
    float_tiff = cv2.imencode(".tiff", values.astype(np.float32) / 255)[1].tobytes()
    with pytest.raises(UnreadableImage, match="float TIFF"):
        decode_image(float_tiff)
    with pytest.raises(UnreadableImage, match="32 bits a colour"):
        decode_image(cv2.imencode(".tiff", values.astype(np.int32))[1].tobytes())


def test_heic_without_its_library_names_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    for brand in (b"heic", b"mif1", b"heix"):
        with pytest.raises(UnreadableImage) as caught:
            decode_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(99))
        assert str(caught.value) == "HEIC: pip install pillow-heif"


def big(content: bytes, place: int, form: str, sides: tuple[int, ...] = (60_000, 60_000)) -> bytes:
    size = struct.pack(form, *sides)
    return content[:place] + size + content[place + len(size) :]


def test_huge_images_are_refused_by_their_header(face: Image.Image) -> None:
    jpeg = encode(face, "JPEG")
    png = big(encode(face, "PNG"), 16, ">II")
    jpeg2000 = encode(face, "JPEG2000")
    files = {
        "JPEG": big(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH"),
        "PNG": big(png, 29, ">I", (zlib.crc32(png[12:29]),)),
        "JPEG 2000": big(jpeg2000, jpeg2000.index(b"\xff\x4f\xff\x51") + 8, ">II"),
        "BMP": big(encode(face, "BMP"), 18, "<ii"),
        "GIF": big(encode(face, "GIF"), 6, "<HH"),
        "WebP": big(encode(face, "WEBP", lossless=True), 21, "<I", (11_999 << 14 | 11_999,)),
        "PNM": b"P6 60000 60000 255\n" + bytes(999),
    }
    tiff = bytearray(encode(face, "TIFF"))
    ifd = struct.unpack_from("<I", tiff, 4)[0]
    for entry in range(struct.unpack_from("<H", tiff, ifd)[0]):
        place = ifd + 2 + 12 * entry
        if struct.unpack_from("<H", tiff, place)[0] in (256, 257):
            struct.pack_into("<HII", tiff, place + 2, 4, 1, 60_000)
    files["TIFF"] = bytes(tiff)
    for name, content in files.items():
        kind = format_of(content)
        assert kind is not None
        assert kind.name == name
        with pytest.raises(UnreadableImage, match="has more than"):
            decode_image(content)


def test_a_damaged_length_does_not_reach_opencv(face: Image.Image, monkeypatch: Any) -> None:
    wide = np.asarray(face).astype(np.uint16) * 257
    content = cv2.imencode(".png", wide)[1].tobytes()
    seen: list[bytes] = []
    monkeypatch.setattr(sdd_fiqa.images, "_by_opencv", seen.append)  # 2 GiB, and 20 s
    with pytest.raises(UnreadableImage, match="another checksum"):
        decode_image(big(content, content.rindex(b"IDAT") - 4, ">I", (0x7FFFFFFF,)))
    assert not seen


def test_a_damaged_exif_block_does_not_spoil_the_picture(face: Image.Image, recwarn: Any) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x09"
    for kind in ("PNG", "WEBP"):
        for block in (exif, exif[:14], b"Exif\0\0nonsense"):
            assert off(encode(face, kind, exif=block, lossless=True), face) == 0
    assert not recwarn


def test_every_format_is_told_by_its_first_bytes(face: Image.Image) -> None:
    pillow = {"WebP": "WEBP", "PNM": "PPM", "JPEG 2000": "JPEG2000", "HEIC": "HEIF"}
    for kind in FORMATS:
        content = encode(face, pillow.get(kind.name, kind.name))
        assert format_of(content[:64]) is kind
        assert set(kind.suffixes) <= IMAGE_SUFFIXES


def test_importing_the_decoder_changes_no_setting() -> None:
    code = (
        "import os, cv2\n"
        "def now(): return dict(os.environ), cv2.getNumThreads(), cv2.utils.logging.getLogLevel()\n"
        "before = now()\n"
        "import sdd_fiqa.images\n"
        "assert now() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
