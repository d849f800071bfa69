"""Changes to a cache that carry right checksums, as another program would make them, and all that reads a cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lived_cache import NAMES, read_parts
from toy_cache import with_record

from kcache.shards import Cache, KcacheError, read_rows, summarize, verify
from kcache.shards.columns import Column
from kcache.shards.commits import digests
from kcache.shards.index import Entries, dump_index, load_index
from kcache.shards.records import digest, dump_lines, dump_record, load_record


def exercise(root: Path) -> list[str]:
    """Read, verify and describe a cache in all ways; the sentences of what refused. Any other exception is raised."""
    said = [str(part) for part in read_parts(root).values() if isinstance(part, KcacheError)]
    for act in (_verified, lambda cache: [str(summarize(cache))][:0], _rows_to_copy):
        try:
            said += act(Cache(root))
        except KcacheError as error:
            said.append(str(error))
    return said


def _verified(cache: Cache) -> list[str]:
    return [f"{fault.path}: {fault.problem}" for fault in verify(cache, deep=True).faults]


def _rows_to_copy(cache: Cache) -> list[str]:
    for name in NAMES:
        for shard, generation in cache.commits(name).items():
            commit = cache.commit(name, shard, generation)
            read_rows(cache, cache.column(name), commit, [i for i, key in enumerate(commit.keys) if key is not None])
    return []


def with_column(path: Path, **changes: object) -> None:
    """Another column's record, with the fingerprint that belongs to it."""
    record = {**load_record(path), **changes}
    parts = ("fields", "encoder", "preprocessing", "encode_dtype")
    record["fingerprint"] = digest({part: record[part] for part in parts})
    path.write_bytes(dump_record(record))


def with_rows(cache: Cache, shard: int, rows: list[Any]) -> None:
    """Other rows in the samples column, committed."""
    path = cache.commit_path("samples", shard, cache.commits("samples")[shard])
    data = dump_lines(rows)
    (cache.root / load_record(path)["file"]).write_bytes(data)
    with_record(path, **digests(data))


def with_index(cache: Cache, name: str, shard: int, change: Callable[[Entries], object]) -> None:
    """Another index of a shard, committed."""
    path = cache.commit_path(name, shard, cache.commits(name)[shard])
    index = load_record(path)["index"]
    entries = load_index((cache.root / index["file"]).read_bytes(), "").copy()
    change(entries)
    write_index(cache, path, dump_index(entries))


def write_index(cache: Cache, commit: Path, data: bytes) -> None:
    """Any bytes as the index that a commit names."""
    index = load_record(commit)["index"]
    (cache.root / index["file"]).write_bytes(data)
    with_record(commit, index={**index, **digests(data)})


def as_record(value: object) -> bytes:
    """Any JSON value as a record, its checksum right where it can have one."""
    if not isinstance(value, dict):
        return (json.dumps(value) + "\n").encode()
    record = {key: part for key, part in value.items() if key != "checksum"}
    return (json.dumps({**record, "checksum": digest(record)}, indent=1, ensure_ascii=False) + "\n").encode()


def fields_of(column: Column, **changes: object) -> list[dict[str, object]]:
    """The fields of a column as its record has them, the first one with changes."""
    first, *others = column.to_record()["fields"]
    return [{**first, **changes}, *others]
