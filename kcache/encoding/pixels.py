"""The pixels of any kind of picture as 8-bit RGB: deeper ones scaled, transparent ones on white."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

WHITES = {"I": (255, 65535), "F": (1, 255, 65535)}
"""What white may be in pictures of 32-bit integers and of floats, which do not say it themselves."""


class UnreadableImageError(Exception):
    """Why a picture cannot be decoded, in a few words."""


def to_rgb(image: Image.Image, alpha: str) -> Image.Image:
    """An RGB copy of a picture in any of Pillow's modes. ``alpha``: "white" or "drop" (see `images.ALPHA`).

    16-bit values keep their high byte, as Pillow itself has it for 16-bit colour. Of 32-bit integers and floats,
    white is the smallest of `WHITES` that no value exceeds; UnreadableImageError where there is none.
    """
    if image.mode in WHITES or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    return _on_white(image) if alpha == "white" and image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits as mode L, or LA where one of its values stands for transparency.

    Pillow's own ``convert`` clips at 255, which turns such a picture white.
    """
    values = np.asarray(image)
    # Pillow scales what a .pgm of more than 8 bits holds to 65,535, and hands it out as 32-bit integers.
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    grey = Image.fromarray(_scaled(values, 65535 if is_16_bit else _white(values, image.mode)))
    transparency = image.info.get("transparency")
    if isinstance(transparency, int):
        grey.putalpha(Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8)))
    return grey


def _white(values: npt.NDArray[Any], mode: str) -> int:
    low, high = float(values.min()), float(values.max())
    fitting = [white for white in WHITES[mode] if low >= 0 and high <= white]  # a NaN fits nowhere
    if not fitting:
        kind = "32-bit integers" if mode == "I" else "floats"
        whites = {"I": "255 or 65,535", "F": "1, 255 or 65,535"}[mode]
        raise UnreadableImageError(
            f"its pixels are {kind} from {low:,g} to {high:,g}, and only 0 to {whites} is read; scale them first"
        )
    return fitting[0]


def _scaled(values: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    """Values of 0 to ``white`` as 0 to 255."""
    if values.dtype.kind in "iu":
        return np.asarray(values >> (8 if white == 65535 else 0), np.uint8)
    return np.asarray(np.rint(values * np.float32(255 / white)), np.uint8)
