"""What an encode has to do, and why: the dataset as it is now against the cache's commits."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kcache.shards import Cache, Column, Commit, DamageError, layout
from kcache.shards.salvage import LOST, Salvage

from .dataset import Sample
from .lost_rows import is_kept, lost_rows, with_picture_of
from .memory import Memory
from .sample_rows import Compared, SamplesRow, aside, compare, has_features, pruned, unknown, vanished


@dataclass(frozen=True)
class ShardTask:
    """What is to do in one shard, by row.

    ``samples`` are those of the dataset (None: it has this one no more), ``rows`` what the samples column is to say
    (None: only the picture can tell), ``committed`` what each column has now, and ``pictures`` the columns that each
    picture which is to be read will feed. ``lost`` are, in a repair, the rows of each column that may be written.
    """

    shard: int
    samples: Sequence[Sample | None]
    rows: Sequence[SamplesRow | None]
    sha256: Sequence[str | None]
    committed: Mapping[str, Commit | None]
    pictures: Mapping[int, tuple[str, ...]]
    lost: Mapping[str, frozenset[int]] | None = None

    def writes(self, column: str, row: int) -> bool:
        """Whether a row of one column may become another one."""
        return self.lost is None or row in self.lost[column]

    def key(self, column: str, row: int) -> str | None:
        """What a row's features in one column were made from."""
        commit = self.committed[column]
        return commit.keys[row] if commit else None


@dataclass
class Work:
    """What is there, what is to do, and why."""

    tasks: list[ShardTask] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """For each column, its rows by state: hit, changed, new, gone, set aside."""
    changed: dict[str, str] = field(default_factory=dict)
    """Samples that are not what was encoded, and why."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Samples that were known under another id, by the new one: the picture is the same."""
    gone: dict[str, str] = field(default_factory=dict)
    """Samples that have features and cannot be encoded any more, and why."""
    taken_out: dict[str, str] = field(default_factory=dict)
    """Samples that lose their features, and why."""
    lacking: dict[str, list[str]] = field(default_factory=dict)
    """By column, samples that are kept, have no features in it, and cannot be encoded any more."""
    new_ids: list[str] = field(default_factory=list)
    first_new_shard: int = 0
    set_aside: dict[str, str] = field(default_factory=dict)
    """Samples that an earlier run set aside or that cannot be encoded as they are, and why."""


Places = dict[str, tuple[int, int]]


def places(cache: Cache | None) -> Places:
    """Where every sample of a cache lies: shard and row by id, as it is called now."""
    if cache is None:
        return {}
    found: Places = {}
    cache.bring_samples()
    generations = cache.commits(layout.SAMPLES)  # listed once, not once for each shard
    for shard in range(cache.shard_count):
        known = shard in generations
        ids = [r["id"] for r in cache.samples(shard, generations[shard])] if known else cache.planned_ids(shard)
        found.update((sample_id, (shard, row)) for row, sample_id in enumerate(ids))
    return found


@dataclass
class WorkFinder:
    """Compares datasets with one cache (None: not made yet).

    ``columns`` are those to bring up to date; ``replaced`` says of some why they are made anew; ``decoding`` is all
    that decides whether a picture can be decoded; ``prune`` marks samples that are gone as removed; ``undecodable``
    says of samples why their pictures cannot be decoded, None for those that can. In a repair ``salvage`` has what is
    lost: it alone is to be written.
    """

    cache: Cache | None
    shard_size: int
    columns: Sequence[Column]
    memory: Memory
    decoding: object
    replaced: Mapping[str, str] = field(default_factory=dict)
    prune: bool = False
    undecodable: Callable[[Sequence[Sample]], Iterable[str | None]] = lambda samples: [None] * len(samples)
    salvage: Salvage | None = None

    def find(
        self,
        samples: Sequence[Sample],
        known: Places,
        *,
        gone: frozenset[str] | None = None,
        shards: frozenset[int] = frozenset(),
    ) -> Work:
        """What is to do for ``samples``. Reads no image whose size and time are as remembered.

        ``gone`` are the known samples to take for gone; None: all others than ``samples``. ``shards`` are looked at
        whatever samples they have.
        """
        self._samples = {sample.id: sample for sample in samples}
        self._gone = known.keys() - self._samples.keys() if gone is None else gone
        self._generations = {
            name: self.cache.commits(name) if self.cache and name not in self.replaced else {}
            for name in (layout.SAMPLES, *(column.name for column in self.columns))
        }
        self.work = Work(counts={column.name: Counter() for column in self.columns})
        new = [sample for sample in samples if sample.id not in known]
        self._moved = self._find_renamed(new, known)
        touched = {known[i][0] for i in (*self._samples, *self._gone) if i in known}
        touched |= {shard for shard, _ in self._moved} | shards
        for shard in sorted(touched):
            self._compare_shard(shard)
        self._append_new([sample for sample in new if sample.id not in self.work.renamed])
        return self.work

    def _find_renamed(self, new: list[Sample], known: Places) -> dict[tuple[int, int], Sample]:
        """New samples whose picture is that of one that is gone, by its place. Their features stay where they are."""
        lost = defaultdict[str, deque[tuple[int, int]]](deque)
        for shard, rows in self._rows_of(self._gone, known):
            for i, row in rows.items():
                if row["sha256"] and has_features(row):
                    lost[row["sha256"]].append((shard, i))
        moved: dict[tuple[int, int], Sample] = {}
        for sample in new if lost else ():
            at = lost.get(self.memory.sha256(sample.id) or "") if not sample.fault else None
            if at:
                moved[at.popleft()] = sample
        return moved

    def _rows_of(self, ids: Iterable[str], known: Places) -> Iterable[tuple[int, dict[int, SamplesRow]]]:
        by_shard = defaultdict[int, list[int]](list)
        for sample_id in ids:
            by_shard[known[sample_id][0]].append(known[sample_id][1])
        for shard, numbers in sorted(by_shard.items()):
            if shard in self._generations[layout.SAMPLES] and self.cache:
                rows = self.cache.samples(shard, self._generations[layout.SAMPLES][shard])
                yield shard, {i: rows[i] for i in sorted(numbers)}

    def _compare_shard(self, shard: int) -> None:
        assert self.cache is not None
        committed = {name: self._commit(name, shard) for name in self._generations}
        samples_commit = committed[layout.SAMPLES]
        rows: Sequence[SamplesRow | None]
        if samples_commit:
            rows, keys = self.cache.rows_of(samples_commit), samples_commit.keys
            ids = [row["id"] for row in rows if row]
        else:
            ids = self.cache.planned_ids(shard)
            rows, keys = [None] * len(ids), (None,) * len(ids)
        for commit in committed.values():
            if commit and commit.rows != len(ids):
                raise DamageError(f"{commit.file} has {commit.rows:,} rows, its shard has {len(ids):,} samples")
        samples = [self._moved.get((shard, i)) or self._samples.get(name) for i, name in enumerate(ids)]
        compared = [
            self._compare(row, key, sample, sample_id)
            for row, key, sample, sample_id in zip(rows, keys, samples, ids, strict=True)
        ]
        if self.salvage:
            self._keep(self.salvage, shard, rows, samples, compared, committed)
        if not samples_commit and any(committed.values()):
            compared = [self._with_hash(now, sample) for now, sample in zip(compared, samples, strict=True)]
        self._look_at_changed(rows, samples, compared)
        for i, (row, sample, sample_id) in enumerate(zip(rows, samples, ids, strict=True)):
            compared[i] = self._note(row, compared[i], sample, sample_id)
        there = [None if c.gone else sample for sample, c in zip(samples, compared, strict=True)]
        edited = list(rows) != [c.row for c in compared] or LOST in keys
        lost = lost_rows(self.salvage, shard, rows, self.columns, committed) if self.salvage else None
        self._add_task(shard, there, compared, committed, edited, lost)

    def _keep(
        self,
        salvage: Salvage,
        shard: int,
        rows: Sequence[SamplesRow | None],
        samples: list[Sample | None],
        compared: list[Compared],
        committed: Mapping[str, Commit | None],
    ) -> None:
        """Let rows that are not lost themselves be as they are, and samples be there only with the picture of these."""
        for i, row in enumerate(rows):
            if row and is_kept(salvage, shard, i, row, self.columns, committed):
                samples[i] = with_picture_of(row, samples[i], self.memory)
                compared[i] = Compared(row, sha256=row["sha256"])

    def _commit(self, name: str, shard: int) -> Commit | None:
        generation = self._generations[name].get(shard)
        if generation is None or self.cache is None:
            return None
        commit = self.cache.commit(name, shard, generation)
        self.cache.require_file(commit)  # to call the rows of a lost file a hit would be a lie
        return commit

    def _compare(self, row: SamplesRow | None, key: str | None, sample: Sample | None, sample_id: str) -> Compared:
        if sample is not None:
            return compare(row, key, sample, self.memory, self.decoding)
        if sample_id in self._gone and not (row and "removed" in row):
            return vanished(row, sample_id)
        return Compared(row or unknown(sample_id))

    def _with_hash(self, now: Compared, sample: Sample | None) -> Compared:
        """Where only the samples of a shard were lost: what tells whether its features are of the picture as it is."""
        return now if now.row or sample is None else replace(now, sha256=self.memory.sha256(sample.id))

    def _look_at_changed(
        self, rows: Sequence[SamplesRow | None], samples: Sequence[Sample | None], compared: list[Compared]
    ) -> None:
        """Decode the pictures that are others than those encoded: what is to be lost is said before it is."""
        changed = [
            (i, sample)
            for i, (row, sample, now) in enumerate(zip(rows, samples, compared, strict=True))
            if now.row is None and sample is not None and has_features(row)
        ]
        for (i, sample), why in zip(changed, self.undecodable([sample for _, sample in changed]), strict=True):
            if why:
                compared[i] = Compared(aside(sample, why, compared[i].sha256), why)

    def _note(self, row: SamplesRow | None, now: Compared, sample: Sample | None, sample_id: str) -> Compared:
        """Keep what was found of one sample for the report; its row is the one it is to have, pruned or not."""
        if now.gone and now.row:
            self.work.gone[sample_id] = now.gone
            if not self.prune:
                return now
            now = replace(now, row=pruned(now.row, sample))
        if has_features(row) and not has_features(now.row) and now.row is not None:
            self.work.taken_out[sample_id] = now.gone or str(now.reason)
        if sample is None:
            return now
        if sample.id != sample_id:
            self.work.renamed[sample.id] = sample_id
        if now.row and "set_aside" in now.row:
            self.work.set_aside[sample.id] = now.row["set_aside"]
        elif now.reason:
            self.work.changed[sample.id] = now.reason
        return now

    def _add_task(
        self,
        shard: int,
        samples: Sequence[Sample | None],
        compared: Sequence[Compared],
        committed: Mapping[str, Commit | None],
        edited: bool,
        lost: Mapping[str, frozenset[int]] | None = None,
    ) -> None:
        """Count the rows of a shard in every column, and note what is to do where anything is."""
        pictures: dict[int, list[str]] = {i: [] for i, c in enumerate(compared) if c.row is None}
        for column in self.columns:
            commit = committed[column.name]
            edited = edited or (commit is None and lost is None)
            for i, (sample, now) in enumerate(zip(samples, compared, strict=True)):
                have, want = commit.keys[i] if commit else None, _key(column, sample, now)
                if lost is not None and i not in lost[column.name]:
                    self.work.counts[column.name]["hit"] += have is not None
                    continue
                if now.gone and want and have in (None, LOST) and column.reads == "image" and commit:
                    self.work.lacking.setdefault(column.name, []).append(str((now.row or {}).get("id")))
                state = self._state(column, have, want, sample, now)
                if state:
                    self.work.counts[column.name][state] += 1
                if column.reads == "image" and state in ("changed", "new"):
                    pictures.setdefault(i, []).append(column.name)
                # What a picture that is gone looked like cannot be encoded any more, only dropped.
                edited = edited or have == LOST
                edited = edited or (have != want and (want is None or column.reads == "captions" or sample is not None))
        if edited or pictures:
            rows, hashes = [c.row for c in compared], [c.sha256 for c in compared]
            fed = {i: tuple(names) for i, names in sorted(pictures.items())}
            self.work.tasks.append(ShardTask(shard, samples, rows, hashes, committed, fed, lost))

    def _state(
        self, column: Column, have: str | None, want: str | None, sample: Sample | None, now: Compared
    ) -> str | None:
        if sample is None:
            return "gone" if now.gone else None
        if now.row and "set_aside" in now.row:
            return "set aside"
        if have is not None and have == want:
            return "hit"
        if column.name in self.replaced:
            self.work.changed.setdefault(sample.id, self.replaced[column.name])
            return "changed"
        if have is None:
            return "new"
        if have == LOST:
            self.work.changed.setdefault(sample.id, "its features are damaged")
            return "changed"
        behind = f"an earlier run left '{column.name}' behind (it was cut off, or --columns named others)"
        self.work.changed.setdefault(sample.id, behind)
        return "changed"

    def _append_new(self, new: list[Sample]) -> None:
        self.work.new_ids = [sample.id for sample in new]
        self.work.first_new_shard = self.cache.shard_count if self.cache else 0
        nothing = dict.fromkeys(self._generations)
        for number, start in enumerate(range(0, len(new), self.shard_size), self.work.first_new_shard):
            samples = new[start : start + self.shard_size]
            compared = [self._note(None, self._compare(None, None, s, s.id), s, s.id) for s in samples]
            self._add_task(number, samples, compared, nothing, True)


def _key(column: Column, sample: Sample | None, now: Compared) -> str | None:
    """The key that a row is to have: for one whose picture is still to be read, if that turns out to be readable."""
    if now.row is not None:
        return column.key_of(now.row)
    if column.reads == "captions":
        return column.input_key(list(sample.captions)) if sample else None
    return column.input_key(now.sha256) if now.sha256 else None
