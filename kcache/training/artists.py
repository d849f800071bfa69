"""The pictures of a validation: of prompts by the prior in training, of held-out samples and prompts by the UNet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .painter import Painter
from .sampling import TextFeatures, after_sampling, first_noise, sample_image_embeds, seeded

PROMPT, CACHED, GENERATED = "prompt", "cached picture", "generated"

HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Picture:
    """One picture: what it was made of, and how. A ``kind`` is "prompt", "cached picture" or "generated"."""

    caption: str
    image: Image.Image
    kind: str
    seed: int | None
    """Of the noise; None where there is none."""


@dataclass(frozen=True)
class HeldOutPictures:
    """Held-out samples of the decoder: ``latents`` (C, H, W) each, ``image_embeds`` (B, D) and B captions."""

    latents: Tensor | Sequence[Tensor]
    image_embeds: Tensor
    captions: Sequence[str]


Row = list[Picture]
"""Pictures that share a caption and stand side by side."""


class PriorArtist:
    """Prompts -> image embeddings by the prior in training -> pictures by a frozen decoder."""

    def __init__(
        self,
        prompts: Sequence[str],
        images: int,
        features: tuple[TextFeatures, TextFeatures],
        scheduler: Any,
        painter: Painter,
        null_image: Tensor,
        side: int,
        guidance_scale: float,
    ) -> None:
        """``features`` are those of the prompts and of the empty one."""
        self._prompts, self._images, (self._text, self._null) = prompts, images, features
        self._scheduler, self._painter, self._null_image, self._side = scheduler, painter, null_image, side
        self._guidance_scale = guidance_scale

    def rows(self, model: Any) -> dict[str, list[Row]]:
        """A row for each prompt, in which picture N has seed N: that of `kcache generate` with the same seed."""
        generators = seeded(len(self._prompts), self._images)
        embeds = sample_image_embeds(
            model,
            self._scheduler,
            self._text.repeated(self._images),
            self._null,
            noise_BD=first_noise(model, generators).to(model.device),
            generator=generators,
            guidance_scale=self._guidance_scale,
        )
        with self._painter.on_device():
            images = [
                self._painter.paint(one, self._null_image, generator, self._side, self._side)
                for one, generator in zip(embeds, generators, strict=True)
            ]
        return {"Prompts": _prompt_rows(self._prompts, self._images, images)}


class DecoderArtist:
    """Held-out samples, cached and generated, and prompts: both by the UNet in training."""

    def __init__(
        self,
        prompts: Sequence[str],
        images: int,
        sampled: Tensor | None,
        held_out: HeldOutPictures | None,
        painter: Painter,
        null_image: Tensor,
        side: int,
    ) -> None:
        """``sampled`` (P * N, D): what the prior made of P prompts for N pictures of each; None without prompts."""
        self._prompts, self._images, self._sampled, self._held_out = prompts, images, sampled, held_out
        self._painter, self._null_image, self._side = painter, null_image, side

    def rows(self, model: Any) -> dict[str, list[Row]]:
        """Pairs of held-out pictures, then a row for each prompt."""
        sections = {}
        with self._painter.on_device():
            if self._held_out:
                sections["Held-out samples"] = list(self._pairs(model, self._held_out))
            if self._sampled is not None:
                images = list(self._prompt_images(model, self._sampled))
                sections["Prompts"] = _prompt_rows(self._prompts, self._images, images)
        return sections

    def _pairs(self, model: Any, held_out: HeldOutPictures) -> Iterator[Row]:
        for latents, embeds, caption in zip(held_out.latents, held_out.image_embeds, held_out.captions, strict=True):
            generator = torch.Generator().manual_seed(HELD_OUT_SEED)
            height, width = self._painter.pixels_of(latents)
            generated = self._painter.paint(embeds, self._null_image, generator, height, width, model)
            yield [
                Picture(caption, self._painter.picture(latents), CACHED, None),
                Picture(caption, generated, GENERATED, HELD_OUT_SEED),
            ]

    def _prompt_images(self, model: Any, sampled: Tensor) -> Iterator[Image.Image]:
        for i, embeds in enumerate(sampled):
            generator = after_sampling(i % self._images, len(embeds))
            yield self._painter.paint(embeds, self._null_image, generator, self._side, self._side, model)


def _prompt_rows(prompts: Sequence[str], images: int, pictures: Sequence[Image.Image]) -> list[Row]:
    return [
        [Picture(prompt, pictures[i * images + number], PROMPT, number) for number in range(images)]
        for i, prompt in enumerate(prompts)
    ]
