"""MoVQ: the latents of a picture at one resolution, square or in the shape of its bucket."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kcache.checkpoints import Checkpoint
from kcache.shards import Column, Field, KcacheError
from kcache.shards.records import Record

from .batches import Batches
from .crops import Box, CentreSquare, Cut, NearestBucket, Size, mirrored, movq_pixels
from .encoders import STORE_DTYPES, Array, Awaited, Features, Models, Precision, Prepared, encode_pictures, notes_of

if TYPE_CHECKING:
    from PIL import Image


class LatentsColumn:
    """MoVQ: ``latents`` (C, H, W) before quantisation, deterministic and without a scaling factor.

    All cuts but the centre square have ``crop`` too: left, top, width and height in pixels of the upright picture, not
    mirrored in a flipped column either. Buckets differ in shape: their ``latents`` are (C * H * W,) in C order, and
    ``shape`` is C, H, W.
    """

    def __init__(
        self,
        name: str,
        decoder: Checkpoint,
        precision: Precision,
        models: Models,
        alpha: str,
        resolution: int,
        cut: Cut | None = None,
        *,
        flip: bool = False,
    ) -> None:
        """Read the configuration and hash the weights; load nothing. KcacheError for a resolution that does not fit."""
        self._component, self._precision, self._resolution = decoder.component("movq"), precision, resolution
        self._cut, self._flip = cut or CentreSquare(), flip
        config = self._component.config()
        self._channels, self._factor = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
        self._require_multiples()
        self._models, self._batches = models, Batches(name, "picture", precision.device)
        self.column = Column(
            name=name,
            reads="image",
            fields=self._fields(STORE_DTYPES[precision.store_dtype]),
            encoder={"class": "VQModel", **self._component.identity()},
            preprocessing=self._preprocessing(alpha),
            encode_dtype=precision.encode_dtype,
            notes=notes_of(decoder),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of the latents of a square, which no bucket exceeds, and of the fields beside them."""
        latents, *beside = self.column.fields
        values = int(np.prod(self._shape((self._resolution, self._resolution))))
        return values * np.dtype(latents.dtype).itemsize + sum(field.row_bytes for field in beside)

    def prepare(self, image: "Image.Image", sha256: str) -> Prepared:
        """The cut of the picture in [-1, 1], with where it was cut and the shape that its latents will have."""
        box, size = self._cut.box(image.size, sha256), self._cut.target(image.size, self._resolution)
        pixels = movq_pixels(image, box, size)
        return Prepared(mirrored(pixels) if self._flip else pixels, self._known(box, size))

    def load(self) -> None:
        """Load the model."""
        _ = self._model

    @cached_property
    def _model(self) -> Any:
        from diffusers import VQModel

        return self._models.load(self._component, VQModel, self._precision, part="encoder")

    def features(self, inputs: Sequence[Prepared], batch_size: int) -> Iterator[Awaited]:
        """The latents of each picture, and the fields that were known before."""
        model = self._model
        latents = encode_pictures(
            lambda pixels: model.encode(pixels).latents, inputs, self._batches, batch_size, self._precision
        )
        known = [prepared.fields for prepared in inputs]  # not their pixels, which would be held until all is there
        return (partial(self._stored, one, fields) for one, fields in zip(latents, known, strict=True))

    def null(self) -> None:
        """None: the decoder is conditioned on the image embedding only."""
        return

    @property
    def _has_buckets(self) -> bool:
        return isinstance(self._cut, NearestBucket)

    def _require_multiples(self) -> None:
        if self._resolution < self._factor or self._resolution % self._factor:
            raise KcacheError(
                f"resolution {self._resolution} is not a multiple of {self._factor},"
                " by which this MoVQ shrinks pictures"
            )
        for width, height in self._cut.buckets if isinstance(self._cut, NearestBucket) else ():
            if width % self._factor or height % self._factor:
                raise KcacheError(
                    f"a bucket of {width} x {height} pixels does not fit: this MoVQ shrinks pictures by {self._factor};"
                    f" choose a --bucket-step that is a multiple of {self._factor}"
                )

    def _fields(self, stored: str) -> tuple[Field, ...]:
        crop = () if isinstance(self._cut, CentreSquare) else (Field("crop", "int32", (4,)),)
        if self._has_buckets:
            return (Field("latents", stored, (None,)), Field("shape", "int32", (3,)), *crop)
        return (Field("latents", stored, self._shape((self._resolution, self._resolution))), *crop)

    def _preprocessing(self, alpha: str) -> Record:
        return {
            "alpha": alpha,
            "crop": self._cut.record,
            "resize": "bicubic, reducing_gap 1",
            "resolution": self._resolution,
            **({"flip": True} if self._flip else {}),
        }

    def _shape(self, size: Size) -> tuple[int, int, int]:
        """(C, H, W) of the latents of pixels of this width and height."""
        width, height = size
        return (self._channels, height // self._factor, width // self._factor)

    def _known(self, box: Box, size: Size) -> Features:
        known = {"crop": np.asarray(box, np.int32), "shape": np.asarray(self._shape(size), np.int32)}
        return {field.name: known[field.name] for field in self.column.fields if field.name in known}

    def _stored(self, wait: Callable[[], Array], known: Features) -> Features:
        latents = wait()
        return {"latents": latents.reshape(-1) if self._has_buckets else latents, **known}
