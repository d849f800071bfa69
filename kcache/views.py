"""The ways to cut a picture, and the names of the columns that hold each: what encoding and training agree on."""

from dataclasses import dataclass

CENTRE, BUCKETS, CROP = "", "buckets", "crop-"


@dataclass(frozen=True)
class View:
    """One way to cut a picture for CLIP and MoVQ.

    ``cut`` is `CENTRE` (the reference's centre square), `BUCKETS` (the nearest of some shapes of equal area) or
    ``crop-K`` (the Kth of the fixed random crops, from 1); ``flip`` mirrors it left to right.
    """

    cut: str = CENTRE
    flip: bool = False

    def image_column(self, resolution: int) -> str:
        """The column of CLIP embeddings: ``image``, ``image-flip``, ``image-crop-1``, ``image-512-buckets``, ..."""
        # Only the shapes of buckets depend on a resolution; any other cut looks the same to CLIP at all of them.
        return self._name(f"image-{resolution}" if self.cut == BUCKETS else "image")

    def latents_column(self, resolution: int) -> str:
        """The column of latents: ``latents-512``, ``latents-512-crop-1-flip``, ``latents-512-buckets``, ..."""
        return self._name(f"latents-{resolution}")

    def _name(self, base: str) -> str:
        return "-".join([base, *([self.cut] if self.cut else []), *(["flip"] if self.flip else [])])
