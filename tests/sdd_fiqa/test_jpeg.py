"""JPEGs that are damaged, and those that only look so."""

import io
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from sdd_fiqa.errors import UnreadableImage
from sdd_fiqa.images import decode_image
from sdd_fiqa.jpeg import read_header

Pixels = npt.NDArray[np.uint8]
END = b"\xff\xd9"


def encode(pixels: Pixels, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def picture(seed: int, side: int = 112) -> Pixels:
    """Smooth areas with detail, in colours as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.uniform(60, 190, (7, 7, 1)), (side, side))[:, :, None]
    tint = cv2.resize(rng.uniform(-20, 20, (5, 5, 3)), (side, side))
    return np.clip(coarse + tint + rng.normal(0, 6, (side, side, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["baseline", "progressive", "grey", "CMYK", "optimised"])
def jpeg(request: Any) -> bytes:
    modes = {"grey": "L", "CMYK": "CMYK"}
    options: dict[str, dict[str, Any]] = {
        "progressive": {"progressive": True},
        "optimised": {"optimize": True},
    }
    return encode(picture(1), modes.get(request.param, "RGB"), **options.get(request.param, {}))


def scan(content: bytes) -> tuple[int, int]:
    return read_header(content).scan, content.rindex(END)


def damages(content: bytes) -> dict[str, bytes]:
    start, end = scan(content)
    middle, rng = (start + end) // 2, np.random.default_rng(3)
    return {
        "zeros": content[:middle] + bytes(300) + content[middle + 300 :],
        "cut": content[:middle] + content[middle + 200 :],
        "zeros to the end": content[:middle] + bytes(len(content) - middle),
        "zeros to the end marker": content[:middle] + bytes(end - middle) + content[end:],
        "truncated": content[:middle],
        "truncated, with an end": content[:middle] + END,
        "noise": content[:middle] + rng.bytes(400).replace(b"\xff", b"") + content[middle + 400 :],
    }


def test_damage_is_refused_with_the_reason(jpeg: bytes, capfd: Any) -> None:
    for name, content in damages(jpeg).items():
        with pytest.raises(UnreadableImage, match=r"is damaged \(.+\)"):
            print(name, decode_image(content).mean())
    assert capfd.readouterr() == ("", "")  # nothing of libjpeg's own


def test_two_spliced_files_are_refused() -> None:
    first, second = encode(picture(1)), encode(picture(2, side=160))
    place = sum(scan(first)) // 2
    with pytest.raises(UnreadableImage, match="is damaged"):
        decode_image(first[:place] + second[place:])


def test_what_does_no_harm_is_no_damage(jpeg: bytes) -> None:
    wanted = decode_image(jpeg)
    _, end = scan(jpeg)
    _, _, second = read_header(jpeg).segments[0]
    harmless = {
        "more after the end": jpeg + b"more" * 99,
        "zeros after the end": jpeg + bytes(4096),
        "no end": jpeg[:end],
        "no end, padded": jpeg[:end] + bytes(4096),
        "zeros before the end": jpeg[:end] + bytes(64) + jpeg[end:],
        "filled before the end": jpeg[:end] + b"\xff" * 9 + jpeg[end:],
        "bytes between segments": jpeg[:second] + bytes(5) + jpeg[second:],
        "another picture after it": jpeg + jpeg,
    }
    for name, content in harmless.items():
        off = np.abs(decode_image(content).astype(int) - wanted).max()
        assert off <= (1 if "between" in name else 0), name  # CMYK: by Pillow then


def test_flat_pictures_hold_zeros_and_are_whole() -> None:
    for grey in (0, 128, 255):
        flat = np.full((400, 400, 3), grey, np.uint8)
        for option in ("quality", "optimize", "progressive"):
            options: dict[str, Any] = {option: True} if option != "quality" else {}
            assert np.abs(decode_image(encode(flat, **options)).astype(int) - grey).max() <= 1


def test_pure_colours_side_by_side_are_no_damage() -> None:
    rng = np.random.default_rng(0)
    for quality in (5, 10, 30, 60, 90, 100):
        for subsampling in (0, 1, 2):
            image = Image.new("RGB", (112, 112))
            draw = ImageDraw.Draw(image)
            for _ in range(30):
                left, top = rng.integers(0, 112, 2).tolist()
                width, height = rng.integers(8, 60, 2).tolist()
                colour = tuple((255 * rng.integers(0, 2, 3)).tolist())
                draw.rectangle([left, top, left + width, top + height], fill=colour)
            content = encode(np.asarray(image), quality=quality, subsampling=subsampling)
            decode_image(content)


def test_colours_that_no_picture_has_are_damage() -> None:
    """As after bytes that were cut out where the number of blocks stays right by chance."""
    luma = picture(1)[:, :, 0]
    luma = (luma.astype(int) * (luma.astype(int) > 110)).astype(np.uint8)  # dark areas
    colours = [luma, np.full_like(luma, 128), np.full_like(luma, 128)]
    impossible = [luma, np.full_like(luma, 128), np.full_like(luma, 190)]
    for planes, refused in ((colours, False), (impossible, True)):
        image = Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes])
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        if refused:
            with pytest.raises(UnreadableImage, match="colours that no picture has"):
                decode_image(file.getvalue())
        else:
            decode_image(file.getvalue())


def by_opencv(content: bytes) -> Pixels:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(pixels, np.uint8)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("side", [1, 7, 8, 15, 17, 112, 250])
def test_pixels_are_those_of_opencv(side: int, subsampling: str) -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}):
        content = encode(picture(4, side), subsampling=subsampling, **options)
        assert np.array_equal(decode_image(content), by_opencv(content))
    grey = encode(picture(4, side), "L")
    assert np.array_equal(decode_image(grey), by_opencv(grey))


def test_the_library_alone_writes_nothing_to_stderr() -> None:
    files = list(damages(encode(picture(1))).values())
    code = (
        "import sys\nfrom sdd_fiqa.images import decode_image\n"
        f"for content in {files!r}:\n"
        "    try: decode_image(content)\n"
        "    except ValueError: print('refused')\n"
    )
    done = subprocess.run([sys.executable], input=code, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["refused"] * len(files), "")
