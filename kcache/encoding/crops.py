"""Where a picture is cut: the centre square, fixed random squares, and the nearest of some shapes of equal area.

A box is ``(left, top, width, height)`` in pixels of the upright picture, a size is ``(width, height)``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from kcache.shards.errors import UsageError
from kcache.shards.records import Record

Size = tuple[int, int]
Box = tuple[float, float, float, float]
Pixels = npt.NDArray[np.float32]

BUCKET_STEP = 64
"""Sides of buckets are multiples of this many pixels: MoVQ shrinks by 8, the UNet halves what is left three times."""

CROP_SCALE = 0.8
"""The side of the smallest random crop, as a part of the picture's shorter side."""

CROP_SEED = 0


class Cut(Protocol):
    """One way to cut pictures, the same for CLIP and for MoVQ."""

    @property
    def record(self) -> str | Record:
        """All that decides where a picture is cut, as the records of columns say it."""

    def box(self, size: Size, sha256: str) -> Box:
        """Where a picture of this size and sha256 is cut."""

    def target(self, size: Size, resolution: int) -> Size:
        """The size that the cut of a picture of ``size`` is given to MoVQ in."""


@dataclass(frozen=True)
class CentreSquare:
    """The largest square about the centre, as in the reference."""

    record = "centre square"

    def box(self, size: Size, sha256: str) -> Box:
        """Edges may lie on half pixels."""
        return centre_square(size)

    def target(self, size: Size, resolution: int) -> Size:
        """A square of the column's resolution."""
        return (resolution, resolution)


@dataclass(frozen=True)
class RandomSquare:
    """Fixed random crop ``number``, from 1: the same square for a picture wherever and whenever it is encoded."""

    number: int
    scale: float
    seed: int

    @property
    def record(self) -> Record:
        """The numbers that `random_square` takes."""
        return {"kind": "random square", "number": self.number, "scale": self.scale, "seed": self.seed}

    def box(self, size: Size, sha256: str) -> Box:
        """A square of whole pixels."""
        return random_square(size, sha256, self.number, self.scale, self.seed)

    def target(self, size: Size, resolution: int) -> Size:
        """A square of the column's resolution."""
        return (resolution, resolution)


@dataclass(frozen=True)
class NearestBucket:
    """The largest centred box of the bucket whose aspect is nearest to the picture's."""

    step: int
    buckets: tuple[Size, ...]

    @property
    def record(self) -> Record:
        """The list of buckets, which decides, and the step that it was made with."""
        return {"kind": "nearest bucket", "step": self.step, "buckets": [list(bucket) for bucket in self.buckets]}

    def box(self, size: Size, sha256: str) -> Box:
        """A box of whole pixels."""
        return bucket_box(size, nearest_bucket(size, self.buckets))

    def target(self, size: Size, resolution: int) -> Size:
        """The bucket itself."""
        return nearest_bucket(size, self.buckets)


def centre_square(size: Size) -> Box:
    """The largest square about the centre (``center_crop`` of diffusers' train_text_to_image_decoder.py)."""
    width, height = size
    side = min(width, height)
    # Half pixels go to Pillow as they are: it rounds all four edges, each on its own, as in the reference.
    return ((width - side) / 2, (height - side) / 2, side, side)


def random_square(size: Size, sha256: str, number: int, scale: float, seed: int) -> Box:
    """A square with a side uniform in [scale, 1] of the shorter side, at a uniform place, all in whole pixels.

    Its randomness is a hash of the picture's sha256 (hex), ``number`` and ``seed``, so it depends on nothing else: not
    on the picture's place in the dataset, the other columns, the machine, or numpy's version.
    """
    width, height = size
    shorter = min(width, height)
    smallest = max(1, round(scale * shorter))
    digest = hashlib.sha256(f"kcache crop {number} of {sha256}, seed {seed}".encode()).digest()
    for_side, for_left, for_top = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16))
    side = smallest + _below(shorter - smallest + 1, for_side)
    return (_below(width - side + 1, for_left), _below(height - side + 1, for_top), side, side)


def _below(n: int, bits: int) -> int:
    """64 random bits as a uniform integer in [0, n): Lemire 2019 without the rejection, whose bias is n / 2^64."""
    return (n * bits) >> 64


def bucket_sizes(resolution: int, step: int) -> tuple[Size, ...]:
    """The buckets of a resolution, from the tallest to the widest: sides in multiples of ``step``, aspect 1:2 to 2:1.

    As NovelAI made them (novelai.net, "Improvements on Stable Diffusion", 2022) and SDXL after it (Podell et al. 2023,
    section 2.3): for each width the largest height that keeps the area at or below ``resolution**2``, and the same
    with width and height exchanged. UsageError for a resolution that is no multiple of ``step``.
    """
    if step < 1 or resolution % step:
        raise UsageError(
            f"resolution {resolution} is not a multiple of --bucket-step {step}, so no bucket of it is square;"
            f" choose a step that divides {resolution}"
        )
    area = (resolution // step) ** 2
    longest = {side: area // side for side in range(1, area + 1)}
    shapes = {shape for a, b in longest.items() if b <= 2 * a <= 4 * b for shape in ((a, b), (b, a))}
    return tuple(sorted((width * step, height * step) for width, height in shapes))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose log aspect is nearest to the picture's; of two the larger one, and of equal ones the wider."""
    width, height = size

    def rank(bucket: Size) -> tuple[Fraction, int, int]:
        # exp(|log a - log b|) as a fraction: exact, so that every machine breaks a tie in the same way.
        ratio = Fraction(width * bucket[1], height * bucket[0])
        return (max(ratio, 1 / ratio), -bucket[0] * bucket[1], -bucket[0])

    return min(buckets, key=rank)


def bucket_box(size: Size, bucket: Size) -> Box:
    """The largest centred box of a bucket's aspect in a picture, in whole pixels."""
    (width, height), (across, down) = size, bucket
    if width * down > height * across:
        cut_width, cut_height = max(1, round(Fraction(height * across, down))), height
    else:
        cut_width, cut_height = width, max(1, round(Fraction(width * down, across)))
    return ((width - cut_width) // 2, (height - cut_height) // 2, cut_width, cut_height)


def cut_out(image: Image.Image, box: Box) -> Image.Image:
    """The part of a picture in a box."""
    left, top, width, height = box
    return image.crop((left, top, left + width, top + height))


def movq_pixels(image: Image.Image, box: Box, size: Size) -> Pixels:
    """What is in the box as the reference gives it to MoVQ: ``(3, height, width)`` in [-1, 1].

    Bicubic resize with ``reducing_gap=1``, ``/ 127.5 - 1`` (``train_transforms`` of diffusers'
    train_text_to_image_decoder.py).
    """
    resized = cut_out(image, box).resize(size, resample=Image.Resampling.BICUBIC, reducing_gap=1)
    pixels = np.asarray(resized).astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def mirrored(pixels: Pixels) -> Pixels:
    """Left and right exchanged ``(3, H, W)``. Done to prepared pixels, since no resize then rounds another way."""
    return np.ascontiguousarray(pixels[..., ::-1])
