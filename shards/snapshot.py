"""A pinned state of some columns: which files hold which rows, and the digest that names it."""

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from . import layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .derived import load_derived, store_derived
from .errors import CacheError, DamageError
from .index import ENTRY, Entries, check_entries, load_index, present
from .leases import reader_lease
from .pinned import EntriesInMemory, Numbers, PinnedColumn, ShardFile, table_of
from .records import digest

_AT_ONCE = 64
"""Commits that are in memory while what is derived from them is made."""


class Snapshot:
    """The current commits of ``columns``, pinned: later commits do not show in it.

    ``rows`` are the ``(n, 2)`` places ``(shard, row in shard)`` that hold features in all columns, in plan order;
    ``digest`` names the state, and is equal for equal commits of these columns, whatever else the cache holds.
    For as long as the object is there its files are held by a lease, and `kcache gc` leaves them where they are.
    """

    def __init__(self, cache: Cache, columns: Sequence[str], *, partial: bool = False) -> None:
        """CacheError when a column lacks shards of the plan or has stale rows, unless ``partial`` leaves these out."""
        self.cache = cache = cache.reopened()
        if lease := reader_lease(cache.root):
            weakref.finalize(self, lease.release)
        self.pinned = _pin(cache, columns)
        tables = [pinned.table["shard"] for pinned in self.pinned.values()]
        self._shards = reduce(_common, tables)
        last = max((int(table[-1]) for table in tables if len(table)), default=-1)
        if last >= cache.shard_count:
            raise DamageError(
                f"{cache.name} has shard {last}, and {layout.plan(last)} is missing; run 'kcache verify {cache.name}'"
            )
        missing = cache.shard_count - len(self._shards)
        if not len(self._shards) or (missing and not partial):
            raise CacheError(
                f"{cache.name}: {missing} of {cache.shard_count} shards lack {' or '.join(columns)};"
                f" finish with 'kcache encode DATASET {cache.name}'"
            )
        self.missing_shards = missing
        self.stale_rows = sum(pinned.stale for pinned in self.pinned.values())
        if self.stale_rows and not partial:
            of = ", ".join(f"{p.stale:,} in '{name}'" for name, p in self.pinned.items() if p.stale)
            raise CacheError(
                f"{cache.name} has features of samples that have changed since ({of}): the last encode was cut off, or"
                f" left these columns out by --columns; bring them up to date with 'kcache encode DATASET {cache.name}'"
            )
        state: dict[str, object] = {name: self._state(pinned) for name, pinned in self.pinned.items()}
        self.digest = digest(state | ({"stale": self.stale_rows} if self.stale_rows else {}))
        self._starts, self._gaps = self._common_rows()
        if lease:
            lease.narrow(self.generations)

    def __len__(self) -> int:
        return int(self._starts[-1]) - len(self._gaps)

    @property
    def generations(self) -> dict[str, list[list[int]]]:
        """``[shard, generation]`` of every file that is pinned, by the stem of its column: to compare later states."""
        return {p.column.stem: p.table[["shard", "generation"]].tolist() for p in self.pinned.values()}

    @property
    def rows(self) -> Numbers:
        """The places ``(shard, row in shard)`` that hold features in all columns, in plan order (shape ``(n, 2)``)."""
        return self.places(np.arange(len(self)))

    def places(self, positions: Numbers) -> Numbers:
        """The places of some of `rows` (shape ``(k, 2)``); all of them may be more than memory should hold."""
        ordinals, files = self._find(positions)
        return np.stack([self._shards[files], ordinals - self._starts[files]], 1)

    def place(self, position: int) -> tuple[int, int]:
        """The shard and the row in it of one position."""
        shard, row = self.places(np.array([position]))[0].tolist()
        return int(shard), int(row)

    def lookup(self, name: str, positions: Numbers) -> tuple[Numbers, Numbers]:
        """Of some of `rows`, the shards and the places among the entries of one column (shape ``(k,)`` each)."""
        ordinals, files = self._find(positions)
        shards, pinned = self._shards[files], self.pinned[name]
        own = np.searchsorted(pinned.table["shard"], shards)
        return shards, ordinals - self._starts[files] + pinned.starts[own]

    def _find(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """Of some of `rows`, the places among the rows of all common shards, and which of these shards each is in."""
        ordinals = positions + np.searchsorted(self._gaps, positions, side="right")
        return ordinals, np.searchsorted(self._starts, ordinals, side="right") - 1

    def _state(self, pinned: PinnedColumn) -> list[tuple[int, int, str]]:
        """What names the state of one column: number, generation and sha256 of its file of every common shard."""
        table = pinned.table[np.isin(pinned.table["shard"], self._shards)]
        return [
            (shard, generation, sha256.hex())
            for shard, generation, sha256 in table[["shard", "generation", "sha256"]].tolist()
        ]

    def _common_rows(self) -> tuple[Numbers, Numbers]:
        """Where the rows of each common shard begin, and what tells which of them lack features in some column.

        That is, for each such row, how many that have features come before it: to be counted in with `np.searchsorted`.
        """
        starts, absent = np.zeros(len(self._shards) + 1, np.int64), np.zeros(0, np.int64)
        for number, pinned in enumerate(self.pinned.values()):
            own = np.searchsorted(pinned.table["shard"], self._shards)
            rows = pinned.table["rows"][own]
            if not number:
                starts[1:] = np.cumsum(rows)
            elif (wrong := np.flatnonzero(rows != np.diff(starts))).size:
                file, there = pinned.file(int(self._shards[wrong[0]])), int(np.diff(starts)[wrong[0]])
                raise DamageError(f"{file.file} has {file.rows:,} rows, another column {there:,}")
            files = np.searchsorted(pinned.starts, pinned.absent, side="right") - 1
            common = np.searchsorted(self._shards, pinned.table["shard"][files])
            inside = self._shards[np.minimum(common, len(self._shards) - 1)] == pinned.table["shard"][files]
            moved = pinned.absent - pinned.starts[files] + starts[np.minimum(common, len(self._shards) - 1)]
            absent = _union(absent, moved[inside])
        return starts, absent - np.arange(len(absent))


def _common(some: Numbers, others: Numbers) -> Numbers:
    """What two lists have in common, of which none has a number twice; ascending."""
    return np.intersect1d(some, others, assume_unique=True)


def _union(some: Numbers, others: Numbers) -> Numbers:
    """All of two lists of ordinals, ascending. numpy's own imports its masked arrays first, for 0.13 s."""
    both = np.sort(np.concatenate([some, others]))
    return both[np.diff(both, prepend=-1) > 0]


def _pin(cache: Cache, names: Sequence[str]) -> dict[str, PinnedColumn]:
    """Read the current commits of some columns, through the derived copies in ``index/`` that are up to date."""
    columns = {name: cache.column(name) for name in names}
    current = {name: cache.commits(name) for name in names}
    samples = cache.commits(layout.SAMPLES)
    pinned = {name: _pin_one(cache, columns[name], current[name], samples) for name in names}
    if any(cache.stem(name) != column.stem for name, column in columns.items()):
        return _pin(cache, names)  # A column was replaced meanwhile.
    return pinned


def _pin_one(cache: Cache, column: Column, generations: dict[int, int], samples: dict[int, int]) -> PinnedColumn:
    # Features newer than their samples: the samples' last commit was lost.
    edited = {shard: g for shard, g in samples.items() if g > 1 or generations.get(shard, 0) > g}
    state = digest(
        [[_stated(cache, n, commits)] for n, commits in ((column.name, generations), (layout.SAMPLES, edited))]
    )
    derived = load_derived(cache, column.name, state, column)
    if derived is None:
        derived = _gather(cache, column, generations, edited)
        store_derived(cache, column.name, state, derived)
    return derived


def _stated(cache: Cache, name: str, generations: dict[int, int]) -> list[list[int]]:
    """Numbers, sizes and times of change of commits: what tells that the derived index is of these."""
    root, stem, stats = str(cache.root), cache.stem(name), []
    for shard, generation in generations.items():
        file = layout.commit(stem, shard, generation)
        try:
            stat = os.lstat(f"{root}/{file}")
        except FileNotFoundError:
            raise DamageError(f"{file} vanished from {cache.name}") from None
        stats.append([shard, generation, stat.st_size, stat.st_mtime_ns])
    return stats


def _gather(cache: Cache, column: Column, generations: dict[int, int], edited: dict[int, int]) -> PinnedColumn:
    files, parts, stale = [], [], 0
    for commit, entries in _committed(cache, column, generations):
        shard, generation = commit.shard, commit.generation
        if shard in edited:
            outdated = stale_rows(column, commit, cache.samples(shard, edited[shard]))
            entries = entries.copy()
            entries[outdated] = 0
            stale += len(outdated)
        files.append(ShardFile(shard, generation, commit.file, commit.bytes, commit.sha256, commit.rows))
        parts.append(entries)
    entries = np.concatenate([np.zeros((0, len(column.fields)), ENTRY), *parts])
    usual = {file.shard: layout.shard(column.stem, file.shard, file.sha256, cache.container) for file in files}
    names = {file.shard: file.file for file in files if file.file != usual[file.shard]}
    absent = np.flatnonzero(~present(entries))
    return PinnedColumn(column, cache.container, table_of(files), EntriesInMemory(entries), absent, stale, names)


def _committed(cache: Cache, column: Column, generations: dict[int, int]) -> Iterator[tuple[Commit, Entries]]:
    """The commits of a column with their indices; some at a time, since each holds a key for every row."""
    named = list(generations.items())
    for start in range(0, len(named), _AT_ONCE):
        commits = [cache.commit(column.name, *one) for one in named[start : start + _AT_ONCE]]
        cache.storage.bring([commit.index for commit in commits if commit.index])
        yield from ((commit, load_entries(cache, column, commit)) for commit in commits)


def load_entries(cache: Cache, column: Column, commit: Commit) -> Entries:
    """The index of one shard file; DamageError unless it was committed, and is of these rows and fields."""
    if commit.index is None:
        path = cache.commit_path(column.name, commit.shard, commit.generation)
        raise DamageError(f"{path} names no index; run 'kcache verify {cache.name}'")
    name = str(commit.index["file"])
    entries = load_index(cache.read_committed(commit.index), name)
    check_entries(entries, column.fields, commit.bytes, name)
    if present(entries).tolist() != [key is not None for key in commit.keys]:
        raise DamageError(f"{name} has {len(entries):,} rows or gaps that are not those of its commit")
    return entries


def stale_rows(column: Column, commit: Commit, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The rows of a shard whose features are not those of the samples as they are now."""
    if len(rows) != commit.rows:
        raise DamageError(f"{commit.file} has {commit.rows:,} rows, its samples are {len(rows):,}")
    pairs = enumerate(zip(commit.keys, rows, strict=True))
    return [i for i, (key, row) in pairs if key is not None and key != column.key_of(row)]
