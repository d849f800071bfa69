"""In what two caches differ, and why: their columns, their rows, and the features that both have."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from . import layout
from .cache import Cache
from .columns import differences
from .commits import Commit
from .index import Entries
from .leases import reading
from .losses import require_nothing_lost
from .records import Record
from .rewrite import read_rows
from .snapshot import load_entries
from .tar import Row


@dataclass
class ColumnDifference:
    """One column that both caches have."""

    made_otherwise: list[str] = field(default_factory=list)
    """How the second was encoded otherwise than the first; their features are then not compared."""
    same: int = 0
    """Rows whose features are the same in both."""
    other_input: list[str] = field(default_factory=list)
    """Samples whose features were made from another picture or other captions."""
    other_bytes: list[str] = field(default_factory=list)
    """Samples whose features were made from the same, by the same encoder, and differ in their bytes."""
    only_in_first: list[str] = field(default_factory=list)
    """Samples of both caches that have features in the first alone."""
    only_in_second: list[str] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        lists = (self.made_otherwise, self.other_input, self.other_bytes, self.only_in_first, self.only_in_second)
        return any(lists)


@dataclass
class Difference:
    """Two caches beside each other. How they are stored (shards, containers, places) is no difference."""

    first: str
    second: str
    samples_in_both: int = 0
    only_in_first: list[str] = field(default_factory=list)
    only_in_second: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    """Samples with other captions."""
    images: list[str] = field(default_factory=list)
    """Samples whose pictures have other bytes."""
    columns_only_in_first: list[str] = field(default_factory=list)
    columns_only_in_second: list[str] = field(default_factory=list)
    columns: dict[str, ColumnDifference] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        rows = (self.only_in_first, self.only_in_second, self.captions, self.images)
        return any([*rows, self.columns_only_in_first, self.columns_only_in_second]) or any(
            column.differs for column in self.columns.values()
        )


def diff(
    first: Cache, second: Cache, *, deep: bool = False, progress: Callable[[int], object] = lambda rows: None
) -> Difference:
    """Compare two caches by their records and indexes, which have the crc32 of every field; ``deep``: by all bytes.

    Rows that were removed count as absent. ``progress`` is told the rows of every shard of the first, for each column.
    DamageError where what is compared is not as it was committed.
    """
    for cache in (first, second):
        require_nothing_lost(cache)
    with reading(first.root), reading(second.root):
        return _diff(first, second, deep, progress)


def _diff(first: Cache, second: Cache, deep: bool, progress: Callable[[int], object]) -> Difference:
    found = Difference(first.name, second.name)
    names = first.column_names(), second.column_names()
    found.columns_only_in_first = [name for name in names[0] if name not in names[1]]
    found.columns_only_in_second = [name for name in names[1] if name not in names[0]]
    pairs = _compare_samples(first, second, found)
    for name in names[0]:
        if name in names[1]:
            found.columns[name] = _compare_column(first, second, name, pairs, deep, progress)
    return found


Pairs = dict[int, list[tuple[int, str, tuple[int, int]]]]
"""For each shard of the first cache: row, id, and shard and row in the second, of the samples that both have."""


def _compare_samples(first: Cache, second: Cache, found: Difference) -> Pairs:
    elsewhere = {row["id"]: place for place, row in _rows(second)}
    generations = second.commits(layout.SAMPLES)
    rows_of = lru_cache(maxsize=4)(lambda shard: second.samples(shard, generations[shard]))
    pairs: Pairs = {}
    for (shard, number), row in _rows(first):
        place = elsewhere.pop(row["id"], None)
        if place is None:
            found.only_in_first.append(row["id"])
            continue
        found.samples_in_both += 1
        pairs.setdefault(shard, []).append((number, row["id"], place))
        other = rows_of(place[0])[place[1]]
        if row["captions"] != other["captions"]:
            found.captions.append(row["id"])
        if row["sha256"] != other["sha256"]:
            found.images.append(row["id"])
    found.only_in_second = list(elsewhere)
    return pairs


def _rows(cache: Cache) -> Iterator[tuple[tuple[int, int], Record]]:
    """Place and content of every row that was not removed."""
    cache.bring_samples()
    for shard, generation in cache.commits(layout.SAMPLES).items():
        for number, row in enumerate(cache.samples(shard, generation)):
            if "removed" not in row:
                yield (shard, number), row


def _compare_column(
    first: Cache, second: Cache, name: str, pairs: Pairs, deep: bool, progress: Callable[[int], object]
) -> ColumnDifference:
    found = ColumnDifference(differences(first.column(name), second.column(name)))
    if found.made_otherwise:
        return found
    here, there = _Features(first, name, deep), _Features(second, name, deep)
    for shard, samples in pairs.items():
        for row, sample, place in samples:
            keys = here.key(shard, row), there.key(*place)
            if keys[0] is None or keys[1] is None:
                if keys[0] != keys[1]:
                    (found.only_in_second if keys[0] is None else found.only_in_first).append(sample)
            elif keys[0] != keys[1]:
                found.other_input.append(sample)
            elif here.values(shard, row) != there.values(*place):
                found.other_bytes.append(sample)
            else:
                found.same += 1
        progress(len(samples))
    return found


class _Features:
    """What one column of a cache has of a row: its key, and its values by checksum or, ``deep``, by their bytes."""

    def __init__(self, cache: Cache, name: str, deep: bool) -> None:
        self._cache, self._column, self._deep = cache, cache.column(name), deep
        self._generations = cache.commits(name)
        # Samples that lie in one shard here may lie in several there.
        self._commit: Callable[[int], Commit] = lru_cache(maxsize=16)(self._load_commit)
        self._entries: Callable[[int], Entries] = lru_cache(maxsize=16)(self._load_entries)
        self._rows: Callable[[int], dict[int, Row]] = lru_cache(maxsize=2)(self._load_rows)

    def key(self, shard: int, row: int) -> str | None:
        """What a row was made from; None where it has no features."""
        return self._commit(shard).keys[row] if shard in self._generations else None

    def values(self, shard: int, row: int) -> Any:
        """What is equal for equal values of equal shape."""
        if self._deep:
            return {name: (array.shape, array.tobytes()) for name, array in self._rows(shard)[row].items()}
        return self._entries(shard)[row][["nbytes", "crc32"]].tolist()

    def _load_commit(self, shard: int) -> Commit:
        return self._cache.commit(self._column.name, shard, self._generations[shard])

    def _load_entries(self, shard: int) -> Entries:
        return load_entries(self._cache, self._column, self._commit(shard))

    def _load_rows(self, shard: int) -> dict[int, Row]:
        commit = self._commit(shard)
        return read_rows(self._cache, self._column, commit, [i for i, key in enumerate(commit.keys) if key is not None])
