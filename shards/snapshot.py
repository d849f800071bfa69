"""A pinned state of some columns: which files hold which rows, and the digest that names it."""

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import durable, layout
from .cache import Cache
from .columns import Column
from .commits import Commit, reference
from .errors import CacheError, DamageError
from .files import read_plain
from .index import ENTRY, Entries, check_entries, dump_index, index_size, load_index, present
from .leases import reader_lease
from .records import Record, digest, dump_record, integer, load_record


@dataclass(frozen=True)
class ShardFile:
    """One committed shard file of a column."""

    shard: int
    generation: int
    file: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class PinnedColumn:
    """The committed shard files of one column, and the index entries of their rows end to end.

    ``stale`` is the number of rows whose features were made from something that the sample is no longer: an encode was
    cut off after it noted the change. Their entries say that they have no features.
    """

    column: Column
    files: tuple[ShardFile, ...]
    entries: Entries
    stale: int = 0


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
        self.pinned = {name: _pin(cache, name) for name in columns}
        shards = set.intersection(*({f.shard for f in p.files} for p in self.pinned.values()))
        last = max((f.shard for p in self.pinned.values() for f in p.files), default=-1)
        if last >= cache.shard_count:
            raise DamageError(
                f"{cache.name} has shard {last}, and {layout.plan(last)} is missing; run 'kcache verify {cache.name}'"
            )
        missing = cache.shard_count - len(shards)
        if not shards or (missing and not partial):
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
        state: dict[str, object] = {
            n: [[f.shard, f.generation, f.sha256] for f in p.files if f.shard in shards] for n, p in self.pinned.items()
        }
        self.digest = digest(state | ({"stale": self.stale_rows} if self.stale_rows else {}))
        self.rows = self._common_rows(sorted(shards))
        if lease:
            lease.narrow(self.generations)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def generations(self) -> dict[str, list[list[int]]]:
        """``[shard, generation]`` of every file that is pinned, by the stem of its column: to compare later states."""
        return {p.column.stem: [[file.shard, file.generation] for file in p.files] for p in self.pinned.values()}

    def ordinals(self, name: str) -> npt.NDArray[np.int64]:
        """For each of `rows`, its place in the entries of one column (shape ``(n,)``)."""
        starts = np.zeros(self.cache.shard_count + 1, np.int64)
        total = 0
        for file in self.pinned[name].files:
            starts[file.shard] = total
            total += file.rows
        return np.asarray(starts[self.rows[:, 0]] + self.rows[:, 1])

    def _common_rows(self, shards: list[int]) -> npt.NDArray[np.int64]:
        whole: dict[int, npt.NDArray[np.bool_]] = {}
        for pinned in self.pinned.values():
            ends = np.cumsum([file.rows for file in pinned.files])
            for file, there in zip(pinned.files, np.split(present(pinned.entries), ends[:-1]), strict=True):
                if len(whole.setdefault(file.shard, there)) != len(there):
                    raise DamageError(f"{file.file} has {len(there):,} rows, another column {len(whole[file.shard]):,}")
                whole[file.shard] = whole[file.shard] & there
        pieces = [np.stack([np.full(len(kept), s), kept], 1) for s in shards for kept in [np.flatnonzero(whole[s])]]
        return np.concatenate(pieces).astype(np.int64)


def _pin(cache: Cache, name: str) -> PinnedColumn:
    """Read a column's current commits, through the derived copy in ``index/`` where that is up to date."""
    column, generations = cache.column(name), cache.commits(name)
    # Features newer than their samples: the samples' last commit was lost.
    edited = {shard: g for shard, g in cache.commits(layout.SAMPLES).items() if g > 1 or generations.get(shard, 0) > g}
    state = digest([[_stated(cache, n, commits)] for n, commits in ((name, generations), (layout.SAMPLES, edited))])
    derived = _load_derived(cache, name, state, column)
    if derived is None:
        derived = _gather(cache, column, generations, edited)
        _store_derived(cache, name, state, derived)
    if cache.stem(name) != column.stem:
        return _pin(cache, name)  # The column was replaced meanwhile.
    return derived


def _stated(cache: Cache, name: str, generations: dict[int, int]) -> list[list[int]]:
    """Numbers, sizes and times of change of commits: what tells that the derived index is of these."""
    stem, stats = cache.stem(name), []
    for shard, generation in generations.items():
        try:
            stat = os.lstat(cache.root / layout.commit(stem, shard, generation))
        except FileNotFoundError:
            raise DamageError(f"{layout.commit(stem, shard, generation)} vanished from {cache.name}") from None
        stats.append([shard, generation, stat.st_size, stat.st_mtime_ns])
    return stats


def _gather(cache: Cache, column: Column, generations: dict[int, int], edited: dict[int, int]) -> PinnedColumn:
    files, parts, stale = [], [], 0
    commits = [cache.commit(column.name, *commit) for commit in generations.items()]
    cache.storage.bring([commit.index for commit in commits if commit.index])
    for commit in commits:
        shard, generation, entries = commit.shard, commit.generation, load_entries(cache, column, commit)
        if shard in edited:
            outdated = stale_rows(column, commit, cache.samples(shard, edited[shard]))
            entries = entries.copy()
            entries[outdated] = 0
            stale += len(outdated)
        files.append(ShardFile(shard, generation, commit.file, commit.bytes, commit.sha256, commit.rows))
        parts.append(entries)
    entries = np.concatenate([np.zeros((0, len(column.fields)), ENTRY), *parts])
    return PinnedColumn(column, tuple(files), entries, stale)


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


def _load_derived(cache: Cache, name: str, state: str, column: Column) -> PinnedColumn | None:
    path = cache.root / layout.derived(f"{name}.json")
    if not path.is_file():
        return None
    try:
        record = load_record(path)
        if record["state"] != state or record["fingerprint"] != column.fingerprint:
            return None
        files = tuple(_shard_file(dict(zip(ShardFile.__annotations__, row, strict=True))) for row in record["files"])
        rows, most = sum(file.rows for file in files), max((file.bytes for file in files), default=0)
        size = index_size(rows, len(column.fields))
        data = read_plain(cache.root / layout.derived(f"{name}.idx"), size)
        if record["index_sha256"] != hashlib.sha256(data).hexdigest():
            return None
        entries = load_index(data, path.name)
        if entries.shape != (rows, len(column.fields)) or entries["nbytes"].max(initial=0) > most:
            return None
        return PinnedColumn(column, files, entries, integer(record, "stale"))
    except (CacheError, KeyError, TypeError, ValueError):
        return None  # Derived files are never trusted to be whole: the commits are read instead.


def _shard_file(record: Record) -> ShardFile:
    shard, generation, rows = (integer(record, name) for name in ("shard", "generation", "rows"))
    return ShardFile(shard, generation, rows=rows, **reference(record))


def _store_derived(cache: Cache, name: str, state: str, pinned: PinnedColumn) -> None:
    files: list[list[Any]] = [list(f.__dict__.values()) for f in pinned.files]
    index = dump_index(pinned.entries)
    record = {
        "state": state,
        "fingerprint": pinned.column.fingerprint,
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "files": files,
        "stale": pinned.stale,
    }
    try:
        durable.replace(cache.root / layout.derived(f"{name}.idx"), index)
        durable.replace(cache.root / layout.derived(f"{name}.json"), dump_record(record))
    except (OSError, CacheError):
        pass  # A read-only or full disk, or too many shards for one record: opening is slower, nothing else changes.
