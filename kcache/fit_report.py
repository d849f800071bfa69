"""Whether each column of a cache fits a checkpoint: what `kcache info --fits` says."""

from dataclasses import dataclass
from typing import Any

from kcache.checkpoints import SUBFOLDERS, Checkpoint
from kcache.fitting import (
    is_by_encoder_of,
    require_decoder_dimensions,
    require_latents_shape,
    require_prior_dimensions,
    require_same_encoder,
)
from kcache.shards import Cache, Column, ColumnReader, KcacheError, Snapshot

READ = {"prior": ("text", "image"), "decoder": ("latents", "image")}
"""The kinds of columns that training of each stage reads."""

ENCODERS = {("prior", "text"): "text_encoder", ("prior", "image"): "image_encoder", ("decoder", "latents"): "movq"}
"""By stage and kind of column, the component of the stage's checkpoint that makes it."""


@dataclass(frozen=True)
class Fit:
    """One column and one stage of a checkpoint."""

    column: str
    checkpoint: str
    stage: str
    why_not: str | None
    """The sentence of what does not fit; None where it fits."""
    encoder_compared: bool
    """Whether the checkpoint's own encoder was there to be compared with the one that made the column."""


def fits(cache: Cache, name: str) -> list[Fit]:
    """Every column that a stage of the checkpoint reads. KcacheError where it has neither a prior nor a UNet.

    Of a checkpoint on the hub only configurations are downloaded.
    """
    found, columns = [], [cache.column(column) for column in cache.column_names()]
    for stage, (checkpoint, shape) in _stages(Checkpoint(name)).items():
        for column in columns:
            if _kind(column) in READ[stage]:
                encoder = ENCODERS.get((stage, _kind(column)))
                compared = encoder is not None and is_by_encoder_of(checkpoint, column, encoder) is not None
                why_not = _why_not(cache, checkpoint, shape, stage, column)
                found.append(Fit(column.name, name, stage, why_not, compared))
    return found


def _stages(checkpoint: Checkpoint) -> dict[str, tuple[Checkpoint, dict[str, Any]]]:
    """The stages that a checkpoint holds, with the configurations of their models."""
    configs = {stage: checkpoint.config(subfolder) for stage, subfolder in SUBFOLDERS.items()}
    found = {stage: (checkpoint, config) for stage, config in configs.items() if config is not None}
    if not found and checkpoint.base() != checkpoint:  # a LoRA belongs to what it was trained from
        return _stages(checkpoint.base())
    if not found:
        raise KcacheError(
            f"checkpoint {checkpoint.name_or_path} has neither 'prior' nor 'unet'; name a folder or hub id in the"
            " layout of kandinsky-community/kandinsky-2-2-prior or -decoder"
        )
    return found


def _why_not(cache: Cache, checkpoint: Checkpoint, shape: dict[str, Any], stage: str, column: Column) -> str | None:
    """What training would say of this column."""
    try:
        if stage == "prior":
            text = column if _kind(column) == "text" else None
            require_prior_dimensions(cache, checkpoint, shape, text, [] if text else [column])
        else:
            latents = [column] if _kind(column) == "latents" else []
            require_decoder_dimensions(cache, checkpoint, shape, latents, [] if latents else [column])
            for found in _bucket_shapes(cache, column) if latents and column.fields[0].is_ragged else ():
                require_latents_shape(cache, checkpoint, column, found, shape)
        if encoder := ENCODERS.get((stage, _kind(column))):
            require_same_encoder(cache, checkpoint, column, encoder)
    except KcacheError as error:
        return str(error)
    return None


def _bucket_shapes(cache: Cache, column: Column) -> list[tuple[int, ...]]:
    """Every shape (C, H, W) that occurs among the latents of a column with buckets, sorted."""
    snapshot = Snapshot(cache, [column.name], partial=True)
    reader = ColumnReader(snapshot, column.name)
    shapes = {tuple(reader.read(position, "shape").tolist()) for position in range(len(snapshot))}
    reader.close()
    return sorted(shapes)


def _kind(column: Column) -> str:
    return column.name.partition("-")[0]
