"""What a file is that no picture format accepts, told from its first bytes."""

import io
import struct

from PIL import Image

from kcache.picture_formats import NAMES, OPTIONAL, readable

UNKNOWN = "it is not a picture in a known format"

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG2000"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"BM", "BMP"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"), "HEIF"),
}
"""The brand of an ISO media file, which tells pictures from films."""

_BROKEN_OFF = "its download or copy failed; fetch it again"
_PACKED = "unpack it first"
_OTHERS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the picture itself; run 'git lfs pull' in its folder"),
    (b"{", f"it is text (JSON?), not a picture: {_BROKEN_OFF}"),
    (b"%PDF-", "it is a PDF document; export its pictures first"),
    (b"%!PS", "it is a PostScript drawing (EPS), which has no pixels; render it to PNG first"),
    (b"PK\x03\x04", f"it is a ZIP archive; {_PACKED}"),
    (b"\x1f\x8b", f"it is compressed with gzip; {_PACKED}"),
    (b"Rar!", f"it is a RAR archive; {_PACKED}"),
    (b"7z\xbc\xaf", f"it is a 7z archive; {_PACKED}"),
    (b"\x1a\x45\xdf\xa3", "it is a video (Matroska or WebM), and only pictures are encoded"),
    (b"\x00\x05\x16\x07", "it is what macOS keeps beside a picture (AppleDouble), not the picture; remove it"),
    (b"\xff\x0a", "it is JPEG XL, which is not supported; convert it to PNG"),
    (b"\x00\x00\x00\x0cJXL ", "it is JPEG XL, which is not supported; convert it to PNG"),
)
"""The first bytes of what is found in place of pictures."""


def what_it_is(data: bytes) -> str:
    """Why no reader accepts ``data``: a sentence on what it is, as far as its first bytes tell."""
    name = format_of(data)
    if name in OPTIONAL and name not in readable():
        return f"it is {NAMES.get(name, name)}, which needs: {OPTIONAL[name]}"
    if name:
        return f"it begins as {NAMES.get(name, name)}, but is cut or damaged ({_complaint(name, data)})"
    if not data.strip(b"\x00"):
        return f"it holds {len(data):,} zero bytes and nothing else: {_BROKEN_OFF}"
    if data[4:8] == b"ftyp":
        return "it is a video (MP4 or QuickTime), and only pictures are encoded"
    start = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"<"):
        return _markup(start)
    return next((sentence for first, sentence in _OTHERS if data.startswith(first)), UNKNOWN)


def format_of(data: bytes) -> str | None:
    """The format, by Pillow's name, that the first bytes of ``data`` announce; None where they announce none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12])
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def _markup(start: bytes) -> str:
    if b"<svg" in start and b"<html" not in start:
        return "it is an SVG drawing, which has no pixels; render it to PNG first"
    return f"it is a web page (HTML or XML), not a picture: {_BROKEN_OFF}"


def _complaint(name: str, data: bytes) -> str:
    """What the reader of one format says of ``data``: ``Image.open`` keeps it to itself."""
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")
    except (struct.error, IndexError):
        return "its header is not whole"
    except Exception as error:  # Pillow's readers raise many classes for damaged files.
        said = " ".join(str(error).split()).rstrip(".")
        return "its header is not whole" if said in ("", "not identified by this driver") else said
    return "its header is not whole"
