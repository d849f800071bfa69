"""Checks a cache against its own commits, file by file, and says what each fault is and costs."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import layout
from .cache import Cache
from .commits import Commit
from .dataset_options import dataset_options
from .errors import CacheError
from .index import load_index
from .leases import reading
from .reader import read_null
from .records import load_lines


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was committed. ``path`` is relative to the cache."""

    path: str
    problem: str


@dataclass
class Verification:
    """What `verify` looked at and what it found."""

    files: int = 0
    bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    missing_shards: dict[str, int] = field(default_factory=dict)
    """Shards of the plan that a column does not have yet: unfinished work, not damage."""


def verify(cache: Cache, *, deep: bool = False, progress: Callable[[int], None] = lambda nbytes: None) -> Verification:
    """Check records, sizes and indexes; with ``deep`` also the sha256 of every shard and the crc32 of every sample.

    Never raises for damage: each fault becomes a line of the result. ``progress`` is told the bytes of each file done.
    """
    result = Verification()
    with reading(cache.root):
        for path, problem in _faults(cache, deep, result, progress):
            result.faults.append(Fault(path, problem))
    return result


def committed_bytes(cache: Cache) -> int:
    """Bytes of all current shard files, by their commits; the total of `verify`'s progress."""
    return sum(commit.bytes for commit in _readable_commits(cache))


def _readable_commits(cache: Cache) -> Iterator[Commit]:
    """The current commits of all columns but those that are damaged, which `verify` names."""
    for name in _columns(cache):
        for shard, generation in cache.commits(name).items():
            try:
                yield cache.commit(name, shard, generation)
            except CacheError:
                continue


def _faults(
    cache: Cache, deep: bool, result: Verification, progress: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    rows = []
    try:
        shards = cache.shard_count
    except CacheError as error:
        yield "plan", str(error)
        return
    for shard in range(shards):
        try:
            rows.append(len(cache.planned_ids(shard)))
        except (CacheError, KeyError, TypeError) as error:
            yield layout.plan(shard), str(error)
            rows.append(-1)
    try:
        dataset_options(cache)
    except CacheError as error:
        yield layout.DATASET, str(error)
    for name in _columns(cache):
        if name != layout.SAMPLES:
            yield from _column_faults(cache, name)
        generations = cache.commits(name)
        result.missing_shards[name] = shards - len(generations)
        for shard, generation in generations.items():
            path = cache.commit_path(name, shard, generation).relative_to(cache.root).as_posix()
            try:
                commit = cache.commit(name, shard, generation)
            except CacheError as error:
                yield path, str(error)
                continue
            if shard >= shards:
                yield path, f"belongs to shard {shard}, which the plan does not have: {layout.plan(shard)} is missing"
            elif rows[shard] not in (-1, commit.rows):
                yield path, f"has {commit.rows:,} rows, the plan of shard {shard} has {rows[shard]:,}"
            result.files += 1
            result.bytes += commit.bytes
            result.rows[name] = result.rows.get(name, 0) + commit.rows
            yield from _file_faults(cache, commit, deep)
            progress(commit.bytes)


def _columns(cache: Cache) -> list[str]:
    """The samples column, and those with a record or with commits: a lost record must not hide its column."""
    committed = sorted(p.name for p in (cache.root / "commits").glob("*") if layout.is_column_name(p.name))
    return list(dict.fromkeys([layout.SAMPLES, *cache.column_names(), *committed]))


def _column_faults(cache: Cache, name: str) -> Iterator[tuple[str, str]]:
    try:
        column = cache.column(name)
        if column.null is not None:
            read_null(cache, column)
    except CacheError as error:
        yield layout.column(cache.stem(name)), str(error)


def _file_faults(cache: Cache, commit: Commit, deep: bool) -> Iterator[tuple[str, str]]:
    path = cache.root / commit.file
    if not path.is_file():
        yield commit.file, "is missing"
        return
    if (size := path.stat().st_size) != commit.bytes:
        yield commit.file, f"has {size:,} bytes, its commit says {commit.bytes:,}"
        return
    if commit.index is None:
        yield from _lines_faults(path, commit)
        return
    index_path = cache.root / str(commit.index["file"])
    data = index_path.read_bytes() if index_path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != commit.index["sha256"]:
        yield str(commit.index["file"]), "is missing or does not match its sha256"
    elif deep:
        yield from _deep_faults(cache, commit, path, data)


def _lines_faults(path: Path, commit: Commit) -> Iterator[tuple[str, str]]:
    try:
        rows = len(load_lines(path))
    except CacheError as error:
        yield commit.file, str(error)
        return
    if rows != commit.rows or hashlib.sha256(path.read_bytes()).hexdigest() != commit.sha256:
        yield commit.file, f"has {rows:,} rows and another sha256 than its commit, which says {commit.rows:,} rows"


def _deep_faults(cache: Cache, commit: Commit, path: Path, index: bytes) -> Iterator[tuple[str, str]]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() == commit.sha256:
        return
    entries = load_index(index, commit.file)
    crcs = [[zlib.crc32(data[e["offset"] :][: e["nbytes"]]) == e["crc32"] for e in row] for row in entries]
    bad = [i for i, row in enumerate(crcs) if not all(row)]
    try:
        ids = cache.ids(commit.shard)
    except CacheError:
        ids = []
    names = ", ".join(repr(ids[i]) if i < len(ids) else f"row {i}" for i in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    lost = f"samples {names}{more} are damaged" if bad else "no sample is damaged, only the bytes between them"
    yield commit.file, f"does not match its sha256: {lost}"
