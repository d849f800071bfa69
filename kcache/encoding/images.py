"""One picture from bytes to the arrays that the frozen encoders take."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from kcache import __version__
from kcache.picture_formats import NAMES, readable, versions

from .pixels import UnreadableImageError, to_rgb
from .strangers import format_of, what_it_is

ALPHA = ("white", "drop")
"""Transparent pixels: composited on white, or dropped as the reference's ``convert("RGB")`` does."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


@dataclass(frozen=True)
class Decoding:
    """How pictures are decoded. ``max_pixels``: width times height of the largest that is not set aside."""

    alpha: str
    max_pixels: int

    @property
    def signature(self) -> dict[str, object]:
        """All that decides whether a picture can be decoded at all, as JSON: where it changed, another try may do."""
        formats = sorted(readable())
        return {"kcache": __version__, "packages": versions(), "formats": formats, "max_pixels": self.max_pixels}


@dataclass(frozen=True)
class Decoded:
    """An upright RGB picture, and the number of frames or pages in its file, of which ``image`` is the first."""

    image: Image.Image
    frames: int


def decode(data: bytes, decoding: Decoding) -> Decoded:
    """The picture in ``data``: 8-bit RGB, upright by its EXIF orientation, the first frame of several.

    UnreadableImageError says in one line what is wrong with it, the same in every run. MemoryError is let through: it
    speaks of the machine, not of the picture. For pictures larger than Pillow's own limit call it in `hushed_pillow`.
    """
    if not data:
        raise UnreadableImageError("the file is empty (0 bytes)")
    try:
        return _decode(data, decoding)
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(what_it_is(data)) from None
    except Exception as error:  # Pillow's decoders raise many classes for damaged files.
        raise UnreadableImageError(_reason(error, data, decoding.max_pixels)) from None


@contextmanager
def hushed_pillow(max_pixels: int) -> Iterator[None]:
    """Within it Pillow warns of nothing, and takes ``max_pixels`` for its limit. Not for the threads that decode.

    The filters and the limit belong to the whole process: each thread putting back what it found, the last would put
    back another's. Pillow raises at twice its limit, and looks where `decode` cannot: at tiles, and at frames that are
    larger than their file's header says.
    """
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decode(data: bytes, decoding: Decoding) -> Decoded:
    opened = Image.open(io.BytesIO(data), formats=readable())
    width, height = opened.size
    if width * height > decoding.max_pixels:
        raise UnreadableImageError(_too_large(f"{width:,} x {height:,} = {width * height:,}", decoding.max_pixels))
    _scale_transparency(opened)
    opened.load()
    image = to_rgb(opened, decoding.alpha)
    if opened.format == "GIF" and decoding.alpha == "white":
        image = _first_frame_on_white(image, getattr(opened, "dispose_extent", None))
    turn = _UPRIGHT.get(_orientation(opened))
    return Decoded(image if turn is None else image.transpose(turn), _frames(opened))


def _scale_transparency(opened: ImageFile.ImageFile) -> None:
    """Bring the transparent colour of a PNG to the depth that its pixels will have: Pillow leaves it in the file's.

    Of 16-bit colour only the high byte is there to be compared.
    """
    mode = opened.tile[0].args if opened.format == "PNG" and opened.tile else None
    value = opened.info.get("transparency")
    if isinstance(value, int) and mode in ("L;2", "L;4"):
        opened.info["transparency"] = value * {"L;2": 85, "L;4": 17}[mode]
    elif isinstance(value, tuple) and mode == "RGB;16B":
        opened.info["transparency"] = tuple(channel >> 8 for channel in value)


def _first_frame_on_white(image: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """A GIF whose first frame does not fill it: what lies around it is transparent to browsers, colour 0 to Pillow."""
    if frame is None or frame == (0, 0, *image.size):
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image.crop(frame), frame)
    return white


def _orientation(opened: Image.Image) -> int:
    try:
        return int(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF raises many classes, and says nothing of the pixels.
        return 1


def _frames(opened: Image.Image) -> int:
    try:
        return int(getattr(opened, "n_frames", 1))
    except Exception:  # A later frame is damaged, and to count it Pillow reads it; the first one was whole.
        return 1


def _reason(error: Exception, data: bytes, max_pixels: int) -> str:
    """One line, the same in every run, for what Pillow raised."""
    text = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(error)).split())[:200].rstrip(".")
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        pixels = re.search(r"\((\d+) pixels\)", text)
        if pixels and int(pixels[1]) > max_pixels:
            return _too_large(f"{int(pixels[1]):,}", max_pixels)
    if "truncated" in text:
        return text
    if "Decompressed data too large" in text:
        return "its metadata unpacks to more than the 1 MiB that Pillow accepts; strip the metadata"
    name = format_of(data)
    return f"its {NAMES.get(name, name) + ' ' if name else ''}data is cut or damaged ({text or type(error).__name__})"


def _too_large(pixels: str, max_pixels: int) -> str:
    return f"it has {pixels} pixels, more than --max-pixels {max_pixels:,}"


LONGEST = 32
"""How many times its shorter side a panorama's longer one may have: beyond that, CLIP gets only the middle."""


def without_ends(image: Image.Image) -> Image.Image:
    """The middle of a very long picture, itself for any other.

    CLIP's processor resizes the whole and then keeps the centre square: of 1 x 5,000 pixels it would make 750 MB first.
    The middle gives the same square, but for the rounding of the resized length.
    """
    short, long = sorted(image.size)
    kept = LONGEST * short + (long - LONGEST * short) % 2  # of the same parity, so that the centre stays where it is
    start = (long - kept) // 2
    if start <= 0:
        return image
    width, height = image.size
    return image.crop((start, 0, start + kept, height) if width > height else (0, start, width, start + kept))


def clip_pixels(processor: Any) -> Callable[[Image.Image], npt.NDArray[np.float32]]:
    """A function from a picture to the ``(3, H, W)`` array that `processor` (a CLIP image processor) makes of it."""

    crops = bool(processor.do_resize and processor.size.shortest_edge and processor.do_center_crop)

    def pixels(image: Image.Image) -> npt.NDArray[np.float32]:
        if crops:
            image = without_ends(image)
        # The format is said because it is guessed otherwise, wrongly for a picture that is one or three pixels high.
        values = processor(images=[image], input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return np.asarray(values[0], np.float32)

    return pixels
