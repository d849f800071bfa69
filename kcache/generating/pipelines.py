"""The stock pipelines that pictures are made with: loaded once, and the decoder's chosen by what it is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.checkpoints import training_record
from kcache.devices import find_device, inference_dtype, torch_dtype
from kcache.progress import hush_libraries
from kcache.results import KINDS, load_pipeline
from kcache.shards.errors import KcacheError, UsageError

from .config import GenerateConfig

SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpmsolver": "DPMSolverMultistepScheduler"}
"""Of diffusers, by the names of ``--scheduler``. Others want their input scaled, which these pipelines do not do."""

INPAINTING_CHANNELS = 9
"""Of a UNet that is told what it paints into: latents, those of the masked picture, and the mask."""


@dataclass(frozen=True)
class Pipelines:
    """A ``KandinskyV22PriorPipeline`` and a ``KandinskyV22Pipeline``; ``side``: of its pictures.

    Both are on ``device``, or in the machine's memory where their parts take turns on it.
    """

    prior: Any
    decoder: Any
    side: int
    device: Any
    take_turns: bool = False

    @property
    def inpaints(self) -> bool:
        """Whether the decoder's UNet was made for inpainting."""
        return bool(self.decoder.unet.config.in_channels == INPAINTING_CHANNELS)

    @property
    def groups(self) -> tuple[tuple[Any, ...], ...]:
        """The parts that work together. The largest group is the image encoder, which is called least, alone."""
        prior, decoder = self.prior, self.decoder
        return (prior.image_encoder,), (prior.text_encoder, prior.prior), (decoder.unet, decoder.movq)

    def decoder_as(self, name: str) -> Any:
        """The decoder as another pipeline of diffusers, with the same parts."""
        import diffusers

        pipeline = getattr(diffusers, name)(**self.decoder.components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_pipelines(config: GenerateConfig) -> Pipelines:
    """Both pipelines of ``config`` with its LoRA scales, scheduler, device and precision.

    KcacheError for what does not load; UsageError for a decoder that cannot do what is asked for.
    """
    hush_libraries()
    device = find_device(config.device)
    if config.offload and device.type == "cpu":
        raise UsageError("--offload spares the memory of a GPU, and this would run on the CPU; leave it out")
    dtype = torch_dtype(config.dtype) if config.dtype else inference_dtype(device)
    prior = load_pipeline(config.prior, KINDS["prior"], dtype, config.prior_lora_scale)
    decoder = load_pipeline(config.decoder, KINDS["decoder"], dtype, config.decoder_lora_scale)
    refuse_unfit(config, decoder.unet.config.in_channels)
    _refuse_widths(config, prior, decoder)
    if config.scheduler:
        decoder.scheduler = _scheduler(config.scheduler, decoder.scheduler.config)
    for pipeline in (prior, decoder):
        if not config.offload:
            pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
    side = config.resolution or _trained_resolution(config.decoder) or 512
    return Pipelines(prior, decoder, side, device, config.offload)


def _scheduler(name: str, configuration: Any) -> Any:
    import diffusers

    if name not in SCHEDULERS:
        raise UsageError(f"there is no scheduler '{name}'; choose {', '.join(SCHEDULERS)}")
    return getattr(diffusers, SCHEDULERS[name]).from_config(configuration)


def refuse_unfit(config: GenerateConfig, channels: int) -> None:
    """UsageError where the UNet's input is not what would be given to it."""
    if channels == INPAINTING_CHANNELS:
        if config.mask_image is None:
            raise UsageError(
                f"{config.decoder} paints into pictures and nothing else; give --init-image and --mask-image"
            )
        if config.strength is not None:
            raise UsageError(f"{config.decoder} was made for inpainting and knows no --strength; leave it out")
    elif channels != 4:
        raise UsageError(f"the UNet of {config.decoder} takes {channels} channels; generate takes those with 4 or 9")


def _refuse_widths(config: GenerateConfig, prior: Any, decoder: Any) -> None:
    """KcacheError where the decoder takes other embeddings than the prior gives."""
    gives, takes = prior.prior.config.embedding_dim, decoder.unet.config.encoder_hid_dim
    if takes is not None and gives != takes:
        raise KcacheError(
            f"the prior {config.prior} gives image embeddings of {gives}, the decoder {config.decoder} takes {takes};"
            " name two that belong together with --prior and --decoder"
        )


def _trained_resolution(decoder: str) -> int | None:
    resolution = training_record(Path(decoder)).get("options", {}).get("resolution")
    return int(resolution) if resolution else None
