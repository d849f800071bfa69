"""What is left of a damaged cache: commits with their lost rows marked, for an encode that fills in exactly these."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .errors import CacheError
from .files import read_plain
from .index import Entries
from .rewrite import read_rows
from .snapshot import load_entries
from .tar import Row

LOST = "lost"
"""The key of a row whose features are damaged. No input has it, so the row counts as one to be encoded."""


@dataclass
class Salvage:
    """What is damaged and nothing on disk can bring back."""

    commits: dict[tuple[str, int], Commit] = field(default_factory=dict)
    """By column and shard: the damaged current commit as far as it can be read, lost rows with the key `LOST`."""
    forgotten: list[int] = field(default_factory=list)
    """Shards whose samples no generation has any more."""
    behind: set[int] = field(default_factory=set)
    """Shards with features that are newer than their samples, whose last commit is missing."""
    lacking: dict[tuple[str, int], int] = field(default_factory=dict)
    """By column and shard: how many rows of a whole shard file an earlier repair could not bring back."""
    records: set[str] = field(default_factory=set)
    """Columns whose record is damaged or missing."""
    nulls: set[str] = field(default_factory=set)
    """Columns whose null features are damaged."""

    @property
    def shards(self) -> frozenset[int]:
        """Where rows are lost."""
        return frozenset({shard for _, shard in (*self.commits, *self.lacking)} | {*self.forgotten} | self.behind)

    def has_samples(self, shard: int) -> bool:
        """Whether the samples of a shard are what was last committed."""
        lost = (layout.SAMPLES, shard) in self.commits or shard in self.forgotten or shard in self.behind
        return not lost

    @property
    def rows(self) -> dict[str, int]:
        """How many rows are lost, by column."""
        lost = {name: 0 for name, _ in sorted([*self.commits, *self.lacking])}
        for (name, _), commit in self.commits.items():
            lost[name] += commit.keys.count(LOST)
        for (name, _), rows in self.lacking.items():
            lost[name] += rows
        return lost

    def __bool__(self) -> bool:
        return bool(self.shards or self.records or self.nulls)


class SalvagedCache(Cache):
    """A cache that shows its damaged commits as a `Salvage` has them, and of its columns those that have a record."""

    def __init__(self, root: Path | str, salvage: Salvage) -> None:
        super().__init__(root)
        self.salvage = salvage

    def column_names(self) -> list[str]:
        """The columns whose record can be read."""
        return [name for name in super().column_names() if name not in self.salvage.records]

    def samples_of_lost_rows(self) -> frozenset[str]:
        """The ids of the samples of all shards where rows are lost."""
        return frozenset(name for shard in self.salvage.shards for name in self.ids(shard))

    def commit(self, name: str, shard: int, generation: int) -> Commit:
        """One commit, or what is left of it."""
        left = self.salvage.commits.get((name, shard))
        return left if left and left.generation == generation else super().commit(name, shard, generation)

    def require_file(self, commit: Commit) -> None:
        """As of any cache, but that what is lost need not be there."""
        if LOST not in commit.keys:
            super().require_file(commit)


def older_commits(cache: Cache, name: str, shard: int, generation: int) -> list[Commit]:
    """The commits of a shard before a generation that can be read, the latest first."""
    found = []
    for older in range(generation - 1, 0, -1):
        try:
            found.append(cache.commit(name, shard, older))
        except CacheError:
            continue
    return found


def whole_samples(cache: Cache, commit: Commit) -> bool:
    """Whether a file of the samples column is what was committed."""
    try:
        cache.rows_of(commit)
    except CacheError:
        return False
    return True


def readable_index(cache: Cache, column: Column, commit: Commit) -> Entries | None:
    """The index of a shard file, or None where it is not what was committed."""
    try:
        return load_entries(cache, column, commit)
    except CacheError:
        return None


def readable_rows(cache: Cache, column: Column, commit: Commit) -> dict[int, Row]:
    """The rows of a shard file whose every byte is what was committed, by row; none where its index is not."""
    entries = readable_index(cache, column, commit)
    path = cache.root / commit.file
    if entries is None or not path.is_file():
        return {}
    try:
        data = memoryview(read_plain(path, commit.bytes))
    except CacheError:
        return {}  # It has grown, or lies on a bad sector.
    crcs = [[zlib.crc32(data[e["offset"] :][: e["nbytes"]]) == e["crc32"] for e in row] for row in entries]
    whole = [i for i, key in enumerate(commit.keys) if key is not None and all(crcs[i])]
    return read_rows(cache, column, commit, whole)


def marked(commit: Commit, whole: Mapping[int, Row]) -> Commit:
    """A commit with `LOST` as the key of the rows that are not among ``whole``."""
    keys = (key if key is None or i in whole else LOST for i, key in enumerate(commit.keys))
    return replace(commit, keys=tuple(keys))


def lacking_rows(column: Column, commit: Commit, rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The rows of a shard without the features that their samples are to have.

    They were lost and could not be encoded again, or ``--columns`` left them out when their samples came back.
    """
    pairs = enumerate(zip(commit.keys, rows, strict=True))
    return [i for i, (key, row) in pairs if key in (None, LOST) and column.key_of(row) is not None]


def nothing_left(name: str, shard: int, generation: int, rows: int) -> Commit:
    """What stands for a commit of which nothing can be read."""
    return Commit(name, shard, generation, layout.commits(name), 0, "", rows, (LOST,) * rows)
