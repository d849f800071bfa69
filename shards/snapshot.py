"""A pinned state of some columns: which files hold which rows, and the digest that names it."""

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import durable, layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .errors import CacheError, DamageError
from .index import ENTRY, Entries, dump_index, load_index, present
from .leases import reader_lease
from .records import digest, dump_record, load_record


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
        self.cache = cache = Cache(cache.root)  # opened anew: what the caller's remembers of the plan may be old
        if lease := reader_lease(cache.root):
            weakref.finalize(self, lease.release)
        self.pinned = {name: _pin(cache, name) for name in columns}
        shards = set.intersection(*({f.shard for f in p.files} for p in self.pinned.values()))
        missing = cache.shard_count - len(shards)
        if not shards or (missing and not partial):
            raise CacheError(
                f"{cache.root}: {missing} of {cache.shard_count} shards lack {' or '.join(columns)};"
                f" finish with 'kcache encode DATASET {cache.root}'"
            )
        self.missing_shards = missing
        self.stale_rows = sum(pinned.stale for pinned in self.pinned.values())
        if self.stale_rows and not partial:
            of = ", ".join(f"{p.stale:,} in '{name}'" for name, p in self.pinned.items() if p.stale)
            raise CacheError(
                f"{cache.root} has features of samples that have changed since ({of}): the last encode was cut off, or"
                f" left these columns out by --columns; bring them up to date with 'kcache encode DATASET {cache.root}'"
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
    edited = {shard: g for shard, g in cache.commits(layout.SAMPLES).items() if g > 1}
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
        stat = (cache.root / layout.commit(stem, shard, generation)).stat()
        stats.append([shard, generation, stat.st_size, stat.st_mtime_ns])
    return stats


def _gather(cache: Cache, column: Column, generations: dict[int, int], edited: dict[int, int]) -> PinnedColumn:
    files, parts, stale = [], [], 0
    for shard, generation in generations.items():
        commit = cache.commit(column.name, shard, generation)
        if commit.index is None:
            raise DamageError(
                f"{cache.commit_path(column.name, shard, generation)} names no index; run 'kcache verify'"
            )
        entries = load_index(_read(cache, str(commit.index["file"])), str(commit.index["file"]))
        if entries.shape != (commit.rows, len(column.fields)):
            raise DamageError(f"{commit.index['file']} has {len(entries):,} rows, its commit says {commit.rows:,}")
        if shard in edited:
            outdated = stale_rows(column, commit, cache.samples(shard, edited[shard]))
            entries = entries.copy()
            entries[outdated] = 0
            stale += len(outdated)
        files.append(ShardFile(shard, generation, commit.file, commit.bytes, commit.sha256, commit.rows))
        parts.append(entries)
    entries = np.concatenate([np.zeros((0, len(column.fields)), ENTRY), *parts])
    return PinnedColumn(column, tuple(files), entries, stale)


def stale_rows(column: Column, commit: Commit, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The rows of a shard whose features are not those of the samples as they are now."""
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
        files = tuple(ShardFile(*row) for row in record["files"])
        data = _read(cache, layout.derived(f"{name}.idx"))
        if record["index_sha256"] != hashlib.sha256(data).hexdigest():
            return None
        return PinnedColumn(column, files, load_index(data, path.name), int(record["stale"]))
    except (CacheError, KeyError, TypeError):
        return None  # Derived files are never trusted to be whole: the commits are read instead.


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
    except OSError:
        pass  # A read-only or full disk: opening is slower, nothing else changes.


def _read(cache: Cache, file: str) -> bytes:
    try:
        return (cache.root / file).read_bytes()
    except FileNotFoundError:
        raise DamageError(f"{cache.root / file} is missing; run 'kcache verify {cache.root}'") from None
