"""A toy cache of ten samples in three shards, written and read without any encoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from support import Array

from kcache.shards import (
    Cache,
    Column,
    ColumnReader,
    Field,
    Snapshot,
)
from kcache.shards.records import dump_record, load_record

FIELDS = {
    "text": (Field("text_embeds", "float32", (None, 3)), Field("hidden_states", "float16", (None, 5))),
    "image": (Field("image_embeds", "float32", (3,)),),
}
READS = {"text": "captions", "image": "image"}
SAMPLES, SHARD_SIZE = 10, 4
Row = dict[str, Array]


def column(name: str, encoder: str = "one") -> Column:
    return Column(name, READS[name], FIELDS[name], {"class": encoder}, {}, "fp32")


def row(name: str, number: int) -> Row:
    """The features of one sample: ragged fields have from one to three steps."""
    random = np.random.default_rng(number)
    shapes = {f.name: tuple(1 + number % 3 if n is None else n for n in f.shape) for f in FIELDS[name]}
    return {f.name: random.normal(size=shapes[f.name]).astype(f.dtype) for f in FIELDS[name]}


def shards() -> Iterator[tuple[int, range]]:
    for shard, start in enumerate(range(0, SAMPLES, SHARD_SIZE)):
        yield shard, range(start, min(start + SHARD_SIZE, SAMPLES))


def sample(number: int) -> dict[str, object]:
    """What the samples column says of one sample."""
    return {"id": f"sample {number}", "captions": ["a"], "sha256": "0", "width": 1, "height": 1}


def commit_shard(cache: Cache, name: str, shard: int, numbers: range, aside: frozenset[int] = frozenset()) -> None:
    rows = [None if n in aside else row(name, n) for n in numbers]
    keys = [None if r is None else column(name).key_of(sample(n)) for n, r in zip(numbers, rows, strict=True)]
    cache.commit_features(column(name), shard, rows, keys)


def make_cache(root: Path, container: str = "tar", aside: frozenset[int] = frozenset()) -> Cache:
    """Ten samples in three shards; those in ``aside`` have no image."""
    cache = Cache.create(root, shard_size=SHARD_SIZE, container=container)
    cache.extend_plan([f"sample {n}" for n in range(SAMPLES)])
    for name in FIELDS:
        cache.add_column(column(name), row(name, 99))
    for shard, numbers in shards():
        cache.commit_samples(shard, [sample(n) for n in numbers], [f"key {n}" for n in numbers])
        commit_shard(cache, "text", shard, numbers)
        commit_shard(cache, "image", shard, numbers, aside)
    return cache


def read_all(cache: Cache, name: str) -> list[Row]:
    """All rows of a column through a new reader, which reads everything from the disk again."""
    snapshot = Snapshot(cache, [name])
    reader = ColumnReader(snapshot, name)
    try:
        return [{f.name: reader.read(i, f.name) for f in FIELDS[name]} for i in range(len(snapshot))]
    finally:
        reader.close()


def assert_rows(rows: list[Row], expected: list[Row]) -> None:
    assert len(rows) == len(expected)
    for one, other in zip(rows, expected, strict=True):
        assert {f: (a.dtype, a.shape, a.tobytes()) for f, a in one.items()} == {
            f: (a.dtype, a.shape, a.tobytes()) for f, a in other.items()
        }


def shard_file(cache: Cache, name: str, shard: int) -> Path:
    return cache.root / cache.commit(name, shard, 1).file


def with_record(path: Path, **changes: object) -> None:
    """Rewrite a record with other values and a right checksum: not damage, but what another program might write."""
    path.write_bytes(dump_record({**load_record(path), **changes}))
