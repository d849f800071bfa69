"""The moves of a cache's life as a hypothesis state machine: a dataset is edited, a cache follows it, faults strike."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cache_model import COLUMNS, CacheModel, Key, Row, Said, Shard
from disk import DEAD_PROCESS, Call, Disk, Killed, end_process
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from living_dataset import BROKEN, CAPTIONS, NAMES, PICTURES, LivingDataset
from tally import Tally

from kcache.copies import ConvertConfig, compact, convert
from kcache.encoding.config import EncodeConfig
from kcache.encoding.encode import encode
from kcache.encoding.repair import fill_in
from kcache.encoding.report import EncodeReport
from kcache.shards import Cache, CacheError, ColumnReader, Snapshot, layout, verify
from kcache.shards.clearing import clear
from kcache.shards.diff import diff
from kcache.shards.leftovers import find_leftovers
from kcache.shards.repair import repair

SHARD_SIZE = 3
SPARED = ("index/", "kcache.json", "README.md")
"""What nothing else can bring back, or what may be lost at any time."""

Change = tuple[Any, ...]
"""The name of one of the changes of `LivingDataset`, and with what."""

names = st.sampled_from(NAMES)
pictures, broken = st.sampled_from(sorted(PICTURES)), st.sampled_from(sorted(BROKEN))
caption = st.sampled_from(CAPTIONS) | st.text(max_size=12)
captions = caption | st.lists(caption, min_size=1, max_size=3)
no_caption = st.sampled_from([None, []])

changes = st.one_of(
    st.tuples(st.just("add"), names, pictures, captions),
    st.tuples(st.just("add"), names, pictures, captions),
    st.tuples(st.just("caption_anew"), names, captions | no_caption),
    st.tuples(st.just("lose_a_row"), names),
    st.tuples(st.just("replace"), names, pictures | broken),
    st.tuples(st.just("lose_a_picture"), names, st.booleans()),
    st.tuples(st.just("move"), names, names),
    st.tuples(st.just("exchange"), names, names),
    st.tuples(st.just("copy"), names, names, captions),
)
some_columns = st.just(COLUMNS) | st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True).map(tuple)


@dataclass
class World:
    """What all machines of a test share: checkpoints, the features of every content, and where they work."""

    folder: Path
    checkpoints: dict[str, str]
    tally: Tally
    machines: int = 0
    features: dict[tuple[str, Key], dict[str, bytes]] = field(default_factory=dict)

    def config(self, cache: Path, dataset: Path, container: str, **more: Any) -> EncodeConfig:
        """One sample a batch, so that features do not depend on who shares it."""
        new = {} if (cache / layout.ROOT_RECORD).exists() else {"format": container, "shard_size": SHARD_SIZE}
        fixed = {"device": "cpu", "batch_size": 1, "workers": 1, "store_dtype": "fp32", "resolution": (16,)}
        return EncodeConfig(cache=str(cache), dataset=str(dataset), **self.checkpoints, **fixed, **new, **more)

    def expected(self, column: str, key: Key) -> dict[str, bytes]:
        """The features of some captions or of a picture, straight from the encoder; computed once."""
        if (column, key) not in self.features:
            self.features[column, key] = {name: array.tobytes() for name, array in self._encoded(column, key).items()}
        return self.features[column, key]

    def _encoded(self, column: str, key: Key) -> dict[str, Any]:
        from kcache.encoding.columns import make_encoders
        from kcache.encoding.images import Decoding, decode

        encoder: Any = make_encoders(self.config(self.folder / "none", self.folder, "tar", columns=(column,)), None)[
            column
        ]
        if isinstance(key, str):
            (data,) = (data for data in PICTURES.values() if sha256(data).hexdigest() == key)
            image = decode(data, Decoding("white", 2**20)).image
            return dict(next(encoder.features([encoder.prepare(image, key)], 1))())
        return dict(next(encoder.features([key], 1))())


class CacheMachine(RuleBasedStateMachine):
    """Each rule changes the dataset, or does something to the cache and says what is to come of it."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.machines += 1
        self.folder = self.world.folder / str(self.world.machines)
        self.dataset = LivingDataset(self.folder / "pictures")
        self.model = CacheModel(SHARD_SIZE)
        self.pins: list[tuple[Snapshot, dict[str, Any]]] = []
        self.copies = 0
        self.held: list[Snapshot] = []
        """Pinned before a damage, which their readers may be told of."""
        self.damaged: str | None = None
        self.is_touched = False
        """Whether the last move did anything to the cache."""
        self.done = Counter[str]()

    @initialize(container=st.sampled_from(layout.CONTAINERS), first=pictures, text=captions)
    def begin(self, container: str, first: str, text: Any) -> None:
        (self.folder / "disk0").mkdir(parents=True)
        self.container, self.cache = container, self.folder / "disk0" / "cache"
        self.dataset.add(NAMES[0], first, text)

    def teardown(self) -> None:
        self.pins.clear(), self.held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        for kind, number in self.done.items():
            self.world.tally.add(f"state machine: {kind}", number)

    @precondition(lambda self: self.damaged is None)
    @rule(changes=st.lists(changes, min_size=1, max_size=5))
    def edit(self, changes: list[Change]) -> None:
        """Some changes of the dataset; one that has nothing to change there does nothing."""
        for name, *chosen in changes:
            getattr(self.dataset, name)(*chosen)

    # -- the cache

    @property
    def exists(self) -> bool:
        return (self.cache / layout.ROOT_RECORD).exists()

    @property
    def can_encode(self) -> bool:
        return self.damaged is None and self.dataset.is_readable

    @property
    def is_open(self) -> bool:
        return self.exists and self.damaged is None

    def run_encode(self, columns: tuple[str, ...], *, prune: bool = False) -> EncodeReport:
        config = self.world.config(self.cache, self.dataset.folder, self.container, columns=columns, prune=prune)
        return encode(config)

    @precondition(lambda self: self.can_encode)
    @rule(columns=some_columns, prune=st.booleans())
    def encode(self, columns: tuple[str, ...], prune: bool) -> None:
        said, after = self.model.encoded(self.dataset.samples, columns, prune=prune)
        report = self.run_encode(columns, prune=prune)
        check_report(report, said)
        self.model = settled(Cache(self.cache), self.model, after, complete=True)
        self.is_touched = True
        self.done["encodes"] += 1

    @precondition(lambda self: self.can_encode)
    @rule(columns=some_columns, prune=st.booleans(), call=st.integers(0, 160), resumed=st.booleans())
    def encode_and_be_killed(self, columns: tuple[str, ...], prune: bool, call: int, resumed: bool) -> None:
        _, after = self.model.encoded(self.dataset.samples, columns, prune=prune)
        killed = killed_at(self.cache.parent, call, lambda: self.run_encode(columns, prune=prune))
        self.done["kills"] += killed
        if self.exists:
            self.model = settled(Cache(self.cache), self.model, after, complete=not killed)
            self.is_touched = True
            self.check_features()
        if resumed:
            self.encode(columns, prune)

    @precondition(lambda self: self.is_open)
    @rule()
    def pin(self) -> None:
        finished = [name for name in self.model.columns if self.model.is_finished([name])]
        if finished:
            snapshot = Snapshot(Cache(self.cache), finished)
            self.pins = [*self.pins[-1:], (snapshot, values(snapshot))]

    @precondition(lambda self: self.is_open)
    @rule(call=st.none() | st.integers(0, 20))
    def clear(self, call: int | None) -> None:
        def gc() -> None:
            clear(Cache(self.cache), find_leftovers(Cache(self.cache), 0.0), 0.0)

        self.done["kills"] += killed_at(self.cache.parent, call, gc)
        gc()
        assert find_leftovers(Cache(self.cache), 0.0).found == []
        self.is_touched = True
        self.done["clearings"] += 1

    @precondition(lambda self: self.is_open)
    @rule(call=st.none() | st.integers(0, 60))
    def convert(self, call: int | None) -> None:
        """The cache goes on as its copy in the other container."""
        other = next(kind for kind in layout.CONTAINERS if kind != self.container)
        to = self.new_folder()
        config = ConvertConfig(str(self.cache), str(to), other)
        self.done["kills"] += killed_at(to.parent, call, lambda: convert(config))
        convert(config)
        assert not diff(Cache(self.cache), Cache(to), deep=True).differs
        self.container, self.cache = other, to
        self.model = CacheModel(
            SHARD_SIZE, [Shard(s.names, s.rows, s.keys) for s in self.model.shards], self.model.columns
        )
        self.is_touched = True
        self.done["conversions"] += 1

    @precondition(lambda self: self.is_open and self.model.is_finished())
    @rule()
    def compact(self) -> None:
        """The cache goes on as its copy without the rows that were removed."""
        to = self.new_folder()
        compact(str(self.cache), str(to))
        assert not diff(Cache(self.cache), Cache(to), deep=True).differs
        self.cache, self.model = to, compacted(self.model)
        self.is_touched = True
        self.done["conversions"] += 1

    @precondition(lambda self: self.is_open)
    @rule()
    def compare_with_itself(self) -> None:
        assert not diff(Cache(self.cache), Cache(self.cache), deep=True).differs

    @precondition(lambda self: self.can_encode)
    @rule(which=st.integers(0, 10**6), how=st.sampled_from(["flip", "cut", "zero", "remove"]), at=st.floats(0, 1))
    def damage(self, which: int, how: str, at: float) -> None:
        """Something happens to a file of a cache that is up to date, so that the dataset has what it loses."""
        self.encode(COLUMNS, prune=True)
        assert self.model.follows(self.dataset.samples)
        files = sorted(self.current_files())
        self.damaged = files[which % len(files)]
        self.held += [snapshot for snapshot, _ in self.pins if snapshot.cache.root == self.cache]
        self.pins = [pin for pin in self.pins if pin[0].cache.root != self.cache]
        path = self.cache / self.damaged
        data = path.read_bytes()
        place = min(int(at * len(data)), len(data) - 1)
        path.unlink()
        if how != "remove":
            changed = {"flip": bytes([data[place] ^ 1]), "cut": b"", "zero": bytes([(data[place] and 0) or 1])}[how]
            path.write_bytes(data[:place] + changed + (b"" if how == "cut" else data[place + 1 :]))
        self.done["damages"] += 1

    @precondition(lambda self: self.damaged is not None)
    @rule()
    def repair(self) -> None:
        found = repair(self.cache)
        if found.lost:
            fill_in(self.world.config(self.cache, self.dataset.folder, self.container), found)
        self.damaged = None
        assert verify(Cache(self.cache), deep=True).faults == []
        self.run_encode(COLUMNS, prune=True)
        self.model = settled(Cache(self.cache), self.model, self.model, complete=True)
        self.is_touched = True
        self.done["repairs"] += 1

    @precondition(lambda self: self.exists)
    @rule(deep=st.booleans())
    def verify(self, deep: bool) -> None:
        """Damage is noticed; but of a commit that is not there nobody can tell whether it ever was (docs/format.md)."""
        try:
            faults = verify(Cache(self.cache), deep=deep or self.damaged is not None).faults
        except CacheError:
            assert self.damaged
        else:
            path = self.damaged or ""
            is_unseen = path.startswith("commits/") and not (self.cache / path).exists()
            assert bool(faults) == (self.damaged is not None) or is_unseen, faults or self.damaged

    # -- what always holds

    @invariant()
    def all_is_well(self) -> None:
        """Nothing is damaged but by a fault that is not mended yet, and what was pinned is read as it was."""
        if self.is_open and self.is_touched:
            assert verify(Cache(self.cache), deep=True).faults == []
            self.check_features()
        for snapshot, before in self.pins if self.is_touched else ():
            assert values(snapshot) == before
        self.is_touched = False

    def check_features(self) -> None:
        """Every row that is current has the features of its captions or picture, to the bit; no other row has any."""
        cache = Cache(self.cache)
        for column in self.model.columns:
            wanted = {
                (n, i): self.world.expected(column, key)
                for n, shard in enumerate(self.model.shards)
                for i, (row, key) in enumerate(zip(shard.rows or (), shard.keys.get(column, ()), strict=False))
                if key is not None and key == row.key(column)
            }
            if any(column in shard.keys for shard in self.model.shards):
                assert values(Snapshot(cache, [column], partial=True))[column] == wanted
            if self.model.is_finished([column]):
                Snapshot(cache, [column])
            else:
                with pytest.raises(CacheError):
                    Snapshot(cache, [column])

    def current_files(self) -> Iterator[str]:
        """What the cache cannot do without, and can be brought back to what it was, ids and all."""
        leftovers = find_leftovers(Cache(self.cache), 0.0)
        spared = {one.path for one in (*leftovers.found, *leftovers.in_use, *leftovers.young)}
        fixed = [f"{n:06}" for n, shard in enumerate(self.model.shards) if self.is_moved(shard)]
        for path in self.cache.rglob("*"):
            name = path.relative_to(self.cache).as_posix()
            about_samples = name.startswith(("samples/", "commits/samples/", "plan/"))
            is_spared = name in spared or name.startswith(SPARED)
            if path.is_file() and not is_spared and not (about_samples and path.name.startswith(tuple(fixed))):
                yield name

    def is_moved(self, shard: Shard) -> bool:
        """Whether the samples say what no dataset does: which sample had another name, which was removed."""
        return shard.names != shard.ids or any(row.removed for row in shard.rows or ())

    def new_folder(self) -> Path:
        self.copies += 1
        (self.folder / f"disk{self.copies}").mkdir()
        return self.folder / f"disk{self.copies}" / "cache"


def killed_at(folder: Path, call: int | None, act: Any) -> bool:
    """Do something in a process that is killed before one of its calls; whether it came to that."""
    if call is None:
        act()
        return False

    def die(number: int, made: Call) -> None:
        if number >= call:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        Disk(folder, die).mount(patch)
        try:
            act()
        except Killed:
            killed = True
        else:
            killed = False
    end_process(folder)
    for path in folder.rglob(f"leases/*-{os.getpid()}-*"):
        if path.name.startswith(("writer-", "gc-")):
            path.rename(path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{DEAD_PROCESS}-")))
    return killed


def values(snapshot: Snapshot) -> dict[str, dict[tuple[int, int], dict[str, bytes]]]:
    """All that a snapshot's readers get, by column and place."""
    found = {}
    for name in snapshot.pinned:
        reader = ColumnReader(snapshot, name)
        found[name] = {
            (shard, row): {f.name: reader.read(i, f.name).tobytes() for f in reader.column.fields}
            for i, (shard, row) in enumerate(snapshot.rows.tolist())
        }
        reader.close()
    return found


def check_report(report: EncodeReport, said: Said) -> None:
    """The encode said what the model says."""
    assert {name: +counts for name, counts in report.counts.items()} == {n: +c for n, c in said.counts.items()}
    assert report.encoded == said.encoded or report.encoded == {}
    assert {**dict.fromkeys(said.encoded, 0), **report.encoded} == said.encoded
    assert report.renamed == said.renamed
    assert report.gone.keys() == said.gone
    assert report.set_aside.keys() == said.aside
    assert report.taken_out.keys() == said.taken_out
    assert report.changed.keys() == said.changed


def settled(cache: Cache, before: CacheModel, after: CacheModel, *, complete: bool) -> CacheModel:
    """The cache as it is found: every shard of every column as it was or as it is to be; the latter if ``complete``."""
    found = [shard_of(cache, n) for n in range(cache.shard_count)]
    assert len(found) == len(after.shards) or not complete
    assert len(before.shards) <= len(found) <= len(after.shards)
    assert {*before.columns} <= {*cache.column_names()} <= {*after.columns}
    shards = []
    for n, (rows, keys) in enumerate(found):
        new = after.shards[n]
        old = before.shards[n] if n < len(before.shards) else Shard(new.ids)
        assert cache.planned_ids(n) == new.ids
        kept = new.rows if rows == plain(new.rows) else old.rows
        assert rows == plain(kept)
        shards.append(Shard(new.ids, kept, {}))
        for name in COLUMNS:
            column = cache.column(name) if name in cache.column_names() else None
            ways = [new.keys.get(name), *([] if complete else [old.keys.get(name)])]
            made = keys.get(name)
            way = next((way for way in ways if same_keys(column, way, made, kept)), "neither")
            assert way != "neither", (n, name, made, ways)
            if way is not None:
                shards[-1].keys[name] = [key if there else None for key, there in zip(way, made, strict=True)]
        assert kept == new.rows or shards[-1].keys == old.keys  # samples are committed first
    names = tuple(name for name in COLUMNS if name in cache.column_names())
    result = CacheModel(before.shard_size, shards, names)
    assert not complete or (result.places, names) == (after.places, after.columns)
    return result


def same_keys(column: Any, way: list[Key] | None, made: list[str | None] | None, rows: list[Row] | None) -> bool:
    """Whether a commit's keys are those of a way; what was made of another picture than the row's may be dropped."""
    if way is None or made is None:
        return way is made
    hashed = [key if key is None else column.input_key(list(key) if isinstance(key, tuple) else key) for key in way]
    return all(
        one == other or (other is None and rows is not None and key != row.key(column.name))
        for one, other, key, row in zip(hashed, made, way, rows or [None] * len(way), strict=True)
    )


def shard_of(cache: Cache, number: int) -> tuple[list[Any] | None, Mapping[str, list[str | None]]]:
    """The rows of a shard and the keys of its commits, as they are on the disk."""
    generations = cache.commits(layout.SAMPLES)
    rows = None
    if number in generations:
        rows = [
            (r["id"], tuple(r["captions"]), r["sha256"], "set_aside" in r, "removed" in r)
            for r in cache.samples(number, generations[number])
        ]
    keys = {}
    for name in cache.column_names():
        generation = cache.commits(name).get(number)
        if generation:
            keys[name] = list(cache.commit(name, number, generation).keys)
    return rows, keys


def plain(rows: list[Row] | None) -> list[Any] | None:
    """Rows as `shard_of` has them."""
    return rows and [(r.id, r.captions, r.sha256, r.aside is not None, r.removed) for r in rows]


def compacted(model: CacheModel) -> CacheModel:
    """The model without its removed rows, in full shards."""
    rows, keys = [], {name: [] for name in model.columns}
    for shard in model.shards:
        for i, row in enumerate(shard.rows or ()):
            if not row.removed:
                rows.append(row)
                for name in model.columns:
                    keys[name].append(shard.keys[name][i])
    starts = range(0, len(rows), model.shard_size)
    cut = [(rows[i : i + model.shard_size], slice(i, i + model.shard_size)) for i in starts]
    shards = [Shard([r.id for r in some], some, {name: keys[name][part] for name in keys}) for some, part in cut]
    return CacheModel(model.shard_size, shards, model.columns)
