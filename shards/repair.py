"""`kcache verify --repair`, as far as the disk has what it takes: rebuilds what is damaged from what is not."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import durable, hdf5, layout, tar
from .cache import PACK, Cache
from .columns import Column
from .commits import Commit, commit_of, digests, sha256
from .errors import CacheError
from .files import read_plain
from .index import dump_index, load_index, present
from .leases import writing
from .losses import lost_samples
from .reader import read_null
from .records import MAX_BYTES
from .repair_records import (
    drop_derived,
    drop_options,
    feature_columns,
    lost_samples_commit,
    mend_plan,
    mend_samples,
    samples_commit,
    unnamed_files,
    write_commit,
)
from .salvage import Salvage, lacking_rows, marked, nothing_left, older_commits, readable_index, readable_rows
from .snapshot import stale_rows
from .tar import Row

_UNPACK = {"tar": tar.unpack, "h5": hdf5.unpack}


@dataclass
class Repair:
    """What was rebuilt, a sentence each, and what only an encode can bring back."""

    mended: list[str] = field(default_factory=list)
    lost: Salvage = field(default_factory=Salvage)


def repair(root: Path, progress: Callable[[int], object] = lambda nbytes: None) -> Repair:
    """Rebuild what is damaged in the cache at ``root`` from what is not; whole files are left as they are.

    Every byte is read; ``progress`` is told the bytes of each shard file done. CacheError where ``kcache.json`` is
    damaged: nothing else says how a cache is laid out.
    """
    cache, done = Cache(root), Repair()
    with writing(root):
        durable.clear_dead_temporaries(root)
        for shard, generation in cache.commits(layout.SAMPLES).items():
            if said := mend_samples(cache, shard, generation, done.lost):
                done.mended.append(said)
        for shard, generation in lost_samples(cache).items():
            if rebuilt := lost_samples_commit(cache, shard, generation):
                done.mended.append(write_commit(cache, rebuilt))
            else:
                done.lost.forgotten.append(shard)
        done.mended += [*mend_plan(cache), *drop_options(cache)]
        cache = Cache(root)
        for name in feature_columns(cache):
            _mend_column(cache, name, done, progress)
        drop_derived(cache)
    return done


def _mend_column(cache: Cache, name: str, done: Repair, progress: Callable[[int], object]) -> None:
    try:
        column = cache.column(name)
    except CacheError:
        column = None
    if column is None or column.edition < feature_columns(cache)[name]:
        done.lost.records.add(name)  # Without its fields nothing of it can be read.
        return
    try:
        if column.null is not None:
            read_null(cache, column)
    except CacheError:
        done.lost.nulls.add(name)
    for shard, generation in cache.commits(name).items():
        commit = _mend_commit(cache, column, shard, generation, done)
        if commit:
            _mend_shard(cache, column, commit, done)
            progress(commit.bytes)
            _mend_missing_samples(cache, column, commit, done)
            _mend_lacking(cache, column, shard, done)


def _mend_commit(cache: Cache, column: Column, shard: int, generation: int, done: Repair) -> Commit | None:
    """A shard's current commit, written again where it can be; else what is left of it is noted, and None returned."""
    try:
        return cache.commit(column.name, shard, generation)
    except CacheError:
        pass
    if commit := _features_commit(cache, column, shard, generation):
        done.mended.append(write_commit(cache, commit))
        return commit
    left = nothing_left(column.name, shard, generation, len(cache.planned_ids(shard)))
    for older in older_commits(cache, column.name, shard, generation)[:1]:
        left = marked(replace(older, generation=generation), _still_current(cache, column, older))
    done.lost.commits[column.name, shard] = left
    return None


def _still_current(cache: Cache, column: Column, older: Commit) -> dict[int, Row]:
    """The readable rows of an older generation that are of the samples as they are now."""
    rows = readable_rows(cache, column, older)
    try:
        stale = set(stale_rows(column, older, cache.samples(older.shard)))
    except CacheError:
        return rows  # The samples are lost too, and noted as that.
    return {i: row for i, row in rows.items() if i not in stale}


def _features_commit(cache: Cache, column: Column, shard: int, generation: int) -> Commit | None:
    """The commit of the one shard file that no other names, where its keys are certain: no edit of its samples."""
    if generation > 1 or cache.commits(layout.SAMPLES).get(shard) != 1:
        return None
    found = []
    try:
        keys = [column.key_of(row) for row in cache.samples(shard, 1)]
        for path, data in unnamed_files(cache, column.stem, shard, generation, cache.container):
            index = path.with_suffix(".idx")
            entries = read_plain(index, MAX_BYTES)
            there = present(load_index(entries, index.name)).tolist()
            reference = {"file": index.relative_to(cache.root).as_posix(), **digests(entries)}
            now = [key if is_there else None for key, is_there in zip(keys, there, strict=True)]
            file = path.relative_to(cache.root).as_posix()
            found.append(commit_of(column.name, shard, 1, file, data, now, reference))
    except (CacheError, OSError, ValueError):
        return None
    return found[0] if len(found) == 1 else None


def _mend_missing_samples(cache: Cache, column: Column, commit: Commit, done: Repair) -> None:
    """Where features are newer than their samples the last commit of these is missing, and an older one counts."""
    generation = cache.commits(layout.SAMPLES).get(commit.shard, commit.generation)
    if generation >= commit.generation:
        return
    try:
        is_behind = bool(stale_rows(column, commit, cache.samples(commit.shard, generation)))
    except CacheError:
        return  # It is damaged, and noted as that.
    if is_behind and (rebuilt := samples_commit(cache, commit.shard, generation + 1)):
        done.mended.append(write_commit(cache, rebuilt))
    elif is_behind:
        done.lost.behind.add(commit.shard)


def _mend_shard(cache: Cache, column: Column, commit: Commit, done: Repair) -> None:
    data = _bytes_of(cache.root, commit)
    if sha256(data) == commit.sha256:
        if readable_index(cache, column, commit) is not None:
            return
        try:
            rows = _UNPACK[cache.container](data, column.fields, cache.row_key(commit.shard, 0), commit.rows)
        except ValueError:
            done.lost.commits[column.name, commit.shard] = marked(commit, {})  # Another program made it.
            return
        _write_shard(cache, column, commit, rows, done)
        return
    whole = readable_rows(cache, column, commit)
    copies = _with_older(cache, column, commit, whole)
    if all(key is None or i in copies for i, key in enumerate(commit.keys)):
        _write_shard(cache, column, commit, [copies.get(i) for i in range(commit.rows)], done)
    else:
        done.lost.commits[column.name, commit.shard] = marked(commit, whole)


def _with_older(cache: Cache, column: Column, commit: Commit, rows: dict[int, Row]) -> dict[int, Row]:
    """``rows`` of a commit, and those that older generations have with the same keys."""
    copies = dict(rows)
    for older in older_commits(cache, column.name, commit.shard, commit.generation):
        same = {i for i, (old, now) in enumerate(zip(older.keys, commit.keys, strict=False)) if old == now}
        readable = readable_rows(cache, column, older) if same - copies.keys() else {}
        copies = {i: row for i, row in readable.items() if i in same} | copies
    return copies


def _mend_lacking(cache: Cache, column: Column, shard: int, done: Repair) -> None:
    """Rows that a repair before this one could not bring back, from older generations; what these lack is lost."""
    commit = cache.commit(column.name, shard, cache.commits(column.name)[shard])
    if (column.name, shard) in done.lost.commits or None not in commit.keys:
        return
    try:
        samples = cache.samples(shard)
    except CacheError:
        return  # It is damaged, and noted as that.
    if not (lacking := lacking_rows(column, commit, samples)):
        return
    keys = [column.key_of(samples[i]) if i in lacking else key for i, key in enumerate(commit.keys)]
    rows = _with_older(cache, column, replace(commit, keys=tuple(keys)), readable_rows(cache, column, commit))
    if rows.keys() & set(lacking):
        now = [key if i in rows else None for i, key in enumerate(keys)]
        cache.commit_features(column, shard, [rows.get(i) for i in range(commit.rows)], now, commit.generation + 1)
        done.mended.append(f"{commit.file}: rows that it lacks are in a new file of generation {commit.generation + 1}")
    if left := len(set(lacking) - rows.keys()):
        done.lost.lacking[column.name, shard] = left


def _bytes_of(root: Path, commit: Commit) -> bytes:
    """The bytes of a shard file; none where it is missing, has grown, or is no plain file."""
    try:
        return read_plain(root / commit.file, commit.bytes)
    except CacheError:
        return b""


def _write_shard(cache: Cache, column: Column, commit: Commit, rows: list[Row | None], done: Repair) -> None:
    """A shard file and its index from its rows: the very bytes, or a generation where packing differs now."""
    assert commit.index is not None
    data, entries = PACK[cache.container](rows, column.fields, cache.row_key(commit.shard, 0))
    index = dump_index(entries)
    if (sha256(data), sha256(index)) == (commit.sha256, commit.index["sha256"]):
        durable.put_content(cache.root / commit.file, data)
        durable.put_content(cache.root / commit.files[1], index)
        done.mended.append(f"{commit.file}: written again, bytes as they were, with its index")
    else:
        cache.commit_features(column, commit.shard, rows, commit.keys, commit.generation + 1)
        done.mended.append(f"{commit.file}: its rows are in a new file of generation {commit.generation + 1}")
