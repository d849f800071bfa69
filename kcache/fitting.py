"""Whether a cache fits a checkpoint: dimensions, tokens, sizes, and the encoders where the checkpoint has its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kcache.checkpoints import Checkpoint
from kcache.fingerprints import weights_sha256
from kcache.shards import Cache, Column, KcacheError

Shape = dict[str, Any]
"""The configuration of the prior or the UNet."""


def require_prior_dimensions(
    cache: Cache, checkpoint: Checkpoint, shape: Shape, text: Column | None, images: Sequence[Column]
) -> None:
    """KcacheError, naming both numbers, where a column's features are not what the prior takes."""
    if text:
        _require(cache, checkpoint, text, "hidden_states", "embedding_dim", shape["embedding_dim"])
        # Dimensions that a configuration leaves out are the embedding's own (PriorTransformer.__init__).
        _require(cache, checkpoint, text, "text_embeds", "embedding_proj_dim", _or(shape, "embedding_proj_dim"))
    for image in images:
        _require(cache, checkpoint, image, "image_embeds", "clip_embed_dim", _or(shape, "clip_embed_dim"))
    if text and text.preprocessing["max_length"] > shape["num_embeddings"]:
        raise KcacheError(
            f"the captions in {cache.name} have up to {text.preprocessing['max_length']} tokens and prior"
            f" {checkpoint.name_or_path} takes {shape['num_embeddings']}; encode with that prior's tokenizer"
        )


def require_decoder_dimensions(
    cache: Cache, checkpoint: Checkpoint, shape: Shape, latents: Sequence[Column], images: Sequence[Column]
) -> None:
    """KcacheError where a column's features are not what the UNet takes; shapes of buckets are in the rows."""
    for column in latents:
        if not column.fields[0].is_ragged:
            require_latents_shape(cache, checkpoint, column, column.fields[0].shape, shape)
    for column in images:
        _require(cache, checkpoint, column, "image_embeds", "encoder_hid_dim", shape["encoder_hid_dim"])


def require_latents_shape(
    cache: Cache, checkpoint: Checkpoint, column: Column, latents: Sequence[int | None], unet: Shape
) -> None:
    """Latents (C, H, W) must have the UNet's channels, and sides that it can halve as often as it does."""
    channels, height, width = (int(n or 0) for n in latents)
    where, halvings = f"column '{column.name}'", len(unet["block_out_channels"]) - 1
    if channels != unet["in_channels"]:
        raise _other_dimension(cache, checkpoint, where, f"latents of {channels}", "in_channels", unet["in_channels"])
    if height % 2**halvings or width % 2**halvings:
        is_bucket = column.fields[0].is_ragged
        raise KcacheError(
            f"{where} of {cache.name} has {'a bucket with ' if is_bucket else ''}latents of {height}x{width} and the"
            f" UNet of {checkpoint.name_or_path} halves them {halvings} times; encode"
            f" {'with a larger --bucket-step' if is_bucket else 'at another --resolution'}"
        )


def require_same_encoder(cache: Cache, checkpoint: Checkpoint, column: Column, subfolder: str) -> None:
    """Refuse a column made by another encoder than the checkpoint's own, where it holds one; else nothing is known."""
    if is_by_encoder_of(checkpoint, column, subfolder) is False:
        raise KcacheError(
            f"column '{column.name}' of {cache.name} was encoded with another {subfolder} (from"
            f" {column.notes.get('from')}) than that of {checkpoint.name_or_path}; encode with that checkpoint,"
            " or, if you know that they agree, add --ignore-encoder-mismatch"
        )


def is_by_encoder_of(checkpoint: Checkpoint, column: Column, subfolder: str) -> bool | None:
    """Whether the encoder in a checkpoint's folder made a column; None where the folder has none, or is on the hub."""
    folder = Path(checkpoint.base().name_or_path) / subfolder
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    groups: dict[str, list[Path]] = {}
    for file in files:  # Each variant is a set of weights of its own; the column may have been made with any.
        groups.setdefault(file.name.split(".")[1].split("-")[0], []).append(file)
    return column.encoder["weights"] in {weights_sha256(group) for group in groups.values()} if groups else None


def _or(shape: Shape, key: str) -> int:
    return int(shape.get(key) or shape["embedding_dim"])


def _require(cache: Cache, checkpoint: Checkpoint, column: Column, field: str, parameter: str, wanted: int) -> None:
    """The first fixed dimension of a field must be what the model takes."""
    (spec,) = (f for f in column.fields if f.name == field)
    have = next(n for n in spec.shape if n is not None)
    if have != wanted:
        raise _other_dimension(cache, checkpoint, f"column '{column.name}'", f"{field} of {have}", parameter, wanted)


def _other_dimension(
    cache: Cache, checkpoint: Checkpoint, where: str, have: str, parameter: str, wanted: int
) -> KcacheError:
    return KcacheError(
        f"{where} of {cache.name} has {have} and {checkpoint.name_or_path} takes {wanted} ({parameter}); encode with"
        " the encoders that belong to that checkpoint"
    )
