"""One picture from bytes to the arrays that the frozen encoders take."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

ALPHA = ("white", "drop")
"""Transparent pixels: composited on white, or dropped as the reference's ``convert("RGB")`` does."""


class UnreadableImageError(Exception):
    """Why a picture cannot be decoded, in a few words."""


def decode(data: bytes, alpha: str) -> Image.Image:
    """The RGB picture in ``data``, upright by its EXIF orientation. UnreadableImageError says what is wrong with it."""
    if not data:
        raise UnreadableImageError("the file is empty (0 bytes)")
    try:
        opened = Image.open(io.BytesIO(data))
        opened.load()
        image = ImageOps.exif_transpose(opened)
        return _on_white(image) if alpha == "white" and _is_transparent(image) else image.convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableImageError("it is not a picture in a known format") from None
    except Exception as error:  # Pillow's decoders raise many classes for damaged files.
        raise UnreadableImageError(str(error) or type(error).__name__) from None


@contextmanager
def hushed_pillow() -> Iterator[None]:
    """Within it Pillow's warnings about odd pictures are not shown. Not for the threads that decode.

    The filters belong to the whole process: each thread putting back what it found, the last would put back another's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        yield


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def clip_pixels(processor: Any) -> Callable[[Image.Image], npt.NDArray[np.float32]]:
    """A function from a picture to the ``(3, H, W)`` array that `processor` (a CLIP image processor) makes of it."""

    def pixels(image: Image.Image) -> npt.NDArray[np.float32]:
        # The format is said because it is guessed otherwise, wrongly for a picture that is one or three pixels high.
        values = processor(images=[image], input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return np.asarray(values[0], np.float32)

    return pixels
