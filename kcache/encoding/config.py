"""The options of ``kcache encode``."""

from dataclasses import dataclass

from kcache.checkpoints import DECODER, PRIOR


@dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, with what, to where. None means: as the cache has it, or the default for a new one."""

    dataset: str
    cache: str
    pretrained_prior_model_name_or_path: str = PRIOR
    pretrained_decoder_model_name_or_path: str = DECODER
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    resolution: tuple[int, ...] = (512,)
    columns: tuple[str, ...] = ()
    format: str | None = None
    shard_size: int | None = None
    batch_size: int = 16
    encode_dtype: str | None = None
    store_dtype: str | None = None
    device: str | None = None
    alpha: str = "white"
    image_column: str = "image"
    caption_column: str = "text"
    dataset_config_name: str | None = None
    split: str = "train"
    workers: int | None = None
    dry_run: bool = False


DEFAULT_SHARD_SIZE = 256
"""Samples in a shard: about 20 MB of captions, embeddings and 512 px latents in fp16; a kill costs little more."""
