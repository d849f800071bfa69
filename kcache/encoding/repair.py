"""The encode that fills in what a damaged cache has lost: rows, column records and null features, nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from kcache.progress import logger
from kcache.shards import Cache, CacheError, Column, Commit, KcacheError, durable, layout
from kcache.shards.leases import writing
from kcache.shards.repair import Repair, repair
from kcache.shards.repair_records import feature_columns
from kcache.shards.salvage import Salvage, SalvagedCache, lacking_rows

from .columns import make_encoders
from .config import EncodeConfig
from .encode import encode
from .sample_rows import unknown
from .shard_encoder import store


@dataclass
class Filled:
    """What was encoded again, rows by column, and what could not be."""

    encoded: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    """By column, the samples whose features are lost, and which the dataset has no more as they were."""
    aside: list[str] = field(default_factory=list)
    """Samples of which not even the captions are left, and which the dataset has no more."""


def fill_in(config: EncodeConfig, found: Repair) -> Filled:
    """Encode from the dataset of ``config`` what ``found`` could not bring back.

    KcacheError where the encoders are not those of the cache. Killed at any moment and called again it goes on.
    """
    cache = Cache(config.cache)
    names = tuple(feature_columns(cache))
    config = replace(config, columns=names)
    lost = found.lost
    if lost.records or lost.nulls:
        with writing(cache.root):
            _restore_records(config, cache, lost)
        lost = repair(cache.root).lost  # columns that could not be read without their record can be now
    with writing(cache.root):
        for shard in lost.forgotten:
            _drop_samples(cache, shard)
    if not lost.shards:
        return Filled()
    report = encode(config, SalvagedCache(cache.root, lost))
    cache, encoded = cache.reopened(), {name: n for name, n in report.encoded.items() if n}
    aside = [row["id"] for shard in lost.forgotten for row in cache.samples(shard) if row == unknown(row["id"])]
    return Filled(encoded, _missing(cache, lost.shards), aside)


def _restore_records(config: EncodeConfig, cache: Cache, lost: Salvage) -> None:
    encoders = make_encoders(config, SalvagedCache(cache.root, lost))
    for name in sorted(lost.records | lost.nulls):
        encoder = encoders[name]
        if name in lost.records:
            column = replace(encoder.column, edition=feature_columns(cache)[name])
            _require_same(cache, column)
        else:
            column = cache.column(name)
        null = encoder.null()
        cache.restore_column(column, store(column, null, "the null features") if null else None)
        logger.info("%-12s %s", name, "its record and null features are written again")


def _require_same(cache: Cache, column: Column) -> None:
    """KcacheError where the rows of a column whose record is lost were made by another encoder than ``column``."""
    compared = False
    for path in sorted((cache.root / layout.commits(column.stem)).glob("*.json")):
        try:
            commit = Commit.load(path)
            rows = cache.samples(commit.shard)
        except CacheError:
            continue
        if any(key is not None and key == column.key_of(row) for key, row in zip(commit.keys, rows, strict=False)):
            return
        compared = compared or any(commit.keys)
    if compared:
        raise KcacheError(
            f"the record of column '{column.name}' of {cache.name} is lost, and its features were made by other"
            " options than these; name the checkpoint that they were made with, or encode into another folder"
        )


def _drop_samples(cache: Cache, shard: int) -> None:
    """Take away the unreadable commits of a shard's samples, so that its rows count as planned and not encoded yet."""
    for path in sorted((cache.root / layout.commits(layout.SAMPLES)).glob(f"{shard:06d}.*.json")):
        durable.remove(path)
    durable.sync_folder(cache.root / layout.commits(layout.SAMPLES))


def _missing(cache: Cache, shards: Iterable[int]) -> dict[str, list[str]]:
    missing: dict[str, list[str]] = {}
    for name in cache.column_names():
        column, generations = cache.column(name), cache.commits(name)
        for shard in sorted(set(shards) & generations.keys()):
            rows = cache.samples(shard)
            lacking = lacking_rows(column, cache.commit(name, shard, generations[shard]), rows)
            missing.setdefault(name, []).extend(rows[i]["id"] for i in lacking)
    return {name: ids for name, ids in missing.items() if ids}
