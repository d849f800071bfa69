"""CLIP vision: the embedding of a picture, or of a part of it."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kcache.checkpoints import Checkpoint
from kcache.shards import Column, Field
from kcache.shards.records import Record

from .batches import Batches
from .crops import Cut, Pixels, cut_out, mirrored
from .encoders import STORE_DTYPES, Array, Awaited, Features, Models, Precision, Prepared, encode_pictures, notes_of
from .images import clip_pixels

if TYPE_CHECKING:
    from PIL import Image


class ImageColumn:
    """CLIP vision: ``image_embeds`` (D,), stored raw; the prior's ``clip_mean`` and ``clip_std`` belong to training."""

    def __init__(
        self,
        name: str,
        prior: Checkpoint,
        precision: Precision,
        models: Models,
        alpha: str,
        cut: Cut | None = None,
        *,
        flip: bool = False,
    ) -> None:
        """Read the configuration and hash the weights; load nothing.

        Without a ``cut`` the processor is given the whole picture, as in the reference; it resizes and crops either.
        """
        self._component, self._precision = prior.component("image_encoder"), precision
        self._cut, self._flip = cut, flip
        self._config = self._component.config()
        self._models, self._batches = models, Batches(name, "picture", precision.device)
        processor = prior.component("image_processor")
        self._processor_folder = processor.folder
        self.column = Column(
            name=name,
            reads="image",
            fields=(Field("image_embeds", STORE_DTYPES[precision.store_dtype], (self._config["projection_dim"],)),),
            encoder={"class": "CLIPVisionModelWithProjection", **self._component.identity()},
            preprocessing={
                "alpha": alpha,
                "processor": _processor_settings(processor.config("preprocessor_config.json")),
                **({"crop": cut.record} if cut else {}),
                **({"flip": True} if flip else {}),
            },
            encode_dtype=precision.encode_dtype,
            notes=notes_of(prior),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one embedding."""
        return self.column.fields[0].row_bytes

    def prepare(self, image: "Image.Image", sha256: str) -> Prepared:
        """The picture, or its cut, as the checkpoint's image processor makes it, then mirrored for a flipped column."""
        if self._cut:
            image = cut_out(image, self._cut.box(image.size, sha256))
        pixels = self._process(image)
        return Prepared(mirrored(pixels) if self._flip else pixels)

    @cached_property
    def _process(self) -> Callable[["Image.Image"], Pixels]:
        """The checkpoint's image processor: always the PIL one, whose pixels differ a little from torchvision's."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return clip_pixels(CLIPImageProcessorPil.from_pretrained(str(self._processor_folder)))

    def load(self) -> None:
        """Load the model."""
        _ = self._model

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return self._models.load(self._component, CLIPVisionModelWithProjection, self._precision)

    def features(self, inputs: Sequence[Prepared], batch_size: int) -> Iterator[Awaited]:
        """The embedding of each picture."""
        model = self._model
        embeds = encode_pictures(
            lambda pixels: model(pixels).image_embeds, inputs, self._batches, batch_size, self._precision
        )
        return (partial(_features, one) for one in embeds)

    def null(self) -> Features:
        """The embedding of a tensor of zeros, as KandinskyV22PriorPipeline.get_zero_embed has it."""
        size = self._config["image_size"]
        return next(self.features([Prepared(np.zeros((3, size, size), np.float32))], 1))()


def _features(wait: Callable[[], Array]) -> Features:
    return {"image_embeds": wait()}


def _processor_settings(config: Record) -> Record:
    """The settings of an image processor that change pixels, with the backend that kcache always takes."""
    keep = ("do_", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    return {"backend": "pil", **{key: value for key, value in sorted(config.items()) if key.startswith(keep)}}
