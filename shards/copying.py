"""Rows of committed shards copied into another cache: bit for bit, a shard file at a time, resumable."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from . import durable, layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .dataset_options import keep_dataset_options
from .errors import CacheError
from .reader import read_null
from .records import Record
from .rewrite import read_rows
from .snapshot import Snapshot
from .tar import Row

Places = npt.NDArray[np.int64]
"""Rows to copy, in order: shape (rows, 3) with the number of the source, the shard and the row in it."""


@dataclass(frozen=True)
class Sources:
    """Caches with the same columns, and what is put before the ids of each."""

    caches: Sequence[Cache]
    prefixes: Sequence[str]

    @classmethod
    def one(cls, cache: Cache) -> "Sources":
        """A single cache, its ids as they are."""
        return cls([cache], [""])

    def ids(self, source: int, shard: int) -> list[str]:
        """What the samples of one shard are called in the copy."""
        return [self.prefixes[source] + name for name in self.caches[source].ids(shard)]


def own_shards(cache: Cache) -> list[Places]:
    """All rows of a cache in shards as it has them, unfinished and removed ones too."""
    return [_places(shard, range(len(cache.planned_ids(shard)))) for shard in range(cache.shard_count)]


def recut(shards: Sequence[Places], shard_size: int) -> list[Places]:
    """The same rows in full shards of ``shard_size``, and a last one that may be shorter."""
    rows = np.concatenate([np.zeros((0, 3), np.int64), *shards])
    return [rows[start : start + shard_size] for start in range(0, len(rows), shard_size)]


def remaining_shards(cache: Cache) -> list[Places]:
    """The rows of a cache that were neither removed nor forgotten, by the shard that they are in."""
    generations = cache.commits(layout.SAMPLES)
    cache.bring_samples()
    return [
        _places(shard, [i for i, row in enumerate(cache.samples(shard, generation)) if "removed" not in row])
        for shard, generation in generations.items()
    ]


def require_finished(cache: Cache) -> None:
    """CacheError unless every column has every shard of the plan and is up to date with its samples.

    Rows that are cut into other shards must be whole: of a shard that is half encoded nobody could see what it lacks.
    """
    if not cache.column_names():
        raise CacheError(f"{cache.name} has no columns yet; finish it with 'kcache encode DATASET {cache.name}'")
    Snapshot(cache, cache.column_names())


def copy_rows(
    sources: Sources,
    target: Cache,
    shards: Sequence[Places],
    dataset_options: Record,
    progress: Callable[[int], object] = lambda rows: None,
) -> int:
    """Make ``target`` hold these rows, all columns and null features of theirs; returns how many shards were written.

    Values, keys and fingerprints are those of the sources. Killed at any moment and called again it goes on, and ends
    with the bytes that it would have had. ``progress`` is told the rows of every shard of every column.
    CacheError, with nothing lost, where the target holds other rows; DamageError where a source is damaged.
    """
    durable.clear_dead_temporaries(target.root)
    keep_dataset_options(target, dataset_options)
    _write_plan(sources, target, shards)
    names = sources.caches[0].column_names()
    columns = [_write_column(sources.caches[0], target, name) for name in names]
    written = _copy_samples(sources, target, shards, progress)
    return written + sum(_copy_column(sources, target, shards, column, progress) for column in columns)


def _places(shard: int, rows: Iterable[int]) -> Places:
    """Rows of one shard of the first source."""
    places = [(0, shard, row) for row in rows]
    return np.asarray(places, np.int64).reshape(-1, 3)


def _write_plan(sources: Sources, target: Cache, shards: Sequence[Places]) -> None:
    """All of it before any column, so that no moment shows a cache that is whole and smaller."""
    planned = target.shard_count
    if planned > len(shards):
        raise _other(target, f"it has {planned:,} shards and the copy {len(shards):,}")
    ids_of = lru_cache(maxsize=1)(sources.ids)
    for number, places in enumerate(shards):
        ids = [ids_of(source, shard)[row] for source, shard, row in places.tolist()]
        if number < planned and target.planned_ids(number) != ids:
            raise _other(target, f"{layout.plan(number)} has other samples")
        target.extend_plan(ids, number)


def _write_column(source: Cache, target: Cache, name: str) -> Column:
    """The column's current edition, which is the first one of its copy."""
    column = source.column(name)
    null = read_null(source, column) if column.null else None
    return target.add_column(replace(column, null=None, edition=1), null)


def _copy_samples(sources: Sources, target: Cache, shards: Sequence[Places], progress: Callable[[int], object]) -> int:
    commits, done, written = _Commits(sources.caches, layout.SAMPLES), target.commits(layout.SAMPLES), 0

    @lru_cache(maxsize=1)
    def rows_of(source: int, shard: int) -> list[Record]:
        ids = sources.ids(source, shard)
        rows = sources.caches[source].rows_of(commits.get(source, shard))
        return [{**row, "id": name} for row, name in zip(rows, ids, strict=True)]

    for number, places in enumerate(shards):
        if not commits.has_all(places):
            continue
        rows = [rows_of(source, shard)[row] for source, shard, row in places.tolist()]
        keys = commits.keys(places)
        if number not in done:
            target.commit_samples(number, rows, keys, commits.generation(places))
            written += 1
        elif target.samples(number, done[number]) != rows:
            raise _other(target, f"shard {number} has other samples")
        progress(len(places))
    return written


def _copy_column(
    sources: Sources, target: Cache, shards: Sequence[Places], column: Column, progress: Callable[[int], object]
) -> int:
    commits, done, written = _Commits(sources.caches, column.name), target.commits(column.name), 0
    own_columns = [cache.column(column.name) for cache in sources.caches]

    @lru_cache(maxsize=1)
    def rows_of(source: int, shard: int) -> dict[int, Row]:
        commit = commits.get(source, shard)
        with_features = [i for i, key in enumerate(commit.keys) if key is not None]
        return read_rows(sources.caches[source], own_columns[source], commit, with_features)

    for number, places in enumerate(shards):
        if not commits.has_all(places):
            continue
        keys = commits.keys(places)
        if number not in done:
            rows = [rows_of(source, shard).get(row) for source, shard, row in places.tolist()]
            target.commit_features(column, number, rows, keys, commits.generation(places))
            written += 1
        elif list(target.commit(column.name, number, done[number]).keys) != keys:
            raise _other(target, f"shard {number} of '{column.name}' was made from other rows")
        progress(len(places))
    return written


class _Commits:
    """The current commits of one column of several caches."""

    def __init__(self, caches: Sequence[Cache], name: str) -> None:
        self._caches, self._name = caches, name
        self._generations = [cache.commits(name) for cache in caches]
        self.get: Callable[[int, int], Commit] = lru_cache(maxsize=2)(self._load)

    def _load(self, source: int, shard: int) -> Commit:
        return self._caches[source].commit(self._name, shard, self._generations[source][shard])

    def has_all(self, places: Places) -> bool:
        """Whether every row's shard is committed."""
        return all(shard in self._generations[source] for source, shard in _shards_of(places))

    def keys(self, places: Places) -> list[str | None]:
        """The key of every row."""
        return [self.get(source, shard).keys[row] for source, shard, row in places.tolist()]

    def generation(self, places: Places) -> int:
        """The highest of those that the rows come from.

        A reader looks for rows that lag behind their samples only where the samples have a generation above 1.
        """
        return max(self._generations[source][shard] for source, shard in _shards_of(places))


def _shards_of(places: Places) -> list[tuple[int, int]]:
    return [(source, shard) for source, shard in np.unique(places[:, :2], axis=0).tolist()]


def _other(target: Cache, how: str) -> CacheError:
    return CacheError(
        f"{target.name} holds something else than this copy ({how}): it was made from other rows, or these have changed"
        " since; remove it, or name another folder"
    )
