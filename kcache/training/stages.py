"""The two stages: which columns each reads, which component it trains, what it minimises, and what it fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any, Protocol

import torch

from kcache.checkpoints import Checkpoint
from kcache.fitting import (
    require_decoder_dimensions,
    require_latents_shape,
    require_prior_dimensions,
    require_same_encoder,
)
from kcache.shards import Cache, Column, KcacheError

from .columns import decoder_columns, prior_columns, require_same_columns
from .config import DecoderConfig, PriorConfig, TrainConfig
from .decoder_source import DecoderSource
from .objectives import Batch, decoder_loss, prior_loss
from .prior_source import PriorSource
from .samples import Samples
from .shapes import Shapes, read_shapes
from .shared_text import require_shared_text
from .sources import Reading, Source


class MakeSource(Protocol):
    """Opens the columns of the samples, with draws keyed by a seed."""

    def __call__(self, samples: Samples, seed: int, *, training: bool = True) -> Source:
        """Not for ``training``: every sample by the first of the views that are drawn among, no condition dropped."""


@dataclass(frozen=True)
class Stage:
    """All that differs between training the prior and training the decoder."""

    name: str
    subfolder: str
    columns: tuple[str, ...]
    model: Any
    scheduler: Any
    loss: Callable[[Any, Batch, Any, float | None], torch.Tensor]
    make_source: MakeSource


def prior_stage(config: PriorConfig, caches: Sequence[Cache]) -> Stage:
    """The prior: caption -> image embedding. KcacheError when a cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, PriorTransformer

    checkpoint = start_of(config)
    columns = [prior_columns(config, cache) for cache in caches]
    require_same_columns(caches, [[text, *images] for text, images in columns])
    component = checkpoint.component("prior")  # downloaded if need be, so after what the caches alone can tell
    shape = component.config()
    for cache, (text_column, images) in zip(caches, columns, strict=True):
        _require_prior_fits(config, cache, checkpoint, shape, text_column, images)
    model = component.load(PriorTransformer, torch.float32)
    # They belong to the data, not to what is learned; trainable but unused they would break DDP at its second step.
    model.clip_mean.requires_grad_(False)
    model.clip_std.requires_grad_(False)
    if not bool((model.clip_std > 0).all()):
        raise KcacheError(
            f"prior {checkpoint.name_or_path} has a clip_std of zero; it was saved without its statistics"
        )
    if config.draws_per_sample > 1 or config.pack_captions:
        option = "--pack-captions" if config.pack_captions else f"--draws-per-sample {config.draws_per_sample}"
        require_shared_text(model, checkpoint.name_or_path, option)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    positions, text, views = shape["num_embeddings"], columns[0][0].name, [image.name for image in columns[0][1]]

    def source(samples: Samples, seed: int, *, training: bool = True) -> Source:
        return PriorSource(
            samples,
            text,
            views if training else views[:1],
            _reading(config, scheduler, seed, training, config.draws_per_sample),
            positions,
            trim=config.trim_captions,
            all_captions=training and config.captions == "all",
            pack=training and config.pack_captions,
            group_by_length=training and config.group_by_length,
        )

    return Stage("prior", "prior", (text, *views), model, scheduler, prior_loss, source)


def decoder_stage(config: DecoderConfig, caches: Sequence[Cache]) -> Stage:
    """The decoder: image embedding -> latents. KcacheError when a cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    checkpoint = start_of(config)
    columns = [decoder_columns(config, cache) for cache in caches]
    require_same_columns(caches, [[*latents, *images] for latents, images in columns])
    component = checkpoint.component("unet")  # downloaded if need be, so after what the caches alone can tell
    shape = component.config()
    for cache, (latents, images) in zip(caches, columns, strict=True):
        _require_decoder_fits(config, cache, checkpoint, shape, latents, images)
    scheduler = DDPMScheduler.from_pretrained(str(checkpoint.component("scheduler").folder))
    model = component.load(UNet2DConditionModel, torch.float32)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    of_pictures, of_clip = columns[0]
    views = [(picture.name, clip.name) for picture, clip in zip(of_pictures, of_clip, strict=True)]

    @remembered
    def shapes(samples: Samples) -> Shapes:
        found = read_shapes(samples, [name for name, _ in views], check_crc=config.check_crc)
        for one in found.distinct:
            require_latents_shape(caches[0], checkpoint, of_pictures[0], one, shape)
        return found

    def source(samples: Samples, seed: int, *, training: bool = True) -> Source:
        drawn = views if training else views[:1]
        return DecoderSource(samples, drawn, shapes(samples), _reading(config, scheduler, seed, training))

    names = tuple(column.name for column in (*of_pictures, *of_clip))
    return Stage("decoder", "unet", names, model, scheduler, decoder_loss, source)


def _reading(config: TrainConfig, scheduler: Any, seed: int, training: bool, draws: int = 1) -> Reading:
    """Not for training: one draw, no dropped condition and no weights, so that losses of all runs compare."""
    weights = (1.0, *config.loss_weight) if training and any(w != 1 for w in config.loss_weight) else None
    dropout = config.conditioning_dropout if training else 0.0
    steps = scheduler.config.num_train_timesteps
    return Reading(seed, steps, dropout, weights, config.check_crc, draws if training else 1)


def _require_prior_fits(
    config: PriorConfig,
    cache: Cache,
    checkpoint: Checkpoint,
    shape: dict[str, Any],
    text: Column,
    images: Sequence[Column],
) -> None:
    require_prior_dimensions(cache, checkpoint, shape, text, images)
    if not config.ignore_encoder_mismatch:
        require_same_encoder(cache, checkpoint, text, "text_encoder")
        require_same_encoder(cache, checkpoint, images[0], "image_encoder")  # the other views are by the same


def _require_decoder_fits(
    config: DecoderConfig,
    cache: Cache,
    checkpoint: Checkpoint,
    shape: dict[str, Any],
    latents: Sequence[Column],
    images: Sequence[Column],
) -> None:
    require_decoder_dimensions(cache, checkpoint, shape, latents, images)
    if not config.ignore_encoder_mismatch:
        require_same_encoder(cache, checkpoint, latents[0], "movq")  # the other views are by the same


def make_stage(config: PriorConfig | DecoderConfig, *caches: Cache) -> Stage:
    """The stage that a configuration belongs to, for one or several caches."""
    return prior_stage(config, caches) if isinstance(config, PriorConfig) else decoder_stage(config, caches)


def start_of(config: TrainConfig) -> Checkpoint:
    """The checkpoint that training begins from, which ``--revision`` and ``--variant`` are about."""
    is_prior = isinstance(config, PriorConfig)
    name = config.pretrained_prior_model_name_or_path if is_prior else config.pretrained_decoder_model_name_or_path
    return Checkpoint(name, config.revision, config.variant, config.cache_dir)
