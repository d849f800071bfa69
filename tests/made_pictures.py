"""The bytes of pictures of every kind, those included that Pillow reads and does not write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from pillow_heif import register_heif_opener

register_heif_opener()
Rows = list[bytes]


def gradient(width: int = 48, height: int = 36) -> Image.Image:
    """A picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8))


def plain(red: int, green: int, blue: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (red, green, blue))


def grey(value: int) -> Image.Image:
    return plain(value, value, value)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", quality=95, **options)


def full(dtype: str, value: float) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: Rows, depth: int, colour: int, *chunks: bytes, width: int = 8, interlaced: bool = False) -> bytes:
    """A PNG from its packed rows, of any kind that Pillow does not write itself."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, interlaced)
    data = _adam7(rows, width) if interlaced else b"".join(b"\0" + row for row in rows)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _adam7(rows: Rows, width: int) -> bytes:
    """The seven passes of an interlaced 8-bit RGB picture."""
    pixels: npt.NDArray[np.uint8] = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), width, 3)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return b"".join(
        b"\0" + row.tobytes() for left, top, across, down in passes for row in pixels[top::down, left::across]
    )


def tiff(pixels: bytes, bits: tuple[int, ...], photometric: int, *extra: tuple[int, int]) -> bytes:
    """A little-endian TIFF of 8 x 8 pixels; ``extra`` are further tags with one short each."""
    tags = {256: (8,), 257: (8,), 258: bits, 259: (1,), 262: (photometric,), 273: (8,), 277: (len(bits),), 278: (8,)}
    tags |= {279: (len(pixels),)} | {tag: (value,) for tag, value in extra}
    entries, beyond = b"", b""
    start = 8 + len(pixels) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack("<I", start + len(beyond)), beyond + packed
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + beyond
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + ifd


def with_size(data: bytes, side: int) -> bytes:
    """A PNG whose header claims another size."""
    header = chunk(b"IHDR", struct.pack(">II", side, side) + data[24:29])
    return data[:8] + header + data[33:]


def gif_with_a_small_frame() -> bytes:
    """A GIF of 8 x 8 pixels whose one green frame fills the middle 4 x 4; nothing in it is transparent."""
    frame = Image.new("P", (4, 4), 0)
    frame.putpalette([0, 255, 0, 255, 0, 0])
    data = saved(frame, "GIF")
    after_descriptor = data.index(b",\0\0\0\0\4\0\4\0") + 9
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes([0, 255, 0, 255, 0, 0])
    return screen + b"," + struct.pack("<HHHH", 2, 2, 4, 4) + data[after_descriptor:]


def film() -> bytes:
    """How an MP4 begins."""
    return b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(500)


def orientation(number: int) -> bytes:
    """EXIF that says how the camera was held."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = number
    return exif.tobytes()
