"""Files that are damaged, or no pictures, and the reason that sets each aside; with the odd ones, a folder of all."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from folders import write, write_rows
from made_pictures import chunk, film, full, gradient, jpeg, saved, with_size
from odd_files import FORMATS, odd_files

UNKNOWN = "it is not a picture in a known format"
Files = Iterator[tuple[str, bytes, str]]


def bad_files() -> dict[str, tuple[bytes, str]]:
    """For each name the bytes, and a regular expression for the reason."""
    found = [*_cut(), *_damaged(), *_strangers(), *_headers(), *_without_white()]
    return {name: (data, reason) for name, data, reason in found}


def write_files(folder: Path) -> dict[str, str | None]:
    """Put the bad and the odd into a folder, each with a caption; for each name the reason, None for the odd."""
    bad, odd = bad_files(), odd_files()
    for name, data in [*((n, d) for n, (d, _) in bad.items()), *((n, file.data) for n, file in odd.items())]:
        write(folder / name, data)
    (folder / "folder.png").mkdir()
    reasons = {**dict.fromkeys(odd), **{n: reason for n, (_, reason) in bad.items()}}
    reasons["folder.png"] = "it is a folder, not a file"
    write_rows(folder, dict.fromkeys(reasons, "a caption"))
    return reasons


def damaged(name: str) -> str:
    """The reasons for a file of this format that is not whole."""
    return (
        r"image file is truncated( \(\d+ bytes not processed\))?"
        rf"|its ({name} )?data is cut or damaged \(.+\)|it begins as {name}, but is cut or damaged \(.+\)"
    )


def _cut() -> Files:
    for ending, (kind, name, options, _) in FORMATS.items():
        data = saved(gradient(), kind, **options)
        yield f"cut in its header.{ending}", data[:20], f"{damaged(name)}|{UNKNOWN}"
        yield f"cut in its middle.{ending}", data[: len(data) // 2], damaged(name)
    yield "without its end marker.jpg", jpeg(gradient())[:-2], damaged("JPEG")
    yield "progressive and cut.jpg", jpeg(gradient(), progressive=True)[:400], damaged("JPEG")


def _damaged() -> Files:
    data = saved(gradient(), "PNG")
    yield "zeroed middle.png", data[:80] + bytes(20) + data[100:], damaged("PNG")
    yield "flipped bit in the pixels.png", data[:80] + bytes([data[80] ^ 1]) + data[81:], damaged("PNG")
    text = data[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + data[33:]
    yield "wrong checksum of a text.png", text, r"it begins as PNG, .+ \(broken PNG file .+tEXt.+\)"
    data = saved(gradient(), "GIF")
    yield "zeroed middle.gif", data[:1200] + bytes(400) + data[1600:], damaged("GIF")
    data = saved(gradient(), "AVIF")
    yield "zeroed middle.avif", data[:150] + bytes(100) + data[250:], damaged("AVIF")


def _strangers() -> Files:
    failed = "its download or copy failed; fetch it again"
    page = rf"it is a web page \(HTML or XML\), not a picture: {failed}"
    drawing = "it is an SVG drawing, which has no pixels; render it to PNG first"
    yield "empty.png", b"", r"the file is empty \(0 bytes\)"
    yield "zeros.jpg", bytes(4096), f"it holds 4,096 zero bytes and nothing else: {failed}"
    yield "text.png", b"this is a text file", UNKNOWN
    yield "noise.jpg", np.random.default_rng(0).bytes(999), UNKNOWN
    yield "not found.jpg", b"\n<!DOCTYPE html>\n<html><title>404 Not Found</title></html>", page
    yield "forbidden.jpg", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', page
    yield "error.jpg", b'{"error": 403}', rf"it is text \(JSON\?\), not a picture: {failed}"
    yield "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', drawing
    yield "drawing with xml.png", b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg/>', drawing
    yield "drawing.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript drawing .+"
    yield "document.png", b"%PDF-1.7\n", "it is a PDF document; export its pictures first"
    yield "archive.png", b"PK\x03\x04" + bytes(40), "it is a ZIP archive; unpack it first"
    yield "archive.jpg", b"\x1f\x8b\x08" + bytes(40), "it is compressed with gzip; unpack it first"
    yield "film.jpg", film(), r"it is a video \(MP4 or QuickTime\), and only pictures are encoded"
    yield "film.png", b"\x1a\x45\xdf\xa3" + bytes(40), r"it is a video \(Matroska or WebM\), .+"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "pointer.png", pointer, "it is a Git LFS pointer, .+ run 'git lfs pull' in its folder"
    yield "beside.jpg", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "it is what macOS keeps beside .+"
    yield "newer.jpg", b"\xff\x0a\xfa\x7f", "it is JPEG XL, which is not supported; convert it to PNG"


def _headers() -> Files:
    """Headers that promise too much."""
    data, limit = saved(gradient(), "PNG"), "more than --max-pixels 268,435,456"
    yield "60,000 by 60,000.png", with_size(data, 60_000), rf"it has 3,600,000,000 pixels, {limit}"
    size = "20,000 x 20,000 = 400,000,000"
    yield "20,000 by 20,000.png", with_size(data, 20_000), f"it has {size} pixels, {limit}"
    yield "2,000 by 2,000.png", with_size(data, 2_000), damaged("PNG")
    data = jpeg(gradient())
    start = data.index(b"\xff\xc0") + 5
    data = data[:start] + struct.pack(">HH", 65_000, 65_000) + data[start + 4 :]
    yield "65,000 by 65,000.jpg", data, f"it has 4,225,000,000 pixels, {limit}"
    yield "no pixels.ppm", b"P6 0 0 255\n", UNKNOWN
    data, bomb = saved(gradient(), "PNG"), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))
    yield "text bomb.png", data[:33] + bomb + data[33:], "its metadata unpacks to more than the 1 MiB .+"


def _without_white() -> Files:
    """Numbers of which none can be white."""
    for value in (-5, 100_000):
        reason = f"its pixels are 32-bit integers from {value:,} to {value:,}, .+; scale them first"
        yield f"32-bit {value}.tiff", saved(full("i4", value), "TIFF"), reason
    for number in (np.nan, np.inf, -0.5):
        yield f"float {number}.tiff", saved(full("f4", number), "TIFF"), "its pixels are floats from .+"
