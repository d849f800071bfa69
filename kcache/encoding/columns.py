"""From the names of columns to the encoders that fill them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kcache.checkpoints import DECODER, PRIOR, Checkpoint
from kcache.devices import find_device
from kcache.shards import Cache, Column, UsageError

from .config import DEFAULT_RESOLUTION, EncodeConfig
from .encoders import STORE_DTYPES, Encoder, ImageColumn, LatentsColumn, Precision, TextColumn


@dataclass(frozen=True)
class Encoders:
    """What every column is made with. A precision of None is the column's own, or the device's default if it is new."""

    prior: Checkpoint
    decoder: Checkpoint
    alpha: str
    encode_dtype: str | None
    store_dtype: str | None
    device: str | None


def _text(name: str, with_: Encoders, precision: Precision) -> Encoder:
    return TextColumn(name, with_.prior, precision)


def _image(name: str, with_: Encoders, precision: Precision) -> Encoder:
    return ImageColumn(name, with_.prior, precision, with_.alpha)


def _latents(name: str, with_: Encoders, precision: Precision) -> Encoder:
    return LatentsColumn(name, with_.decoder, precision, with_.alpha, int(name.removeprefix("latents-")))


COLUMNS: dict[str, Callable[[str, Encoders, Precision], Encoder]] = {
    r"text": _text,
    r"image": _image,
    r"latents-[1-9]\d*": _latents,
}
"""What makes a column, by the pattern of its name. A new kind is one line here and one class in encoders.py."""


def column_names(columns: Sequence[str], resolutions: Sequence[int]) -> list[str]:
    """The columns to encode: those named, or text, image and the latents of each resolution."""
    latents = [f"latents-{n}" for n in dict.fromkeys(resolutions)]
    names = ["text", "image", *latents]
    if columns:
        # `--columns latents --resolution 512 768` means all latents that are named by a resolution.
        names = [n for c in dict.fromkeys(columns) for n in (latents if c == "latents" else [c])]
    return list(dict.fromkeys(names))


def make_encoders(config: EncodeConfig, cache: Cache | None) -> dict[str, Encoder]:
    """The encoder of every column that ``config`` asks for. What it leaves open is as the cache has it."""

    def checkpoint(name: str) -> Checkpoint:
        return Checkpoint(name, config.revision, config.variant, config.cache_dir)

    with_ = Encoders(
        checkpoint(config.pretrained_prior_model_name_or_path or PRIOR),
        checkpoint(config.pretrained_decoder_model_name_or_path or DECODER),
        config.alpha or "white",
        config.encode_dtype,
        config.store_dtype,
        config.device,
    )
    names = column_names(config.columns, config.resolution or (DEFAULT_RESOLUTION,))
    return {name: make_encoder(name, with_, cache) for name in names}


def make_encoder(name: str, with_: Encoders, cache: Cache | None) -> Encoder:
    """The encoder of one column. UsageError for a name that no pattern fits."""
    for pattern, make in COLUMNS.items():
        if re.fullmatch(pattern, name):
            existing = cache.column(name) if cache and name in cache.column_names() else None
            return make(name, with_, _precision(with_, existing))
    raise UsageError(
        f"there is no column '{name}'; columns are text, image and latents-N, with N a resolution in pixels"
    )


def _precision(with_: Encoders, existing: Column | None) -> Precision:
    device = find_device(with_.device)
    encode = existing.encode_dtype if existing else "fp32" if device.type == "cpu" else "fp16"
    stored = {numpy: name for name, numpy in STORE_DTYPES.items()}
    store = stored[existing.fields[0].dtype] if existing else "fp16"
    return Precision(with_.encode_dtype or encode, with_.store_dtype or store, device)
