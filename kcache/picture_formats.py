"""The formats of pictures that this installation reads, and how to get the optional ones."""

from functools import cache

FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "AVIF", "HEIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM"),
    *("ICO", "ICNS", "PCX", "PSD", "QOI", "SGI", "DDS", "TGA"),
)
"""What kcache reads, by Pillow's names. Of what else Pillow knows, EPS starts Ghostscript, some formats take any file
for theirs, and the rest are no pictures."""

OPTIONAL = {"AVIF": "pip install 'pillow>=11.3'", "HEIF": "pip install pillow-heif"}
"""The formats that may be missing, with the command that brings them."""

NAMES = {"HEIF": "HEIC", "JPEG2000": "JPEG 2000", "WEBP": "WebP"}
"""What people call a format, where it is not what Pillow calls it."""


@cache
def readable() -> tuple[str, ...]:
    """Those of `FORMATS` that can be read here; the first call loads Pillow's plugins. Any thread may call it."""
    from PIL import Image, features

    Image.init()
    absent = {"HEIF"} if not _register_heif() else set()
    absent |= {"AVIF"} if not features.check("avif") else set()
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in absent)


def versions() -> dict[str, str | None]:
    """The versions of the packages that decode pictures; None for one that is not installed."""
    import PIL

    return {"pillow": PIL.__version__, "pillow-heif": _heif_version() if "HEIF" in readable() else None}


def _register_heif() -> bool:
    """Teach Pillow HEIC, where pillow-heif is installed and its library loads."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        return False
    return True


def _heif_version() -> str:
    import pillow_heif

    return str(pillow_heif.__version__)
