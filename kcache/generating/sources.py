"""The pictures that generation begins from: read, checked against each other, and brought to the size that is made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError, UsageError

from .config import STRENGTH, GenerateConfig

MAX_PIXELS = 178_956_970
"""Of the largest picture that is read: where Pillow itself begins to warn."""

THRESHOLD = 128
"""The grey from which a mask counts as white: there it is painted anew."""


@dataclass(frozen=True)
class Source:
    """An RGB picture that is painted over, and the mask whose white (255, else 0) is painted anew; None: all is."""

    picture: Any
    mask: Any | None


def read_source(config: GenerateConfig) -> Source | None:
    """The init image and its mask at their own size, None without one.

    UsageError for options that need an init image; KcacheError where one of the two cannot be read or used.
    """
    if config.init_image is None:
        given = {"--mask-image": config.mask_image, "--strength": config.strength}
        if needless := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{needless[0]} is for a picture that is painted over; name it with --init-image")
        return None
    strength_of(config)
    picture = read_picture(config.init_image)
    if config.mask_image is None:
        return Source(picture, None)
    mask = read_picture(config.mask_image).convert("L").point(lambda grey: 255 * (grey >= THRESHOLD))
    if mask.size != picture.size:
        raise KcacheError(
            f"the mask {config.mask_image} has {_size(mask)} pixels and {config.init_image} has {_size(picture)};"
            " make a mask of the picture's size"
        )
    if mask.getbbox() is None:
        raise KcacheError(f"the mask {config.mask_image} has no white in it; paint white what is to be painted anew")
    return Source(picture, mask)


def fitted(source: Source, side: int, multiple: int) -> Source:
    """The source with its shorter side about ``side`` pixels long, both sides a multiple of ``multiple``.

    Its middle is kept where the shape has to change for that. A mask stays 0 and 255.
    """
    from PIL import Image, ImageOps

    scale = side / min(source.picture.size)
    width, height = (max(1, round(one * scale / multiple)) * multiple for one in source.picture.size)
    picture = ImageOps.fit(source.picture, (width, height), Image.Resampling.BICUBIC)
    if source.mask is None:
        return Source(picture, None)
    mask = ImageOps.fit(source.mask, (width, height), Image.Resampling.BOX)
    return Source(picture, mask.point(lambda grey: 255 * (grey >= THRESHOLD)))


def strength_of(config: GenerateConfig) -> float:
    """How much is painted anew. UsageError where that is no number above 0 and up to 1, or no step at all."""
    strength = config.strength if config.strength is not None else STRENGTH if config.mask_image is None else 1.0
    if not 0 < strength <= 1:
        raise UsageError(f"--strength {strength:g} is not above 0 and up to 1; 1 paints all of the picture anew")
    if int(config.num_inference_steps * strength) < 1:
        raise UsageError(
            f"--strength {strength:g} of {config.num_inference_steps} steps is not one step; raise it, or"
            " --num-inference-steps"
        )
    return strength


def read_picture(path: str) -> Any:
    """A picture as ``kcache encode`` reads it: RGB, upright, transparency on white. KcacheError where it cannot be."""
    from kcache.encoding.images import Decoding, decode, hushed_pillow
    from kcache.encoding.pixels import UnreadableImageError

    try:
        with hushed_pillow(MAX_PIXELS):
            return decode(Path(path).read_bytes(), Decoding("white", MAX_PIXELS)).image
    except OSError as error:
        raise KcacheError(f"the picture {path} cannot be read ({error.strerror}); name one that exists") from None
    except UnreadableImageError as error:
        raise KcacheError(f"the picture {path} cannot be read: {error}; name another") from None


def looks_like_picture(name: str) -> bool:
    """Whether a name ends as that of a picture does."""
    from PIL import Image

    return Path(name).suffix.lower() in Image.registered_extensions()


def _size(picture: Any) -> str:
    return f"{picture.width} x {picture.height}"
