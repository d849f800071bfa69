"""From what is wanted to pictures: image embeddings by the prior, pixels by the decoder, several in one forward."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .config import GenerateConfig
from .encoded_once import encoded_once
from .mixing import Mix
from .offload import taking_turns
from .pipelines import Pipelines
from .repaint import keeping_outside
from .sources import Source, fitted, read_source, strength_of
from .wanted import Wanted

Embeds = tuple[Tensor, Tensor]
"""Image embeddings (B, D) of B pictures, and of what they should not be."""


def make_pictures(pipelines: Pipelines, wanted: Sequence[Wanted], config: GenerateConfig) -> Iterator[Image.Image]:
    """The pictures of ``wanted``, one after the other and as they are made; steps, guidance and sources by ``config``.

    Each is what the stock pipelines make with its seed, and with ``batch_size`` above 1 the same but for rounding. In
    fp32 it is so to the bit; in half precision the prior runs a prompt's text once for all steps, which is quicker and
    differs by less than that precision does. `load_pipelines` need be called but once for any number of calls.
    """
    from kcache.training.kept_text import text_run_once

    source = read_source(config)
    with ExitStack() as within:
        if pipelines.prior.prior.dtype != torch.float32:
            within.enter_context(text_run_once(pipelines.prior.prior))
        if pipelines.take_turns:
            within.enter_context(taking_turns(pipelines.groups, pipelines.device))
        within.enter_context(encoded_once(pipelines.prior))  # last: what is remembered brings no encoder to the GPU
        painter = _Painter(pipelines, config, source)
        batches = _sampled(pipelines.prior, wanted, config)
        if pipelines.take_turns:  # the prior's parts leave the GPU once, not once for each batch
            batches = iter(list(batches))
        for embeds, generators in batches:
            yield from painter.paint(embeds, generators)


def _sampled(
    prior: Any, wanted: Sequence[Wanted], config: GenerateConfig
) -> Iterator[tuple[Embeds, list[torch.Generator]]]:
    """Image embeddings, a batch after the other, with the generators that drew them and have more to draw."""
    for batch in _batches(wanted, config.batch_size):
        generators = [torch.Generator("cpu").manual_seed(one.seed) for one in batch]
        yield _image_embeds(prior, batch, config, generators), generators


def _batches(wanted: Sequence[Wanted], size: int) -> Iterator[list[Wanted]]:
    """What the prior can take in one call, at most ``size`` at a time: pictures of one mix, or prompts of one kind."""

    def alike(one: Wanted) -> object:
        return (one.subject, one.negative_prompt) if isinstance(one.subject, Mix) else bool(one.negative_prompt)

    for _, group in groupby(wanted, alike):
        together = list(group)
        yield from (together[start : start + size] for start in range(0, len(together), size))


def _image_embeds(prior: Any, batch: list[Wanted], config: GenerateConfig, generators: list[torch.Generator]) -> Embeds:
    """What the stock prior gives for each of ``batch``.

    A negative prompt is one more row of the same call for each picture, whose noise follows that of the picture's own:
    the prior steers away from it, and its embedding is what the decoder steers away from; without one both steer away
    from nothing, which is the empty prompt and a picture of zeros.
    """
    options = {
        "num_inference_steps": config.prior_num_inference_steps,
        "guidance_scale": config.prior_guidance_scale,
        "generator": generators * 2 if batch[0].negative_prompt else generators,
    }
    subject = batch[0].subject
    if isinstance(subject, Mix):
        negative = batch[0].negative_prompt or None
        ingredients, weights = subject.for_pipeline()
        made = prior.interpolate(
            ingredients, weights, num_images_per_prompt=len(batch), negative_prior_prompt=negative, **options
        )
    else:
        negatives = [one.negative_prompt for one in batch] if batch[0].negative_prompt else None
        made = prior([str(one.subject) for one in batch], negative_prompt=negatives, **options)
    return made.image_embeds, made.negative_image_embeds


class _Painter:
    """The decoder's pipeline for what is asked for: pictures from nothing, from a picture, or within a mask."""

    def __init__(self, pipelines: Pipelines, config: GenerateConfig, source: Source | None) -> None:
        self._pipelines = pipelines
        self._options = {"num_inference_steps": config.num_inference_steps, "guidance_scale": config.guidance_scale}
        factor = pipelines.decoder.movq_scale_factor
        self._source = source and fitted(source, pipelines.side, factor**2)
        if source is None:
            self._pipeline = pipelines.decoder
        elif source.mask is not None and pipelines.inpaints:
            self._pipeline = pipelines.decoder_as("KandinskyV22InpaintPipeline")
        else:
            self._pipeline = pipelines.decoder_as("KandinskyV22Img2ImgPipeline")
            # The picture has its size. The pipeline would resize it, with width and height the other way round.
            self._pipeline.image_processor.register_to_config(do_resize=False)
            self._options["strength"] = strength_of(config)

    def paint(self, embeds: Embeds, generators: list[torch.Generator]) -> list[Image.Image]:
        """A picture for each row of ``embeds``, by the generators that drew the prior's noise."""
        options = {**self._options, **self._over(len(generators), generators)}
        made: list[Image.Image] = self._pipeline(
            image_embeds=embeds[0], negative_image_embeds=embeds[1], generator=generators, **options
        ).images
        return made if self._source is None else [_outside_kept(picture, self._source) for picture in made]

    def _over(self, count: int, generators: list[torch.Generator]) -> dict[str, Any]:
        """What a pipeline is given beside embeddings: sizes, and for each picture what is painted over."""
        if self._source is None:
            return {"height": self._pipelines.side, "width": self._pipelines.side}
        picture, mask = self._source.picture, self._source.mask
        options = {"image": [picture] * count, "height": picture.height, "width": picture.width}
        if mask is None:
            return options
        if self._pipelines.inpaints:
            return {**options, "mask_image": [mask] * count}
        over = (_tensor(one).expand(count, -1, -1, -1) for one in (picture, mask))
        pixels, painted = (one.to(self._pipelines.device, self._pipeline.movq.dtype) for one in over)
        return {**options, "callback_on_step_end": keeping_outside(self._pipeline, 2 * pixels - 1, painted, generators)}


def _outside_kept(made: Image.Image, source: Source) -> Image.Image:
    """``made`` within the mask, and outside it the pixels of the picture, which MoVQ would give back only about."""
    return made if source.mask is None else Image.composite(made, source.picture, source.mask)


def _tensor(picture: Image.Image) -> Tensor:
    """A picture (1, C, H, W) in [0, 1]."""
    import numpy as np

    pixels = np.asarray(picture, np.float32) / 255
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)[None]
