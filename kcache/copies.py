"""Caches made from caches: one that is stored otherwise, or several merged into one."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kcache.cache_card import Origin, read_origin, write_card
from kcache.progress import bar
from kcache.shards import Cache, KcacheError, UsageError, dataset_options, layout
from kcache.shards.columns import differences
from kcache.shards.copying import Places, Sources, copy_rows, own_shards, recut, remaining_shards, require_finished
from kcache.shards.leases import reading, writing
from kcache.shards.losses import require_nothing_lost
from kcache.shards.objects import is_url

NAMED = 5
"""Of ids that an error is about, so many are named."""


@dataclass(frozen=True)
class ConvertConfig:
    """The options of ``kcache convert``; None: as the cache has it."""

    cache: str
    to: str
    format: str | None = None
    shard_size: int | None = None


@dataclass(frozen=True)
class MergeConfig:
    """The options of ``kcache merge``; None: as the first of the caches has it. ``prefix``: one for each, or none."""

    caches: tuple[str, ...]
    to: str
    prefix: tuple[str, ...] = ()
    format: str | None = None
    shard_size: int | None = None


@dataclass(frozen=True)
class CopyReport:
    """What was copied. ``written``: the shards that were not there yet; ``repeated``: samples that came twice."""

    to: str
    samples: int
    columns: tuple[str, ...]
    written: int
    repeated: int = 0


def convert(config: ConvertConfig) -> CopyReport:
    """Write the rows of a cache into another, in other files. KcacheError when the other holds something else.

    Shards stay as they are cut, so that an unfinished cache may be converted too, unless another size is asked for.
    """
    source = Cache(config.cache)
    require_nothing_lost(source)
    shards, shard_size = own_shards(source), config.shard_size or source.shard_size
    if shard_size != source.shard_size:
        require_finished(source)
        shards = recut(shards, shard_size)
    target = _target(config.to, [source], shard_size, config.format)
    return _copy(Sources.one(source), target, shards)


def compact(cache: str, to: str) -> CopyReport:
    """Write a cache without the rows that were removed or forgotten, in full shards. KcacheError as for `convert`.

    Rows get other places by it, and what is written once (the plan) and pinned (snapshots) is of places: so never in
    the folder itself.
    """
    source = Cache(cache)
    require_nothing_lost(source)
    require_finished(source)
    shards = recut(remaining_shards(source), source.shard_size)
    return _copy(Sources.one(source), _target(to, [source], source.shard_size, None), shards)


def merge(config: MergeConfig) -> CopyReport:
    """Write the rows of several caches into one, in their order. KcacheError when they do not go together."""
    if len(config.caches) < 2:
        raise UsageError("name two caches or more, and then the folder of the new one")
    if config.prefix and len(config.prefix) != len(config.caches):
        raise UsageError(
            f"--prefix has {len(config.prefix)} of the {len(config.caches)} prefixes; give one for each cache, '' for"
            " none"
        )
    sources = Sources([Cache(name) for name in config.caches], config.prefix or ("",) * len(config.caches))
    for cache in sources.caches:
        require_nothing_lost(cache)
    _require_same_columns(sources.caches)
    for cache in sources.caches:
        require_finished(cache)
    places, repeated = _union(sources)
    shard_size = config.shard_size or sources.caches[0].shard_size
    target = _target(config.to, sources.caches, shard_size, config.format)
    return _copy(sources, target, recut([places], shard_size), repeated)


def _copy(sources: Sources, target: Cache, shards: Sequence[Places], repeated: int = 0) -> CopyReport:
    read = [dataset_options(cache) for cache in sources.caches]
    options = read[0] if all(other == read[0] for other in read) else {}
    columns, rows = sources.caches[0].column_names(), sum(map(len, shards))
    with ExitStack() as held, bar(rows * (1 + len(columns)), "row", "copy") as progress:
        for cache in sources.caches:
            held.enter_context(reading(cache.root))
        held.enter_context(writing(target.root))
        written = copy_rows(sources, target, shards, options, progress.update)
    write_card(target, _origin(sources.caches))
    return CopyReport(target.name, rows, tuple(columns), written, repeated)


def _origin(caches: Sequence[Cache]) -> Origin:
    """What the cards of the caches say, where they say it: all names, and the licence if it is the same."""
    origins = [read_origin(cache) for cache in caches]
    names = dict.fromkeys(origin.dataset for origin in origins if origin.dataset)
    licenses = {origin.license for origin in origins}
    return Origin(" and ".join(names) or None, licenses.pop() if len(licenses) == 1 else None)


def _target(to: str, sources: Sequence[Cache], shard_size: int, container: str | None) -> Cache:
    """The cache to copy into, made now if it is not there."""
    if is_url(to):
        raise UsageError(f"{to} is in a store; name a local folder for the new cache, and copy that there")
    folder, container = Path(to).resolve(), container or sources[0].container
    for source in sources:
        if source.storage.is_local and folder.is_relative_to(source.root.resolve()):
            raise UsageError(f"{to} is {source.name} itself or lies in it; name another folder for the new cache")
    target = Cache.create(to, shard_size=shard_size, container=container)
    if (target.shard_size, target.container) != (shard_size, container):
        raise KcacheError(
            f"{to} has .{target.container} shards of {target.shard_size} samples and not .{container} shards of"
            f" {shard_size}; name another folder"
        )
    return target


def _require_same_columns(caches: Sequence[Cache]) -> None:
    first, names = caches[0], caches[0].column_names()
    for cache in caches[1:]:
        if cache.column_names() != names:
            raise KcacheError(
                f"{cache.name} has the columns {', '.join(cache.column_names()) or 'none'} and {first.name} has"
                f" {', '.join(names) or 'none'}; add what is missing with 'kcache encode'"
            )
        for name in names:
            if how := differences(first.column(name), cache.column(name)):
                raise KcacheError(
                    f"column '{name}' of {first.name} was encoded otherwise than that of {cache.name}"
                    f" ({'; '.join(how)}), so they cannot be merged; encode one like the other with 'kcache encode"
                    f" DATASET {cache.name} --replace-column {name}'"
                )


def _union(sources: Sources) -> tuple[Places, int]:
    """The rows of all caches, each id once; and how often one came again.

    A row without features gives way to one that has them, removed rows stay behind. KcacheError where an id means two
    samples.
    """
    kept: dict[str, tuple[int, int, int]] = {}
    made_from: dict[str, object] = {}
    repeated, other = 0, []
    for source, cache in enumerate(sources.caches):
        for shard, generation in cache.commits(layout.SAMPLES).items():
            for number, row in enumerate(cache.samples(shard, generation)):
                name = sources.prefixes[source] + row["id"]
                made = None if "set_aside" in row else (tuple(row["captions"]), row["sha256"])
                if "removed" in row:
                    continue
                if name in kept:
                    repeated += 1
                    if made is not None and made_from[name] not in (None, made):
                        other.append(name)
                    if made is None or made_from[name] is not None:
                        continue
                    del kept[name]
                kept[name], made_from[name] = (source, shard, number), made
    if other:
        raise KcacheError(_two_samples(sources, other))
    return np.asarray(list(kept.values()), np.int64).reshape(-1, 3), repeated


def _two_samples(sources: Sources, ids: Sequence[str]) -> str:
    named = ", ".join(f"'{name}'" for name in ids[:NAMED])
    more = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    prefixes = " ".join(f"{Path(cache.name).name}/" for cache in sources.caches)
    return (
        f"{len(ids):,} ids name other pictures or captions in one cache than in another: {named}{more}; give the ids of"
        f" each cache a prefix, such as --prefix {prefixes}, or rename the pictures and encode again"
    )
