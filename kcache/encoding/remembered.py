"""How a dataset is read: as the options say, else as the last encode into the cache did, else the default."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kcache.progress import logger
from kcache.shards import Cache, KcacheError, dataset_options
from kcache.shards.records import Record

from .config import DEFAULT_MAX_PIXELS, DEFAULT_SPLIT, EncodeConfig
from .dataset import DatasetOptions, flag_of

REMEMBERED = ("image_column", "caption_column", "id_column", "where", "config_name", "split", "streaming", "max_pixels")
"""What shapes ids, captions and the choice of samples, as `DatasetOptions` calls it, and what sets pictures aside."""

_OF_CONFIG = {"config_name": "dataset_config_name"}
_DEFAULTS = {"split": DEFAULT_SPLIT, "streaming": False, "max_pixels": DEFAULT_MAX_PIXELS}


def with_remembered(config: EncodeConfig, cache: Cache | None) -> EncodeConfig:
    """The config with what it leaves open as the cache has it; says so. An empty text stands for the default."""
    kept = dataset_options(cache) if cache else {}
    if cache and (strange := [name for name in REMEMBERED if name in kept and type(kept[name]) is not _type(name)]):
        raise KcacheError(
            f"{cache.name}/dataset says of {', '.join(strange)} what kcache never writes; encode into another folder"
        )
    given = {name: value for name in REMEMBERED if (value := getattr(config, _OF_CONFIG.get(name, name))) is not None}
    used = {name: kept[name] for name in REMEMBERED if name in kept and name not in given}
    if used:
        logger.info("reading the dataset as before: %s", spelled(used))
    for name, value in given.items():
        if name in kept and kept[name] != value:
            logger.info("reading the dataset otherwise than before: it was %s", spelled({name: kept[name]}))
    chosen: dict[str, Any] = {
        _OF_CONFIG.get(name, name): None if _is_default(name, v) else v for name, v in (used | given).items()
    }
    return replace(config, **chosen, remembered=frozenset(used))


def to_remember(config: EncodeConfig) -> Record:
    """What of a config that `with_remembered` gave is other than the default."""
    values = {name: getattr(config, _OF_CONFIG.get(name, name)) for name in REMEMBERED}
    return {name: value for name, value in values.items() if value is not None}


def reading_options(config: EncodeConfig) -> DatasetOptions:
    """How the dataset of a config is opened."""
    return DatasetOptions(
        image_column=config.image_column,
        caption_column=config.caption_column,
        id_column=config.id_column,
        where=config.where,
        config_name=config.dataset_config_name,
        split=config.split or DEFAULT_SPLIT,
        cache_dir=config.cache_dir,
        streaming=bool(config.streaming),
        remembered=config.remembered,
    )


def spelled(options: Mapping[str, object]) -> str:
    """Options as they are typed."""
    return " ".join(
        f"--{flag_of(name)}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in options.items()
    )


def _type(name: str) -> type:
    return {"streaming": bool, "max_pixels": int}.get(name, str)


def _is_default(name: str, value: object) -> bool:
    return value in ("", _DEFAULTS.get(name))
