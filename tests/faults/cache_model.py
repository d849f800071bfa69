"""What a cache is to hold after each encode, and what the encode is to say: docs/changes.md as plain dictionaries."""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from living_dataset import WHOLE, Found

COLUMNS = ("text", "image", "latents-16")

Key = tuple[str, ...] | str | None
"""What features were made from: captions, or the sha256 of a picture. None: there are none."""


@dataclass(frozen=True)
class Row:
    """One sample. ``aside``: why it has no features; ``removed``: it was pruned or forgotten."""

    id: str
    captions: tuple[str, ...] = ()
    sha256: str | None = None
    aside: str | None = None
    removed: bool = False

    @property
    def has_features(self) -> bool:
        return self.aside is None and not self.removed

    def key(self, column: str) -> Key:
        """What this row's features are to be made from."""
        return (self.captions if column == "text" else self.sha256) if self.has_features else None


@dataclass
class Shard:
    """The rows of one shard, None where nothing was encoded yet, and what the features of each were made from.

    ``keys`` has the columns that the shard was committed in.
    """

    ids: list[str]
    rows: list[Row] | None = None
    keys: dict[str, list[Key]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What its samples are called now."""
        return [row.id for row in self.rows] if self.rows else self.ids


@dataclass
class Said:
    """What an encode reports."""

    counts: dict[str, Counter[str]]
    encoded: dict[str, int]
    renamed: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    aside: set[str] = field(default_factory=set)
    taken_out: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Now:
    """What becomes of one sample: its row before any picture is decoded (None: decoding tells) and in the end."""

    row: Row
    ahead: Row | None
    in_dataset: bool
    gone: bool = False
    reason: bool = False
    sha256: str | None = None


@dataclass
class CacheModel:
    """A cache, as far as its readers see it."""

    shard_size: int
    shards: list[Shard] = field(default_factory=list)
    columns: tuple[str, ...] = ()

    @property
    def places(self) -> list[str]:
        """The ids in the order of their places."""
        return [name for shard in self.shards for name in shard.names]

    @property
    def rows(self) -> Iterator[Row]:
        return (row for shard in self.shards for row in shard.rows or ())

    def is_finished(self, columns: Collection[str] | None = None) -> bool:
        """Whether no row lags behind and no shard is missing."""
        names = self.columns if columns is None else columns
        return bool(self.shards) and all(
            shard.rows is not None
            and all(
                name in shard.keys
                and all(have in (None, row.key(name)) for have, row in zip(shard.keys[name], shard.rows, strict=True))
                for name in names
            )
            for shard in self.shards
        )

    def follows(self, samples: Mapping[str, Found]) -> bool:
        """Whether an encode would find nothing to do, and nothing gone."""
        said, after = self.encoded(samples, COLUMNS, prune=False)
        return after.shards == self.shards and not said.gone and self.is_finished() and self.columns == COLUMNS

    def encoded(
        self, samples: Mapping[str, Found], columns: Collection[str], *, prune: bool
    ) -> "tuple[Said, CacheModel]":
        """What an encode of ``columns`` is to say, and what the cache is after it."""
        said = Said({name: Counter() for name in columns}, dict.fromkeys(columns, 0))
        moved = self._renamed(samples, said)
        shards = [
            self._encode_shard(shard, samples, columns, prune, said, moved.get(i, {}))
            for i, shard in enumerate(self.shards)
        ]
        known = {*self.places, *said.renamed}
        new = [name for name in samples if name not in known]
        for start in range(0, len(new), self.shard_size):
            planned = Shard(new[start : start + self.shard_size])
            shards.append(self._encode_shard(planned, samples, columns, prune, said, {}))
        names = tuple(name for name in COLUMNS if name in {*self.columns, *columns})
        return said, CacheModel(self.shard_size, shards, names)

    def _renamed(self, samples: Mapping[str, Found], said: Said) -> dict[int, dict[int, str]]:
        """Where a sample is gone whose picture has a name that nobody knows: that name, by shard and row."""
        lost, known = defaultdict[str, deque[tuple[int, int]]](deque), {*self.places}
        moved = defaultdict[int, dict[int, str]](dict)
        for n, shard in enumerate(self.shards):
            for i, row in enumerate(shard.rows or ()):
                if row.id not in samples and row.has_features and row.sha256:
                    lost[row.sha256].append((n, i))
        for name, found in samples.items():
            if name not in known and found.fault is None and lost[found.sha256 or ""]:
                n, i = lost[found.sha256 or ""].popleft()
                moved[n][i] = name
                said.renamed[name] = self.shards[n].names[i]
        return moved

    def _encode_shard(
        self,
        shard: Shard,
        samples: Mapping[str, Found],
        columns: Collection[str],
        prune: bool,
        said: Said,
        moved: Mapping[int, str],
    ) -> Shard:
        rows, keys = [], {name: list(made) for name, made in shard.keys.items()}
        for name in columns:
            keys.setdefault(name, [None] * len(shard.ids))
        for i, old_name in enumerate(shard.names):
            before, name = shard.rows[i] if shard.rows else None, moved.get(i, old_name)
            now = _become(before, name, samples.get(name), prune)
            _tell(said, before, old_name, name, now)
            for column in columns:
                have, want = keys[column][i], now.row.key(column)
                self._count(said, column, name, have, now)
                if column != "text" and not now.in_dataset and have != want and want is not None:
                    continue  # a picture that is not there cannot be encoded: what was made of another stays or goes
                said.encoded[column] += want is not None and have != want
                keys[column][i] = want
            rows.append(now.row)
        return Shard(shard.ids, rows, keys)

    def _count(self, said: Said, column: str, name: str, have: Key, now: _Now) -> None:
        if not now.in_dataset:
            said.counts[column]["gone"] += now.gone
            return
        if now.ahead and now.ahead.aside:
            said.counts[column]["set aside"] += 1
            return
        # Of a picture that is still to be decoded it counts what it will be if it turns out to be one.
        want = now.row.captions if column == "text" else now.sha256
        state = "hit" if have == want else "new" if have is None else "changed"
        said.counts[column][state] += 1
        if state == "changed":
            said.changed.add(name)


def _become(before: Row | None, name: str, found: Found | None, prune: bool) -> _Now:
    """What an encode makes of one sample."""
    if found is None:
        if before is None:
            forgotten = Row(name, aside="it is gone", removed=True)
            return _Now(forgotten, forgotten, in_dataset=False)
        row = before if before.has_features and not prune else replace(before, removed=True)
        return _Now(row, row, in_dataset=False, gone=before.has_features)
    if found.fault:
        if before and before.has_features:
            kept = Row(name, found.captions, None, found.fault) if prune else before
            return _Now(kept, kept, in_dataset=False, gone=True)
        row = Row(name, found.captions, None, found.fault)
        return _Now(row, row, in_dataset=True)
    whole = found.sha256 in WHOLE
    row = Row(name, found.captions, found.sha256, None if whole else "broken")
    if before == row and before.aside:
        return _Now(before, before, in_dataset=True)
    if before and before.has_features:
        same, changed = before.sha256 == found.sha256, (before.captions, before.sha256) != (row.captions, row.sha256)
        return _Now(row, row if same or not whole else None, True, reason=changed, sha256=found.sha256)
    return _Now(row, None, in_dataset=True, reason=before is not None, sha256=found.sha256)


def _tell(said: Said, before: Row | None, old_name: str, name: str, now: _Now) -> None:
    if now.gone:
        said.gone.add(old_name)
    if before and before.has_features and now.ahead and not now.ahead.has_features:
        said.taken_out.add(old_name)
    if now.in_dataset or (now.gone and now.row.aside):
        if now.row.aside:
            said.aside.add(name)
        if now.reason and not (now.ahead and now.ahead.aside):
            said.changed.add(name)
