"""The two stages: which columns each reads, which component it trains, what it minimises, and what it fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as remembered
from typing import Any, Protocol

import torch

from kcache.checkpoints import Checkpoint
from kcache.shards import Cache, Column, KcacheError, Snapshot

from .columns import decoder_columns, prior_columns
from .config import DecoderConfig, PriorConfig
from .objectives import Batch, decoder_loss, prior_loss
from .shapes import Shapes, read_shapes
from .sources import DecoderSource, PriorSource, Source


class MakeSource(Protocol):
    """Opens the columns of a snapshot, with draws keyed by a seed."""

    def __call__(self, snapshot: Snapshot, seed: int, *, draw_views: bool = True) -> Source:
        """``draw_views=False``: every sample by the first of the views that training draws among."""


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


def prior_stage(config: PriorConfig, cache: Cache) -> Stage:
    """The prior: caption -> image embedding. KcacheError when the cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, PriorTransformer

    text, images = prior_columns(config, cache)
    checkpoint = _checkpoint(config, config.pretrained_prior_model_name_or_path)
    component = checkpoint.component("prior")
    shape = component.config()
    _require(cache, checkpoint, text, "hidden_states", "embedding_dim", shape["embedding_dim"])
    # Dimensions that a configuration leaves out are the embedding's own (PriorTransformer.__init__).
    _require(cache, checkpoint, text, "text_embeds", "embedding_proj_dim", _or(shape, "embedding_proj_dim"))
    for image in images:
        _require(cache, checkpoint, image, "image_embeds", "clip_embed_dim", _or(shape, "clip_embed_dim"))
    if text.preprocessing["max_length"] > shape["num_embeddings"]:
        raise KcacheError(
            f"the captions in {cache.root} have up to {text.preprocessing['max_length']} tokens and prior"
            f" {checkpoint.name_or_path} takes {shape['num_embeddings']}; encode with that prior's tokenizer"
        )
    if not config.ignore_encoder_mismatch:
        _require_encoder(cache, checkpoint, text, "text_encoder")
        _require_encoder(cache, checkpoint, images[0], "image_encoder")  # the other views are by the same
    model = component.load(PriorTransformer, torch.float32)
    # They belong to the data, not to what is learned; trainable but unused they would break DDP at its second step.
    model.clip_mean.requires_grad_(False)
    model.clip_std.requires_grad_(False)
    if not bool((model.clip_std > 0).all()):
        raise KcacheError(
            f"prior {checkpoint.name_or_path} has a clip_std of zero; it was saved without its statistics"
        )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    steps, positions = scheduler.config.num_train_timesteps, shape["num_embeddings"]
    trim, check_crc, views = config.trim_captions, config.check_crc, [image.name for image in images]

    def source(snapshot: Snapshot, seed: int, *, draw_views: bool = True) -> Source:
        drawn = views if draw_views else views[:1]
        return PriorSource(snapshot, text.name, drawn, seed, steps, positions, trim=trim, check_crc=check_crc)

    return Stage("prior", "prior", (text.name, *views), model, scheduler, prior_loss, source)


def decoder_stage(config: DecoderConfig, cache: Cache) -> Stage:
    """The decoder: image embedding -> latents. KcacheError when the cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    latents, images = decoder_columns(config, cache)
    checkpoint = _checkpoint(config, config.pretrained_decoder_model_name_or_path)
    component = checkpoint.component("unet")
    shape = component.config()
    for column in latents:
        if not config.buckets:  # their shapes are in the rows, and are looked at when those are known
            _require_shape(cache, checkpoint, column, column.fields[0].shape, shape)
    for column in images:
        _require(cache, checkpoint, column, "image_embeds", "encoder_hid_dim", shape["encoder_hid_dim"])
    if not config.ignore_encoder_mismatch:
        _require_encoder(cache, checkpoint, latents[0], "movq")  # the other views are by the same
    scheduler = DDPMScheduler.from_pretrained(str(checkpoint.component("scheduler").folder))
    model = component.load(UNet2DConditionModel, torch.float32)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    steps, check_crc = scheduler.config.num_train_timesteps, config.check_crc
    views = [(of_picture.name, of_clip.name) for of_picture, of_clip in zip(latents, images, strict=True)]

    @remembered
    def shapes(snapshot: Snapshot) -> Shapes:
        found = read_shapes(snapshot, [name for name, _ in views], check_crc=check_crc)
        for one in found.distinct:
            _require_shape(cache, checkpoint, latents[0], one, shape)
        return found

    def source(snapshot: Snapshot, seed: int, *, draw_views: bool = True) -> Source:
        drawn = views if draw_views else views[:1]
        return DecoderSource(snapshot, drawn, shapes(snapshot), seed, steps, check_crc=check_crc)

    columns = tuple(column.name for column in (*latents, *images))
    return Stage("decoder", "unet", columns, model, scheduler, decoder_loss, source)


def make_stage(config: PriorConfig | DecoderConfig, cache: Cache) -> Stage:
    """The stage that a configuration belongs to."""
    return prior_stage(config, cache) if isinstance(config, PriorConfig) else decoder_stage(config, cache)


def checkpoint_name(config: PriorConfig | DecoderConfig) -> str:
    """The checkpoint that training begins from."""
    if isinstance(config, PriorConfig):
        return config.pretrained_prior_model_name_or_path
    return config.pretrained_decoder_model_name_or_path


def _checkpoint(config: PriorConfig | DecoderConfig, name: str) -> Checkpoint:
    return Checkpoint(name, config.revision, config.variant, config.cache_dir)


def _or(shape: dict[str, Any], key: str) -> int:
    return int(shape.get(key) or shape["embedding_dim"])


def _require(cache: Cache, checkpoint: Checkpoint, column: Column, field: str, parameter: str, wanted: int) -> None:
    """The first fixed dimension of a field must be what the model takes."""
    (spec,) = (f for f in column.fields if f.name == field)
    have = next(n for n in spec.shape if n is not None)
    if have != wanted:
        raise _other_dimension(cache, checkpoint, f"column '{column.name}'", f"{field} of {have}", parameter, wanted)


def _require_shape(
    cache: Cache, checkpoint: Checkpoint, column: Column, latents: Sequence[int | None], unet: dict[str, Any]
) -> None:
    """Latents (C, H, W) must have the UNet's channels, and sides that it can halve as often as it does."""
    channels, height, width = (int(n or 0) for n in latents)
    where, halvings = f"column '{column.name}'", len(unet["block_out_channels"]) - 1
    if channels != unet["in_channels"]:
        raise _other_dimension(cache, checkpoint, where, f"latents of {channels}", "in_channels", unet["in_channels"])
    if height % 2**halvings or width % 2**halvings:
        is_bucket = column.fields[0].is_ragged
        raise KcacheError(
            f"{where} of {cache.root} has {'a bucket with ' if is_bucket else ''}latents of {height}x{width} and the"
            f" UNet of {checkpoint.name_or_path} halves them {halvings} times; encode"
            f" {'with a larger --bucket-step' if is_bucket else 'at another --resolution'}"
        )


def _other_dimension(
    cache: Cache, checkpoint: Checkpoint, where: str, have: str, parameter: str, wanted: int
) -> KcacheError:
    return KcacheError(
        f"{where} of {cache.root} has {have} and {checkpoint.name_or_path} takes {wanted} ({parameter}); encode with"
        " the encoders that belong to that checkpoint"
    )


def _require_encoder(cache: Cache, checkpoint: Checkpoint, column: Column, subfolder: str) -> None:
    """Refuse a column made by another encoder than the checkpoint's own, where it holds one; else nothing is known."""
    from pathlib import Path

    from kcache.fingerprints import weights_sha256

    folder = Path(checkpoint.base().name_or_path) / subfolder
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    groups: dict[str, list[Path]] = {}
    for file in files:  # Each variant is a set of weights of its own; the column may have been made with any.
        groups.setdefault(file.name.split(".")[1].split("-")[0], []).append(file)
    if groups and column.encoder["weights"] not in {weights_sha256(group) for group in groups.values()}:
        raise KcacheError(
            f"column '{column.name}' of {cache.root} was encoded with another {subfolder} (from"
            f" {column.notes.get('from')}) than that of {checkpoint.name_or_path}; encode with that checkpoint,"
            " or, if you know that they agree, add --ignore-encoder-mismatch"
        )
