"""The two stages: which columns each reads, which component it trains, what it minimises, and what it fits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kcache.checkpoints import Checkpoint
from kcache.shards import Cache, Column, KcacheError, Snapshot
from kcache.shards.errors import UsageError

from .config import DecoderConfig, PriorConfig
from .objectives import Batch, decoder_loss, prior_loss
from .sources import DecoderSource, PriorSource, Source


@dataclass(frozen=True)
class Stage:
    """All that differs between training the prior and training the decoder."""

    name: str
    subfolder: str
    columns: tuple[str, ...]
    model: Any
    scheduler: Any
    loss: Callable[[Any, Batch, Any, float | None], torch.Tensor]
    make_source: Callable[[Snapshot, int], Source]


def prior_stage(config: PriorConfig, cache: Cache) -> Stage:
    """The prior: caption -> image embedding. KcacheError when the cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, PriorTransformer

    checkpoint = _checkpoint(config, config.pretrained_prior_model_name_or_path)
    component = checkpoint.component("prior")
    text, image = cache.column("text"), cache.column("image")
    shape = component.config()
    _require(cache, checkpoint, text, "hidden_states", "embedding_dim", shape["embedding_dim"])
    # Dimensions that a configuration leaves out are the embedding's own (PriorTransformer.__init__).
    _require(cache, checkpoint, text, "text_embeds", "embedding_proj_dim", _or(shape, "embedding_proj_dim"))
    _require(cache, checkpoint, image, "image_embeds", "clip_embed_dim", _or(shape, "clip_embed_dim"))
    if text.preprocessing["max_length"] > shape["num_embeddings"]:
        raise KcacheError(
            f"the captions in {cache.root} have up to {text.preprocessing['max_length']} tokens and prior"
            f" {checkpoint.name_or_path} takes {shape['num_embeddings']}; encode with that prior's tokenizer"
        )
    if not config.ignore_encoder_mismatch:
        _require_encoder(cache, checkpoint, text, "text_encoder")
        _require_encoder(cache, checkpoint, image, "image_encoder")
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

    def source(snapshot: Snapshot, seed: int) -> Source:
        return PriorSource(snapshot, seed, steps, positions, trim=config.trim_captions, check_crc=config.check_crc)

    return Stage("prior", "prior", ("text", "image"), model, scheduler, prior_loss, source)


def decoder_stage(config: DecoderConfig, cache: Cache) -> Stage:
    """The decoder: image embedding -> latents. KcacheError when the cache does not fit the checkpoint."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    name = f"latents-{config.resolution}"
    if name not in cache.column_names():
        have = sorted((c.removeprefix("latents-") for c in cache.column_names() if c.startswith("latents-")), key=len)
        hint = f"use --resolution {have[0]}" if have else f"run 'kcache encode DATASET {cache.root}'"
        raise UsageError(
            f"{cache.root} has no latents at {config.resolution} px (it has: {', '.join(have) or 'none'}); {hint},"
            f" or add them with 'kcache encode DATASET {cache.root} --resolution {config.resolution}'"
        )
    checkpoint = _checkpoint(config, config.pretrained_decoder_model_name_or_path)
    component = checkpoint.component("unet")
    latents, image = cache.column(name), cache.column("image")
    shape = component.config()
    _require(cache, checkpoint, latents, "latents", "in_channels", shape["in_channels"])
    _require(cache, checkpoint, image, "image_embeds", "encoder_hid_dim", shape["encoder_hid_dim"])
    _require_divisible(cache, checkpoint, latents, 2 ** (len(shape["block_out_channels"]) - 1))
    if not config.ignore_encoder_mismatch:
        _require_encoder(cache, checkpoint, latents, "movq")
    scheduler = DDPMScheduler.from_pretrained(str(checkpoint.component("scheduler").folder))
    model = component.load(UNet2DConditionModel, torch.float32)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    steps = scheduler.config.num_train_timesteps

    def source(snapshot: Snapshot, seed: int) -> Source:
        return DecoderSource(snapshot, seed, steps, config.resolution, check_crc=config.check_crc)

    return Stage("decoder", "unet", (name, "image"), model, scheduler, decoder_loss, source)


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
        raise KcacheError(
            f"column '{column.name}' of {cache.root} has {field} of {have} and {checkpoint.name_or_path} takes"
            f" {wanted} ({parameter}); encode with the encoders that belong to that checkpoint"
        )


def _require_divisible(cache: Cache, checkpoint: Checkpoint, latents: Column, factor: int) -> None:
    _, height, width = latents.fields[0].shape
    assert height is not None
    assert width is not None
    if height % factor or width % factor:
        raise KcacheError(
            f"column '{latents.name}' of {cache.root} has latents of {height}x{width} and the UNet of"
            f" {checkpoint.name_or_path} halves them {factor.bit_length() - 1} times; encode at another --resolution"
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
