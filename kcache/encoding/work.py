"""What an encode has to do, and why: the dataset as it is now against the cache's commits."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kcache.shards import Cache, Column, durable, layout

from .dataset import Dataset, Sample, Stat

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
    set_aside: dict[str, str] = field(default_factory=dict)
    """Samples that were set aside by an earlier run, and why."""


def find_work(dataset: Dataset, cache: Cache | None, columns: Sequence[Column], shard_size: int) -> Work:
    """Compare a dataset with a cache (None: not made yet). Reads no image whose size and time are as remembered."""
    samples = {sample.id: sample for sample in dataset.samples}
    work = Work(counts={column.name: Counter() for column in columns})
    memory = _Memory(dataset, cache)
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
                keys = cache.commit(column.name, shard, commits[column.name][shard]).keys
                _compare_keys(work, column, rows, keys, samples)
        if missing or rows is None:
            work.tasks.append(ShardTask(shard, ids, tuple(missing), rows))
    _append_new(work, [s.id for s in dataset.samples if s.id not in known], cache, shard_size)
    memory.store()
    return work


def input_of(column: Column, row: SamplesRow) -> object:
    """The part of a sample that a column's features are made from."""
    return row["sha256"] if column.reads == "image" else row["captions"]


def _append_new(work: Work, new: list[str], cache: Cache | None, shard_size: int) -> None:
    work.new_ids = new
    first = cache.shard_count if cache else 0
    for counts in work.counts.values():
        counts["new"] += len(new)
    for number, start in enumerate(range(0, len(new), shard_size), first):
        work.tasks.append(ShardTask(number, new[start : start + shard_size], tuple(work.counts), None))


def _compare_rows(work: Work, rows: Sequence[SamplesRow], samples: Mapping[str, Sample], memory: "_Memory") -> None:
    for row in rows:
        sample = samples.get(row["id"])
        if sample is None:
            work.gone.append(row["id"])
        elif reason := _difference(row, sample, memory):
            work.changed[row["id"]] = reason
        elif "set_aside" in row:
            work.set_aside[row["id"]] = row["set_aside"]


def _difference(row: SamplesRow, sample: Sample, memory: "_Memory") -> str | None:
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
        aside = rows is not None and "set_aside" in rows[i]
        state = "gone" if sample_id not in samples else "set aside" if aside else "new"
        work.counts[column.name][state] += 1


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
            work.changed[row["id"]] = f"its '{column.name}' features were made from something else, or not at all"
        else:
            counts["hit"] += 1


class _Memory:
    """sha256 of pictures by size and time of change, kept in ``index/``: a second run opens no picture."""

    def __init__(self, dataset: Dataset, cache: Cache | None) -> None:
        self._dataset, self._cache, self._started = dataset, cache, time.time_ns()
        self._known = dict(self._load()) if cache else {}
        self._seen: dict[str, tuple[Stat, str]] = {}

    def sha256(self, sample_id: str) -> str | None:
        """sha256 of an image now, or None when it cannot be read."""
        stat = self._dataset.stat(sample_id)
        known = self._known.get(sample_id)
        if stat is not None and known is not None and known[0] == stat:
            self._seen[sample_id] = known
            return known[1]
        try:
            sha256 = self._dataset.sha256(sample_id)
        except OSError:
            return None
        # A file that changed within the last two seconds may change again without its time showing it.
        if stat is not None and stat[1] < self._started - 2 * 10**9:
            self._seen[sample_id] = (stat, sha256)
        return sha256

    def store(self) -> None:
        """Keep what was learned, where the disk allows it."""
        if self._cache is None or self._seen == self._known:
            return
        lines = (json.dumps([i, *stat, sha256], ensure_ascii=True) for i, (stat, sha256) in self._seen.items())
        try:
            durable.replace(self._path(self._cache.root), "".join(f"{line}\n" for line in lines).encode())
        except OSError:
            pass  # A read-only or full disk: the pictures are hashed again next time.

    def _load(self) -> Iterator[tuple[str, tuple[Stat, str]]]:
        assert self._cache is not None
        try:
            for line in self._path(self._cache.root).read_text().splitlines():
                sample_id, size, changed, sha256 = json.loads(line)
                yield sample_id, ((size, changed), sha256)
        except (OSError, ValueError):
            return

    @staticmethod
    def _path(root: Path) -> Path:
        return root / layout.derived("pictures.jsonl")
