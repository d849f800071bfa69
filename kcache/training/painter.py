"""Pictures from image embeddings by a decoder, whose frozen parts wait on the CPU between validations."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kcache.checkpoints import Checkpoint, Component
from kcache.devices import free_memory, inference_dtype
from kcache.progress import hush_libraries, logger
from kcache.shards import KcacheError

from .sampling import GUIDANCE_SCALE

STEPS = 20
"""Steps of the decoder for a validation picture, as in the reference."""


class Painter:
    """MoVQ, the scheduler and, unless it is the one in training, the UNet of a decoder's checkpoint.

    They are loaded for the first picture, in fp16 on CUDA and else in fp32. The 2.2 decoder then takes 2.6 GB of this
    machine's memory in fp16 for the rest of the run (0.14 GB without its UNet), and as much of the device's while
    pictures are made.
    """

    def __init__(
        self,
        decoder: Checkpoint,
        device: torch.device,
        embed_width: int,
        *,
        frozen_unet: bool,
        guidance_scale: float = GUIDANCE_SCALE,
    ) -> None:
        """Find or download what will be loaded. KcacheError for what is missing, or other image embeddings than D."""
        self._decoder, self._device, self._frozen_unet = decoder, device, frozen_unet
        self._guidance_scale = guidance_scale
        self._parts = {name: decoder.component(name) for name in (["movq", "unet"] if frozen_unet else ["movq"])}
        for part in self._parts.values():
            part.weight_files()
        self._scheduler = _scheduler(decoder.component("scheduler"))
        if frozen_unet and (takes := self._parts["unet"].config()["encoder_hid_dim"]) != embed_width:
            raise KcacheError(
                f"the decoder {decoder.name_or_path} takes image embeddings of {takes} and the cache has {embed_width};"
                " name the decoder of that cache with --pretrained-decoder-model-name-or-path"
            )

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Have what is frozen on the device within the block."""
        models = [self._movq, self._unet] if self._frozen_unet else [self._movq]
        try:
            for model in models:
                model.to(self._device)
            yield
        finally:
            for model in models:
                model.to("cpu")
            free_memory(self._device)

    def paint(
        self, image_embeds: Tensor, null: Tensor, generator: torch.Generator, height: int, width: int, unet: Any = None
    ) -> Image.Image:
        """The picture of one image embedding (D,), by the frozen UNet or by the one that is given.

        Through KandinskyV22Pipeline, one picture at a time: a picture then depends on nothing that is made beside it.
        A given ``unet`` runs under the caller's autocast; the frozen parts have a precision of their own.
        """
        from diffusers import KandinskyV22Pipeline

        painting = self._unet if unet is None else unet
        pipeline = KandinskyV22Pipeline(unet=painting, scheduler=self._scheduler, movq=self._movq)
        pipeline.set_progress_bar_config(disable=True)
        mixed = unet is not None and torch.is_autocast_enabled(self._device.type)
        with torch.autocast(self._device.type, enabled=mixed):
            latents = pipeline(
                image_embeds=image_embeds[None].to(self._device),
                negative_image_embeds=null[None].to(self._device),
                height=height,
                width=width,
                num_inference_steps=STEPS,
                guidance_scale=self._guidance_scale,
                generator=generator,
                output_type="latent",
            ).images
        return self.picture(latents[0])

    def picture(self, latents_CHW: Tensor) -> Image.Image:
        """The picture that MoVQ makes of latents, not quantised, as KandinskyV22Pipeline makes it."""
        from diffusers import DiffusionPipeline

        latents = latents_CHW[None].to(self._device, self._movq.dtype)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            pixels = self._movq.decode(latents, force_not_quantize=True).sample
        pixels = (pixels.float() * 0.5 + 0.5).nan_to_num().clamp(0, 1)
        image: Image.Image = DiffusionPipeline.numpy_to_pil(pixels.cpu().permute(0, 2, 3, 1).numpy())[0]
        return image

    def pixels_of(self, latents_CHW: Tensor) -> tuple[int, int]:
        """Height and width of the picture that latents are of."""
        factor = 2 ** (len(self._movq.config.block_out_channels) - 1)
        return latents_CHW.shape[1] * factor, latents_CHW.shape[2] * factor

    @cached_property
    def _movq(self) -> Any:
        from diffusers import VQModel

        return self._load("movq", VQModel)

    @cached_property
    def _unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        return self._load("unet", UNet2DConditionModel)

    def _load(self, subfolder: str, model_class: Any) -> Any:
        hush_libraries()
        model = self._parts[subfolder].load(model_class, inference_dtype(self._device))
        nbytes = sum(one.nbytes for one in model.parameters())
        logger.info(
            "loaded the %s of %s for validation pictures: %s MB, kept in this machine's memory between them",
            subfolder,
            self._decoder.name_or_path,
            f"{nbytes / 1e6:,.1f}",
        )
        return model.requires_grad_(False)


def _scheduler(component: Component) -> Any:
    """Of the two kinds that the pipeline takes, the one that the checkpoint has."""
    from diffusers import DDIMScheduler, DDPMScheduler

    config = component.config("scheduler_config.json")
    scheduler = DDIMScheduler if config["_class_name"] == "DDIMScheduler" else DDPMScheduler
    return scheduler.from_config(config)
