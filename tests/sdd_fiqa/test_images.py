"""One decoder for every kind of image: against Pillow, and what it must refuse by name."""

import io
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from dataset.find import find_images
from dataset.images import read_face, read_image
from dataset.left_out import Skipped
from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import MAX_PIXELS, decode_image, format_of, resize_face

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def face(make_face: Callable[[int, int], Pixels]) -> Image.Image:
    return Image.fromarray(make_face(0, 0))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_another_library(content: bytes) -> npt.NDArray[np.int64]:
    """By OpenCV what Pillow reads for us, the others by Pillow, and TIFF, as OpenCV turns none."""
    image = Image.open(io.BytesIO(content))
    if image.format in ("JPEG", "JPEG2000", "PNG", "TIFF"):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(np.int64)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    return pixels.astype(np.int64)


def difference(content: bytes) -> int:
    """The largest difference to another library's pixels, of 255."""
    ours, theirs = decode_image(content), by_another_library(content)
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    block = np.frombuffer(b"RIF" + content + b"\0", np.uint8)
    assert np.array_equal(decode_image(block[3:-1]), ours)  # as a part of a container
    return int(np.abs(ours - theirs).max())


@pytest.mark.parametrize(
    ("mode", "kind", "options", "bound"),
    [
        ("RGB", "PNG", {}, 0),
        ("RGB", "BMP", {}, 0),
        ("RGB", "TIFF", {}, 0),
        ("RGB", "PPM", {}, 0),
        ("RGB", "WEBP", {"lossless": True}, 0),
        ("RGB", "JPEG2000", {}, 0),
        # Two libraries' JPEG decoders may round differently; chroma is filtered differently too.
        ("RGB", "JPEG", {"quality": 90}, 4),
        ("RGB", "JPEG", {"quality": 90, "progressive": True}, 4),
        ("RGB", "JPEG", {"quality": 40, "subsampling": 0}, 4),
        ("RGB", "WEBP", {"quality": 90}, 4),
        ("L", "JPEG", {}, 4),
        ("CMYK", "JPEG", {"quality": 95}, 4),
        ("L", "PNG", {}, 0),
        ("L", "PPM", {}, 0),
        ("1", "PNG", {}, 0),
        ("P", "PNG", {}, 0),
        ("P", "GIF", {}, 0),
        ("L", "TIFF", {}, 0),
    ],
)
def test_every_kind_as_another_library_reads_it(
    face: Image.Image, mode: Any, kind: Any, options: Any, bound: Any
) -> None:
    assert difference(encode(face.convert(mode), kind, **options)) <= bound


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_transparent_images_too(
    face: Image.Image, orientation: Any
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = face.crop((0, 0, 80, 112))
    turned.putalpha(255)
    content = encode(turned, "PNG", exif=exif.tobytes())
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(decode_image(content), np.asarray(wanted))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(face: Image.Image, orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(face.crop((0, 0, 80, 112)), "JPEG", quality=95, exif=exif.tobytes())
    assert decode_image(content).shape[:2] == ((112, 80) if orientation < 5 else (80, 112))
    assert difference(content) <= 4


def test_sixteen_bits_become_eight(face: Image.Image) -> None:
    colours = np.asarray(face)
    wide = colours.astype(np.uint16) * 257  # 0..255 -> 0..65535
    for suffix in (".png", ".tiff", ".ppm"):
        content = cv2.imencode(suffix, wide[:, :, ::-1])[1].tobytes()
        assert np.array_equal(decode_image(content), colours)
        grey = cv2.imencode(suffix.replace("ppm", "pgm"), wide[:, :, 0])[1].tobytes()
        assert np.array_equal(decode_image(grey), np.repeat(colours[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "PNG LA", "PNG 16", "PNG P"])
def test_transparency_is_laid_over_black(face: Image.Image, kind: Any) -> None:
    alpha = np.zeros((112, 112), np.uint8)
    alpha[:, 40:80] = 128
    alpha[:, 80:] = 255
    base = face.convert("L").convert("RGB") if "LA" in kind else face
    image = base.copy()
    if kind == "PNG P":
        image = base.quantize(64)
        base = image.convert("RGB")
        content = encode(image, "PNG", transparency=bytes(64))  # every colour transparent
        assert not decode_image(content).any()
        content = encode(image, "PNG", transparency=bytes([255] * 64))
        assert np.array_equal(decode_image(content), np.asarray(base))
        return
    image.putalpha(Image.fromarray(alpha))
    if kind == "PNG 16":
        wide = np.asarray(image).astype(np.uint16)[:, :, [2, 1, 0, 3]] * 257
        content = cv2.imencode(".png", wide)[1].tobytes()
    else:
        image = image.convert("LA") if kind == "PNG LA" else image
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        content = encode(image, kind.split()[0], **options)
    pixels, colours = decode_image(content), np.asarray(base)
    assert not pixels[:, :40].any()
    assert np.array_equal(pixels[:, 80:], colours[:, 80:])
    half = np.round(colours[:, 40:80] * (128 / 255))
    assert np.abs(pixels[:, 40:80] - half).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_tall_images_with_transparency_are_whole(bits: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (600, 5, 4)).astype(np.uint8)
    stored = pixels if bits == 8 else pixels.astype(np.uint16) * 257
    content = cv2.imencode(".png", stored)[1].tobytes()
    wanted = np.round(pixels[:, :, 2::-1] * (pixels[:, :, 3:] / 255))
    assert np.abs(decode_image(content) - wanted).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 500), (20_000, 2), (3, 70_000), (5000, 4000)])
def test_any_shape_becomes_a_face(tmp_path: Path, size: Any) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.full((size[1], size[0], 3), (10, 20, 30), np.uint8))
    face = read_face(tmp_path / "x.png")
    assert face.shape == (112, 112, 3)
    assert face.dtype == np.uint8
    assert np.array_equal(np.unique(face.reshape(-1, 3), axis=0), [[30, 20, 10]])


def test_shrinking_does_not_alias_and_112_stays(make_face: Any) -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(resize_face(stripes).astype(int) - 100).max() <= 1
    face = make_face(0, 0)
    assert resize_face(face) is face
    enlarged = cv2.resize(face, (448, 448), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_face(np.asarray(enlarged, np.uint8)).astype(int) - face).mean() < 2


def bomb(side: int) -> bytes:
    """A one-bit PNG of side x side white pixels: a few hundred kB that unfold."""
    pack = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (side // 8)
    data = b"".join(pack.compress(row * 500) for _ in range(side // 500)) + pack.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_more_pixels_than_any_camera_has_are_refused() -> None:
    assert 8000**2 < MAX_PIXELS < 20_000**2
    assert decode_image(bomb(8000)).mean() == 255
    with pytest.raises(UnreadableImage, match=f"has more than {MAX_PIXELS} pixels"):
        decode_image(bomb(20_000))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_truncated_images_are_refused(make_face: Any, kind: Any, share: Any) -> None:
    content = encode(Image.fromarray(np.hstack([make_face(0, 0), make_face(0, 1)])), kind)
    size = int(len(content) * share) - 1
    for truncated in (content[:size], np.frombuffer(content, np.uint8)[:size]):
        with pytest.raises(UnreadableImage):
            decode_image(truncated)
    assert decode_image(content).shape == (112, 224, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"this is text, not an image\n" * 9, "is not an image that can be decoded"),
        (b"\0" * 1000, "is not an image that can be decoded"),
        (b"\x89PNG\r\n\x1a\n", "decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100, "decoded"),
        (b"\xff\xd8\xff", "decoded"),
        (b"RIFF\0\0\0\0WEBP", "decoded"),
        (b"RIFF\0\0\0\0WEBPVP8X", "decoded"),
        (b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\0\0\0\x10", "decoded"),
    ],
)
def test_what_is_no_image_is_refused_by_reason(tmp_path: Path, content: Any, reason: Any) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", ["AVIF", "GIF", "WEBP", "JPEG", "PPM"])
def test_a_file_is_the_same_image_however_it_is_named(
    tmp_path: Path, face: Image.Image, kind: Any
) -> None:
    suffix = {"JPEG": "jfif", "PPM": "pnm"}.get(kind, kind.lower())
    content = encode(face, kind)
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(content)
    (tmp_path / "bare").write_bytes(content)
    (tmp_path / "wrong.png").write_bytes(content)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/bare\n")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder / f"a.{suffix}", f"a.{suffix}")
    wanted = decode_image(content)
    names = ["faces", "faces/*", "bare", "wrong.png", "list.txt", "x.tar"]
    for name in names:
        (path,) = find_images([str(tmp_path / name)], Skipped())
        assert np.array_equal(read_image(path), wanted), name


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImage, match="Is a directory"):
        read_image(tmp_path)


def test_damaged_images_are_reported_by_us_alone(tmp_path: Path, face: Image.Image) -> None:
    for number, kind in enumerate(("JPEG", "TIFF", "JPEG2000", "BMP", "PNG", "GIF", "WEBP")):
        content = encode(face, kind)
        (tmp_path / f"{number}.jpg").write_bytes(content[: len(content) // 2])
    tiff = encode(face, "TIFF")  # Pillow warns of a tag that ends outside the file
    (tmp_path / "7.jpg").write_bytes(
        tiff.replace(b"\x11\x01\x04\0\x01\0", b"\x11\x01\x04\0\xff\xff")
    )
    code = (
        "import sys\nfrom dataset.images import read_image\n"
        "from sdd_fiqa.errors import UnreadableImage\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_image(path)\n"
        "    except UnreadableImage: print('refused')\n"
    )
    paths = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert (done.stdout.split(), done.stderr) == (["refused"] * 8, "")


def test_kinds_are_told_by_their_first_bytes(face: Image.Image) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "GIF"):
        assert format_of(encode(face, kind)[:64]), kind
    for text in (
        b"",
        b"BM",
        b"BMW/1.jpg\nBMW/2.jpg\n",
        b"P1/a.jpg\n",
        b"faces/1.jpg\n",
        b"\0" * 99,
    ):
        assert not format_of(text), text
