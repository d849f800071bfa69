"""What an encode has to do, and why: the dataset as it is now against the cache's commits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kcache.shards import Cache, Column, Commit, DamageError, layout

from .dataset import Dataset, Sample
from .memory import Memory

SamplesRow = dict[str, Any]


@dataclass(frozen=True)
class ShardTask:
    """One shard's missing columns. ``rows`` is its samples column, or None when that is missing too."""

    shard: int
    ids: Sequence[str]
    columns: tuple[str, ...]
    rows: Sequence[SamplesRow] | None


@dataclass
class Work:
    """What is there, what is to do, and what stands in the way."""

    tasks: list[ShardTask] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """For each column, its rows by state: hit, new, changed, gone, set aside."""
    changed: dict[str, str] = field(default_factory=dict)
    """Samples that are not what was encoded, and why."""
    gone: list[str] = field(default_factory=list)
    new_ids: list[str] = field(default_factory=list)
    first_new_shard: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)
    """Samples that an earlier run set aside or that cannot be encoded as they are, and why."""


def find_work(
    dataset: Dataset, cache: Cache | None, columns: Sequence[Column], shard_size: int, memory: Memory
) -> Work:
    """Compare a dataset with a cache (None: not made yet). Reads no image whose size and time are as remembered."""
    samples = {sample.id: sample for sample in dataset.samples}
    work = Work(counts={column.name: Counter() for column in columns})
    commits = {name: cache.commits(name) for name in [layout.SAMPLES, *work.counts]} if cache else {}
    known: set[str] = set()
    for shard in range(cache.shard_count if cache else 0):
        assert cache is not None
        ids = cache.ids(shard)
        known.update(ids)
        generation = commits[layout.SAMPLES].get(shard)
        rows = cache.samples(shard, generation) if generation else None
        if rows is not None:
            _compare_rows(work, rows, samples, memory)
        missing = [c.name for c in columns if rows is None or shard not in commits[c.name]]
        for column in columns:
            if column.name in missing:
                _count_new(work, column, ids, rows, samples)
            else:
                assert rows is not None
                commit = cache.commit(column.name, shard, commits[column.name][shard])
                _refuse_lost(cache, commit)
                _compare_keys(work, column, rows, commit.keys, samples)
        if missing or rows is None:
            work.tasks.append(ShardTask(shard, ids, tuple(missing), rows))
    _append_new(work, [s for s in dataset.samples if s.id not in known], cache, shard_size)
    return work


def _refuse_lost(cache: Cache, commit: Commit) -> None:
    """DamageError when a committed file is not there or not whole: to call its rows a hit would be a lie."""
    path = cache.root / commit.file
    size = path.stat().st_size if path.is_file() else None
    if size != commit.bytes:
        record = layout.commit(commit.column, commit.shard, commit.generation)
        raise DamageError(
            f"{path} {'is missing' if size is None else f'has {size:,} of {commit.bytes:,} bytes'}; copy it again, or"
            f" remove {cache.root / record} and run the same command, which then encodes that shard again"
        )


def input_of(column: Column, row: SamplesRow) -> object:
    """The part of a sample that a column's features are made from."""
    return row["sha256"] if column.reads == "image" else row["captions"]


def _append_new(work: Work, new: list[Sample], cache: Cache | None, shard_size: int) -> None:
    work.new_ids, work.first_new_shard = [sample.id for sample in new], cache.shard_count if cache else 0
    for counts in work.counts.values():
        counts.update("set aside" if sample.fault else "new" for sample in new)
    work.set_aside |= {sample.id: sample.fault for sample in new if sample.fault}
    for number, start in enumerate(range(0, len(new), shard_size), work.first_new_shard):
        ids = work.new_ids[start : start + shard_size]
        work.tasks.append(ShardTask(number, ids, tuple(work.counts), None))


def _compare_rows(work: Work, rows: Sequence[SamplesRow], samples: Mapping[str, Sample], memory: Memory) -> None:
    for row in rows:
        sample = samples.get(row["id"])
        if sample is None:
            work.gone.append(row["id"])
        elif reason := _difference(row, sample, memory):
            work.changed[row["id"]] = reason
        elif "set_aside" in row:
            work.set_aside[row["id"]] = row["set_aside"]


def _difference(row: SamplesRow, sample: Sample, memory: Memory) -> str | None:
    """Why a sample is not what its row of the samples column says, or None where it is."""
    if list(sample.captions) != row["captions"]:
        return "caption edited"
    sha256 = memory.sha256(sample.id)
    if sha256 != row["sha256"]:
        return "image bytes differ" if sha256 and row["sha256"] else "image lost" if row["sha256"] else "image appeared"
    return None


def _count_new(
    work: Work, column: Column, ids: Sequence[str], rows: Sequence[SamplesRow] | None, samples: Mapping[str, Sample]
) -> None:
    for i, sample_id in enumerate(ids):
        sample = samples.get(sample_id)
        aside = "set_aside" in rows[i] if rows is not None else sample is not None and sample.fault is not None
        work.counts[column.name]["gone" if sample is None else "set aside" if aside else "new"] += 1
        if rows is None and sample is not None and sample.fault:
            work.set_aside[sample_id] = sample.fault


def _compare_keys(
    work: Work, column: Column, rows: Sequence[SamplesRow], keys: Sequence[str | None], samples: Mapping[str, Sample]
) -> None:
    counts = work.counts[column.name]
    for row, key in zip(rows, keys, strict=True):
        if row["id"] not in samples:
            counts["gone"] += 1
        elif row["id"] in work.changed:
            counts["changed"] += 1
        elif "set_aside" in row:
            counts["set aside"] += 1
        elif key != column.input_key(input_of(column, row)):
            counts["changed"] += 1
            work.changed[row["id"]] = (
                f"it was gone when '{column.name}' was encoded"
                if key is None
                else f"its '{column.name}' features were made from something else"
            )
        else:
            counts["hit"] += 1
