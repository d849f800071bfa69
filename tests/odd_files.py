"""Picture files that are odd and yet right, and what a person would see in each."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from made_pictures import (
    chunk,
    film,
    full,
    gif_with_a_small_frame,
    gradient,
    grey,
    jpeg,
    orientation,
    plain,
    png,
    saved,
    tiff,
)
from PIL import Image


@dataclass(frozen=True)
class OddFile:
    """A file that is encoded as ``picture``, from which its pixels differ by ``tolerance`` on average (of 255)."""

    data: bytes
    picture: Image.Image
    tolerance: float = 0.0
    frames: int = 1


Files = Iterator[tuple[str, OddFile]]

FORMATS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "png": ("PNG", "PNG", {}, 0),
    "jpg": ("JPEG", "JPEG", {"quality": 95}, 3),
    "webp": ("WEBP", "WebP", {"quality": 95}, 5),
    "gif": ("GIF", "GIF", {}, 12),
    "bmp": ("BMP", "BMP", {}, 0),
    "tiff": ("TIFF", "TIFF", {}, 0),
    "avif": ("AVIF", "AVIF", {"quality": 95}, 5),
    "jp2": ("JPEG2000", "JPEG 2000", {}, 0),
    "ppm": ("PPM", "PPM", {}, 0),
    "tga": ("TGA", "TGA", {}, 0),
    "ico": ("ICO", "ICO", {"sizes": [(48, 36)]}, 0),
    "heic": ("HEIF", "HEIC", {"quality": 95}, 5),
}
"""By the ending: Pillow's name, people's name, the options to save with, and what is lost by it."""


def odd_files() -> dict[str, OddFile]:
    """All of them by name."""
    found = [*_whole(), *_named(), *_deep(), *_coloured(), *_transparent(), *_animated(), *_turned()]
    assert len(dict(found)) == len(found), "two files have the same name"
    return dict(found)


def _whole() -> Files:
    for ending, (kind, _, options, tolerance) in FORMATS.items():
        yield f"whole.{ending}", OddFile(saved(gradient(), kind, **options), gradient(), tolerance)
    yield "progressive.jpg", OddFile(jpeg(gradient(), progressive=True), gradient(), 3)
    yield "garbage after its end.jpg", OddFile(jpeg(gradient()) + b"garbage" * 99, gradient(), 3)
    yield "film after its end.jpg", OddFile(jpeg(gradient()) + film(), gradient(), 3)
    yield "without its last chunk.png", OddFile(saved(gradient(), "PNG")[:-12], gradient())
    rows = [row.tobytes() for row in np.asarray(gradient(8, 8))]
    yield "interlaced.png", OddFile(png(rows, 8, 2, interlaced=True), gradient(8, 8))
    for width, height in ((1, 1), (1, 5000), (5000, 1), (3, 3), (2, 700)):
        yield f"{width} by {height}.png", OddFile(saved(gradient(width, height), "PNG"), gradient(width, height))


def _named() -> Files:
    data = OddFile(saved(gradient(), "PNG"), gradient())
    names = (
        "a png called.jpg",
        "-dash.png",
        "日本語 ärger 🦊.png",
        "two\nlines.png",
        'it\'s a "quote".png',
        "no ending",
    )
    yield from ((name, data) for name in (*names, "per%20cent #1?.png", "n" * 200 + ".png"))
    yield "a jpeg called.png", OddFile(jpeg(gradient()), gradient(), 3)


def _deep() -> Files:
    """More than 8 bits: scaled, where Pillow's own conversion would clip them to white."""
    yield "16-bit grey.png", OddFile(saved(full("u2", 32768), "PNG"), grey(128))
    yield "16-bit black.png", OddFile(saved(full("u2", 255), "PNG"), grey(0))
    yield "16-bit white.png", OddFile(saved(full("u2", 65535), "PNG"), grey(255))
    yield "16-bit grey.tiff", OddFile(saved(full("u2", 32768), "TIFF"), grey(128))
    yield "16-bit grey big-endian.tiff", OddFile(saved(full(">u2", 32768), "TIFF"), grey(128))
    half, white, black = b"\x80\0", b"\xff\xff", b"\0\0"
    yield "16-bit colour.png", OddFile(png([(half + white + black) * 8] * 8, 16, 2), plain(128, 255, 0))
    yield "16-bit grey with alpha.png", OddFile(png([(half + white) * 8] * 8, 16, 4), grey(128))
    pixels = struct.pack("<3H", 32768, 65535, 0) * 64
    yield "16-bit colour.tiff", OddFile(tiff(pixels, (16, 16, 16), 2), plain(128, 255, 0))
    yield "16-bit.pgm", OddFile(b"P5 8 8 65535\n" + half * 64, grey(128))
    yield "16-bit and dark.pgm", OddFile(b"P5 8 8 65535\n" + b"\0\xc8" * 64, grey(0))
    yield "10-bit.pgm", OddFile(b"P5 8 8 1023\n" + b"\2\0" * 64, grey(128))
    yield "32-bit to 65535.tiff", OddFile(saved(full("i4", 32768), "TIFF"), grey(128))
    yield "32-bit to 255.tiff", OddFile(saved(full("i4", 200), "TIFF"), grey(200))
    for value in (0.5, 127.6, 32768.0):
        yield f"float {value}.tiff", OddFile(saved(full("f4", value), "TIFF"), grey(128))


def _coloured() -> Files:
    modes = {"CMYK": ("JPEG", "TIFF"), "LAB": ("TIFF",), "YCbCr": ("TIFF",), "1": ("PNG",), "L": ("PNG", "JPEG")}
    for mode, kinds in modes.items():
        for kind in kinds:
            yield f"white in {mode}.{kind.lower()}", OddFile(saved(grey(255).convert(mode), kind), grey(255), 1)
    red, blue = plain(255, 0, 0), plain(9, 99, 199)
    yield "red in CMYK.jpg", OddFile(jpeg(red.convert("CMYK")), red, 3)
    yield "palette.png", OddFile(saved(blue.quantize(4), "PNG"), blue)
    for ending, kind in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):
        data = saved(gradient(), kind, icc_profile=b"no profile" * 20)
        yield f"profile that is garbage.{ending}", OddFile(data, gradient(), 6)


def _transparent() -> Files:
    """What is transparent is white."""
    white, half = grey(255), plain(255, 127, 127)
    for mode, colour, kind in (("RGBA", (9, 9, 9, 0), "PNG"), ("LA", (9, 0), "PNG"), ("PA", (0, 0), "TIFF")):
        data = saved(Image.new(mode, (8, 8), colour), kind)
        yield f"transparent {mode}.{kind.lower()}", OddFile(data, white)
    yield "half of RGBA.png", OddFile(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG"), half)
    premultiplied = bytes([128, 0, 0, 128]) * 64
    yield "half premultiplied.tiff", OddFile(tiff(premultiplied, (8, 8, 8, 8), 2, (338, 1)), half)
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    yield "palette with one colour.png", OddFile(saved(indexed, "PNG", transparency=0), white)
    yield "palette with alphas.png", OddFile(saved(indexed, "PNG", transparency=b"\x00\xff"), white)
    yield "palette.gif", OddFile(saved(indexed, "GIF", transparency=0), white)
    for name, depth, colour, row, value in (
        ("1-bit", 1, 0, b"\xff", b"\0\1"),
        ("2-bit", 2, 0, b"\x55" * 2, b"\0\1"),
        ("4-bit", 4, 0, b"\x55" * 4, b"\0\5"),
        ("8-bit", 8, 0, b"\x55" * 8, b"\0\x55"),
        ("16-bit", 16, 0, b"\x12\x34" * 8, b"\x12\x34"),
        ("colour", 8, 2, b"\1\2\3" * 8, b"\0\1\0\2\0\3"),
        ("16-bit colour", 16, 2, b"\x12\x34\x56\x78\x9a\xbc" * 8, b"\x12\x34\x56\x78\x9a\xbc"),
    ):
        data = png([row] * 8, depth, colour, chunk(b"tRNS", value))
        yield f"{name} of one transparent value.png", OddFile(data, white)
    opaque = png([b"\x12\x34" * 8] * 8, 16, 0, chunk(b"tRNS", b"\x12\x35"))
    yield "16-bit beside the transparent value.png", OddFile(opaque, grey(0x12))


def _animated() -> Files:
    """Of several frames or pages the first."""
    first, then = gradient(), gradient().transpose(Image.Transpose.ROTATE_180)
    kinds = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "tiff": "TIFF", "avif": "AVIF", "heic": "HEIF", "jpg": "MPO"}
    for ending, kind in kinds.items():
        data = saved(first, kind, save_all=True, append_images=[then])
        yield f"two frames.{ending}", OddFile(data, first, 12 if kind == "GIF" else 6, frames=2)
    data = saved(first, "PNG", save_all=True, append_images=[then], default_image=True)
    yield "default image and a frame.png", OddFile(data, first, frames=2)
    data = saved(first, "GIF", save_all=True, append_images=[then])
    yield "cut in its second frame.gif", OddFile(data[: len(data) * 3 // 4], first, 12, frames=2)
    framed = grey(255)
    framed.paste((0, 255, 0), (2, 2, 6, 6))
    yield "frame smaller than the gif.gif", OddFile(gif_with_a_small_frame(), framed)


STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that says this orientation has stored an upright picture."""


def _turned() -> Files:
    upright = gradient()
    for number in range(1, 9):
        stored = upright.transpose(STORED[number]) if number in STORED else upright
        yield f"orientation {number}.png", OddFile(saved(stored, "PNG", exif=orientation(number)), upright)
    for ending, kind in (("jpg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF"), ("heic", "HEIF"), ("tiff", "TIFF")):
        data = saved(upright.transpose(STORED[6]), kind, exif=orientation(6))
        yield f"orientation 6.{ending}", OddFile(data, upright, 6)
    broken = {"garbage": b"Exif\0\0garbage, not TIFF", "cut": b"Exif\0\0II*\0\xff\xff\xff\x7f", "99": orientation(99)}
    for name, exif in broken.items():
        yield f"exif that is {name}.jpg", OddFile(jpeg(upright, exif=exif), upright, 3)
    yield "exif that is cut.png", OddFile(saved(upright, "PNG", exif=broken["cut"]), upright)
