"""A toy cache that has lived: a caption was edited, a column made anew, a sample set aside; and all that is read of it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toy_cache import column, make_cache, row, sample, shards

from kcache.shards import Cache, ColumnReader, KcacheError, Snapshot, dataset_options, keep_dataset_options, read_null

NAMES = ("image", "text")


def lived_cache(root: Path, container: str) -> Cache:
    """Ten samples in three shards; shard 0 has a second generation in ``samples`` and ``text``, ``image`` an edition."""
    cache = make_cache(root, container, aside=frozenset({2, 5}))
    keep_dataset_options(cache, {"caption_column": "text"})
    keep_dataset_options(cache, {"caption_column": "prompt", "split": "train"})
    edited = [sample(n) | ({"captions": ["another", "more"]} if n == 1 else {}) for n in range(4)]
    cache.commit_samples(0, edited, [f"key {n}" for n in range(4)], generation=2)
    keys = [column("text").key_of(one) for one in edited]
    rows = [row("text", 21 if n == 1 else n) for n in range(4)]
    cache.commit_features(column("text"), 0, rows, keys, generation=2)
    anew = cache.replace_column(column("image", encoder="another"), row("image", 98))
    for shard, numbers in shards():
        made = [None if n in (2, 5) else row("image", 100 + n) for n in numbers]
        keys = [anew.key_of(sample(n)) if one else None for n, one in zip(numbers, made, strict=True)]
        cache.commit_features(anew, shard, made, keys)
    for name in NAMES:
        Snapshot(cache, [name])  # writes index/
    return cache


def current_files(cache: Cache) -> set[str]:
    """The files that a reader depends on, by their paths in the cache: neither derived nor superseded."""
    files = {"kcache.json", *(p.relative_to(cache.root).as_posix() for p in cache.root.glob("plan/*"))}
    files |= {max(p.relative_to(cache.root).as_posix() for p in cache.root.glob("dataset/*"))}
    for name in ("samples", *NAMES):
        for shard, generation in cache.commits(name).items():
            commit = cache.commit(name, shard, generation)
            path = cache.commit_path(name, shard, generation).relative_to(cache.root).as_posix()
            files |= {path, commit.file, *([str(commit.index["file"])] if commit.index else [])}
        if name != "samples":
            null = cache.column(name).null or {}
            files |= {f"columns/{cache.stem(name)}.json", null["file"], null["index"]["file"]}
    return files


def read_parts(root: Path) -> dict[str, object]:
    """Everything that a cache gives its readers, part by part: the values, or the `KcacheError` that refused them."""
    parts: dict[str, Callable[[Cache], object]] = {
        "root": lambda cache: (cache.shard_size, cache.container, cache.shard_count, cache.column_names()),
        "plan": lambda cache: [cache.planned_ids(shard) for shard in range(3)],
        "ids": lambda cache: [cache.ids(shard) for shard in range(3)],
        "samples": lambda cache: [cache.samples(shard) for shard in range(3)],
        "dataset": dataset_options,
    }
    for name in NAMES:
        parts |= {
            f"{name}: record": lambda cache, name=name: cache.column(name).to_record(),
            f"{name}: null": lambda cache, name=name: _bytes(dict(read_null(cache, cache.column(name)))),
            f"{name}: rows": lambda cache, name=name: features(cache, name),
        }
    opened = _outcome(lambda: Cache(root))
    if isinstance(opened, KcacheError):
        return dict.fromkeys(parts, opened)
    return {name: _outcome(lambda read=read: read(opened)) for name, read in parts.items()}


def features(cache: Cache, name: str) -> dict[str, object]:
    """The digest of a column's snapshot, and every field of every row by its place."""
    snapshot = Snapshot(cache, [name])
    reader = ColumnReader(snapshot, name)
    try:
        rows = {
            tuple(place): _bytes({f.name: reader.read(i, f.name) for f in reader.column.fields})
            for i, place in enumerate(snapshot.rows.tolist())
        }
    finally:
        reader.close()
    return {"digest": snapshot.digest, "rows": rows}


def _bytes(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def _outcome(read: Callable[[], object]) -> object:
    try:
        return read()
    except KcacheError as error:
        return error


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TimeoutError where what is inside hangs; on Windows, which has no such signal, nothing is timed."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
