"""Checks a cache against its own commits, file by file, and says what each fault is and costs."""

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from . import layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .dataset_options import dataset_options, dataset_records
from .errors import CacheError, DamageError
from .files import open_plain
from .index import Entries
from .leases import reading
from .losses import RECORD_IS_LOST, SAMPLES_ARE_LOST, lost_records, lost_samples
from .reader import read_null
from .salvage import lacking_rows
from .snapshot import load_entries, stale_rows


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
    lacking: dict[str, list[str]] = field(default_factory=dict)
    """By column, the samples without features in it: lost and not brought back, or left out by ``--columns``."""


def verify(cache: Cache, *, deep: bool = False, progress: Callable[[int], None] = lambda nbytes: None) -> Verification:
    """Check records, sizes and indexes; with ``deep`` also the sha256 of every shard and the crc32 of every sample.

    Never raises for damage: each fault becomes a line of the result. ``progress`` is told the bytes of each file done.
    """
    result = Verification()
    with reading(cache.root):
        for path, problem in _faults(cache, deep, result, progress):
            result.faults.append(Fault(path, _without_advice(cache, path, problem)))
    return result


def _without_advice(cache: Cache, path: str, problem: str) -> str:
    """What an error says of a file, without the name of the cache and of the file, and the advice to verify it."""
    problem = re.sub(r"; run 'kcache verify[^;]*", "", problem)
    problem = re.sub(rf"(?<![\w/.-])({re.escape(str(cache.root))}|{re.escape(cache.name)})/", "", problem)
    return problem.removeprefix(f"{path} ").removeprefix(f"{path}: ")


def committed_bytes(cache: Cache, *, samples: bool = True) -> int:
    """Bytes of all current shard files, by their commits: the total of `verify`'s progress.

    Without the ``samples`` that of a repair's.
    """
    return sum(commit.bytes for commit in _readable_commits(cache) if samples or commit.column != layout.SAMPLES)


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
    planned, rows = sorted(cache.planned_shards()), dict[int, int]()
    for before, shard in zip([-1, *planned], planned, strict=False):
        # One line for all that are missing in a row: a stranger's plan may have any number.
        if shard > before + 1 and not (cache.root / layout.plan(before + 1)).exists():
            yield layout.plan(before + 1), "is missing" + (f", and all up to {shard - 1}" if shard > before + 2 else "")
        try:
            rows[shard] = len(cache.planned_ids(shard))
        except (CacheError, OSError) as error:
            yield layout.plan(shard), str(error)
    for number in dataset_records(cache):
        try:
            dataset_options(cache, number)
        except (CacheError, OSError) as error:
            yield layout.dataset(number), str(error)
    without_samples = lost_samples(cache)
    for shard, generation in without_samples.items():
        yield layout.commit(layout.SAMPLES, shard, generation), f"is missing, {SAMPLES_ARE_LOST}"
    columns: dict[str, Column] = {}
    for name in _columns(cache):
        if name != layout.SAMPLES:
            yield from _column_faults(cache, name, columns)
        generations = cache.commits(name)
        done = {*generations, *(without_samples if name == layout.SAMPLES else ())}
        result.missing_shards[name] = len({*planned} - done)
        for shard, generation in generations.items():
            path = cache.commit_path(name, shard, generation).relative_to(cache.root).as_posix()
            try:
                commit = cache.commit(name, shard, generation)
            except (CacheError, OSError) as error:
                yield path, str(error)
                continue
            if shard > max(planned, default=-1):
                yield path, f"belongs to shard {shard}, which the plan does not have: {layout.plan(shard)} is missing"
            elif rows.get(shard, commit.rows) != commit.rows:
                yield path, f"has {commit.rows:,} rows, the plan of shard {shard} has {rows[shard]:,}"
            result.files += 1
            result.bytes += commit.bytes
            result.rows[name] = result.rows.get(name, 0) + commit.rows
            yield from _file_faults(cache, commit, columns, deep)
            yield from _samples_faults(cache, commit, columns)
            _note_lacking(cache, commit, columns, result)
            progress(commit.bytes)


def _columns(cache: Cache) -> list[str]:
    """The samples column, and those with a record or with commits: a lost record must not hide its column."""
    return list(dict.fromkeys([layout.SAMPLES, *cache.column_names(), *sorted(cache.begun_editions())]))


def _column_faults(cache: Cache, name: str, columns: dict[str, Column]) -> Iterator[tuple[str, str]]:
    """Notes the column among ``columns`` where its record is whole."""
    if lost := lost_records(cache).get(name):
        yield layout.column(layout.stem(name, lost)), f"is missing, {RECORD_IS_LOST}"
        return
    try:
        column = columns[name] = cache.column(name)
        if column.null is not None:
            read_null(cache, column)
    except (CacheError, OSError) as error:
        yield layout.column(cache.stem(name)), str(error)


def _samples_faults(cache: Cache, commit: Commit, columns: dict[str, Column]) -> Iterator[tuple[str, str]]:
    """Features that are newer than their samples: the last commit of these is lost, and an old one counts again."""
    column = columns.get(commit.column)
    generation = cache.commits(layout.SAMPLES).get(commit.shard, commit.generation) if commit.generation > 1 else 1
    if column is None or generation >= commit.generation:
        return
    try:
        stale = stale_rows(column, commit, cache.samples(commit.shard, generation))
    except (CacheError, OSError):
        return  # Named where the samples are looked at.
    if stale:
        yield (
            layout.commit(layout.SAMPLES, commit.shard, commit.generation),
            f"is missing: '{column.name}' has {len(stale):,} rows of shard {commit.shard} that are newer than it",
        )


def _note_lacking(cache: Cache, commit: Commit, columns: dict[str, Column], result: Verification) -> None:
    column = columns.get(commit.column)
    if column is None or None not in commit.keys:
        return
    try:
        samples = cache.samples(commit.shard)
        lacking = [str(samples[i]["id"]) for i in lacking_rows(column, commit, samples)]
    except (CacheError, OSError, ValueError):
        return  # Named where the samples are looked at.
    if lacking:
        result.lacking.setdefault(column.name, []).extend(lacking)


def _file_faults(cache: Cache, commit: Commit, columns: dict[str, Column], deep: bool) -> Iterator[tuple[str, str]]:
    try:
        if (size := _size(cache, commit)) != commit.bytes:
            yield commit.file, f"has {size:,} bytes, its commit says {commit.bytes:,}"
            return
        if commit.column == layout.SAMPLES:
            cache.rows_of(commit)
            return
        sha256 = _sha256(cache, commit) if deep else commit.sha256
    except (CacheError, OSError) as error:
        yield commit.file, str(error)
        return
    try:
        column = columns.get(commit.column)
        entries = load_entries(cache, column, commit) if column else None
    except (CacheError, OSError) as error:
        yield str(commit.index["file"] if commit.index else commit.file), str(error)
        return
    if sha256 != commit.sha256:
        yield commit.file, f"does not match its sha256: {_lost(cache, commit, entries)}"


def _size(cache: Cache, commit: Commit) -> int:
    """Bytes of a shard file. DamageError where there is none, or no plain one."""
    if cache.storage.is_local:
        with open(open_plain(cache.root / commit.file), "rb") as file:
            return os.fstat(file.fileno()).st_size
    size = cache.storage.size(commit.file)
    if size is None:
        raise DamageError(f"{cache.name}/{commit.file} is missing")
    return size


def _sha256(cache: Cache, commit: Commit) -> str:
    cache.storage.bring([commit.reference])
    with open(open_plain(cache.root / commit.file), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lost(cache: Cache, commit: Commit, entries: Entries | None) -> str:
    """Which samples of a damaged shard file are."""
    if entries is None:
        return "which of its samples are damaged cannot be said without its column"
    with open(open_plain(cache.root / commit.file), "rb") as file:
        bad = [i for i, row in enumerate(entries) if not all(_is_whole(file, entry) for entry in row)]
    try:
        ids = cache.ids(commit.shard)
    except CacheError:
        ids = []
    names = ", ".join(repr(ids[i]) if i < len(ids) else f"row {i}" for i in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return f"samples {names}{more} are damaged" if bad else "no sample is damaged, only the bytes between them"


def _is_whole(file: BinaryIO, entry: np.void) -> bool:
    file.seek(int(entry["offset"]))
    return zlib.crc32(file.read(int(entry["nbytes"]))) == int(entry["crc32"])
