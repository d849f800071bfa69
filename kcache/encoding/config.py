"""The options of ``kcache encode``."""

from dataclasses import dataclass

DEFAULT_SHARD_SIZE = 256
"""Samples in a shard: about 20 MB of captions, embeddings and 512 px latents in fp16; a kill costs little more."""

DEFAULT_RESOLUTION = 512
"""Side of the pictures of a new cache, in pixels, as in the reference."""


DEFAULT_SPLIT = "train"

DEFAULT_MAX_PIXELS = 2**28
"""Width times height of the largest picture that is not set aside: 16,384 x 16,384."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What is encoded, with what, to where. None or empty means: as the cache has it, or the default for a new one."""

    dataset: str
    cache: str

    # The encoders.
    pretrained_prior_model_name_or_path: str | None = None
    pretrained_decoder_model_name_or_path: str | None = None
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    encode_dtype: str | None = None
    store_dtype: str | None = None
    device: str | None = None
    batch_size: int | None = None
    compile: bool = False

    # Which columns.
    columns: tuple[str, ...] = ()
    resolution: tuple[int, ...] = ()
    flip: bool = False
    buckets: bool = False
    bucket_step: int | None = None  # 64 pixels
    random_crops: int = 0
    crop_scale: float | None = None  # from 0.8 of the largest square
    crop_seed: int | None = None  # 0
    caption_template: str | None = None
    text_column: str | None = None
    trim_captions: bool | None = None  # padded, as in the reference
    alpha: str | None = None

    # The cache.
    format: str | None = None
    shard_size: int | None = None
    replace_column: tuple[str, ...] = ()
    prune: bool = False
    license: str | None = None  # of the data, for the cache's card
    local_cache: str | None = None  # for a cache in a store: see `LocalCache.default`
    local_cache_size: str | None = None

    # The dataset.
    image_column: str | None = None
    caption_column: str | None = None
    id_column: str | None = None
    where: str | None = None
    dataset_config_name: str | None = None
    split: str | None = None  # train
    streaming: bool | None = None
    rehash: bool = False
    max_pixels: int | None = None  # 2**28
    remembered: frozenset[str] = frozenset()
    """Which of these are as the cache has them, by the names of `DatasetOptions`."""

    max_upscale: float = 2.0

    workers: int | None = None
    dry_run: bool = False
