"""Shard after shard: pictures from the pool through the encoders, finished and committed one behind."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np

from kcache.shards import Cache, Column, Commit, KcacheError, layout, read_rows
from kcache.shards.commits import samples_key

from .dataset import Dataset
from .encoders import Awaited, Encoder, Features, ImageEncoder
from .finishing import Finisher
from .images import Decoding
from .memory import Memory
from .pictures import Picture, prepare
from .sample_rows import SamplesRow, aside
from .work import ShardTask


class ShardEncoder:
    """Encodes the shards of one run; counts what it encoded and what it set aside."""

    def __init__(
        self,
        cache: Cache,
        dataset: Dataset,
        encoders: dict[str, Encoder],
        columns: dict[str, Column],
        memory: Memory,
        decoding: Decoding,
        batch_size: int,
        max_upscale: float,
    ) -> None:
        """``columns`` are those of ``encoders`` as they stand in the cache."""
        self.cache, self.dataset, self.columns, self.memory = cache, dataset, columns, memory
        self.decoding, self.batch_size, self.max_upscale = decoding, batch_size, max_upscale
        self.signature = decoding.signature
        self.encoded = dict.fromkeys(columns, 0)
        self.set_aside: dict[str, str] = {}
        self.shards_written = 0
        self.animated: list[str] = []
        self.upscaled = Counter[str]()
        self.text = {n: e for n, e in encoders.items() if columns[n].reads == "captions"}
        self.image = {n: cast(ImageEncoder, e) for n, e in encoders.items() if columns[n].reads == "image"}

    def prepare(self, item: tuple[ShardTask, int]) -> Picture:
        """One picture ready for the columns that it feeds (in the pool)."""
        task, row = item
        sample = task.samples[row]
        assert sample is not None
        return prepare(self.dataset, sample, {name: self.image[name] for name in task.pictures[row]}, self.decoding)

    def encode_shard(
        self, task: ShardTask, ready: Iterator[Picture], advance: Callable[[int], Any], finisher: Finisher
    ) -> None:
        """Encode what is to do in one shard, and have the finisher do the rest: to it alone belong the features."""
        rows = list(task.rows)
        features: dict[str, dict[int, Features]] = {name: {} for name in self.columns}
        batch: dict[int, Picture] = {}
        for i in task.pictures:
            picture = next(ready)
            if self._note(task, i, picture, rows):
                batch[i] = picture
            if len(batch) == self.batch_size:
                self._encode_pictures(task, batch, features, finisher)
                batch = {}
            advance(1)
        self._encode_pictures(task, batch, features, finisher)
        final = [row for row in rows if row is not None]
        assert len(final) == len(rows)
        self._encode_captions(task, final, features, finisher)
        finisher.put_commit(lambda: self._commit(task, final, features))

    def _note(self, task: ShardTask, i: int, picture: Picture, rows: list[SamplesRow | None]) -> bool:
        """Fill in a sample's row, or check it against what the row says; whether there is anything to encode."""
        sample, known = task.samples[i], rows[i]
        assert sample is not None
        expected = task.sha256[i]
        if picture.sha256 != expected and expected is not None:
            raise KcacheError(f"'{sample.id}' changed while it was being encoded; run the same command again")
        if picture.sha256:
            self.memory.learn(sample.id, picture.stat, picture.sha256)
        if picture.set_aside is not None:
            self.set_aside[sample.id] = picture.set_aside
            # A row that an earlier run could decode (with more memory, another limit) keeps what it has.
            rows[i] = known or aside(sample, picture.set_aside, picture.sha256, transient=picture.transient)
            return False
        row: SamplesRow = {"id": sample.id, "captions": list(sample.captions), "sha256": picture.sha256}
        row |= {"width": picture.width, "height": picture.height}
        rows[i] = known or row
        if picture.frames > 1:
            self.animated.append(sample.id)
        return True

    def _encode_pictures(
        self,
        task: ShardTask,
        batch: dict[int, Picture],
        features: dict[str, dict[int, Features]],
        finisher: Finisher,
    ) -> None:
        for name, encoder in self.image.items():
            fed = [i for i in batch if name in task.pictures[i]]
            if not fed:
                continue  # an encoder that has nothing to do is not even loaded
            prepared = [batch[i].prepared.pop(name) for i in fed]
            ids = {i: batch[i].id for i in fed}
            coming = list(encoder.features(prepared, self.batch_size))
            finisher.put(partial(self._store, name, ids, coming, features[name]))
            resolution = int(self.columns[name].preprocessing.get("resolution", 0))
            small = [i for i in fed if resolution > self.max_upscale * min(batch[i].width, batch[i].height)]
            self.upscaled[name] += len(small)

    def _encode_captions(
        self,
        task: ShardTask,
        rows: list[SamplesRow],
        features: dict[str, dict[int, Features]],
        finisher: Finisher,
    ) -> None:
        for name, encoder in self.text.items():
            keys = [self.columns[name].key_of(row) for row in rows]
            due = [i for i, key in enumerate(keys) if key is not None and task.writes(name, i)]
            stale = [i for i in due if keys[i] != task.key(name, i)]
            captions = [rows[i]["captions"] for i in stale]
            encoded = encoder.features(captions, self.batch_size) if captions else iter(())
            for start in range(0, len(stale), self.batch_size):
                ids = {i: rows[i]["id"] for i in stale[start : start + self.batch_size]}
                finisher.put(partial(self._store, name, ids, list(islice(encoded, len(ids))), features[name]))

    def _store(self, name: str, ids: dict[int, str], coming: Sequence[Awaited], into: dict[int, Features]) -> None:
        """Wait for the features of rows, and keep them as they are stored; ``ids`` are their samples by row."""
        for (i, sample), wait in zip(ids.items(), coming, strict=True):
            into[i] = store(self.columns[name], wait(), sample)
        self.encoded[name] += len(ids)

    def _commit(self, task: ShardTask, rows: list[SamplesRow], features: dict[str, dict[int, Features]]) -> None:
        """Commit the samples column first: features without their samples would be unexplained."""
        before = task.committed[layout.SAMPLES]
        keys = [samples_key(row, self.signature) for row in rows]
        is_old = before is None or list(before.keys) != keys or self.cache.rows_of(before) != rows
        if is_old and _may_change(task, layout.SAMPLES):
            self.cache.commit_samples(task.shard, rows, keys, _next(before))
            self.shards_written += 1
        for name, by_row in features.items():
            if _may_change(task, name):
                self._commit_column(task, self.columns[name], rows, by_row)

    def _commit_column(
        self, task: ShardTask, column: Column, rows: list[SamplesRow], encoded: dict[int, Features]
    ) -> None:
        """One column of a shard: what was encoded, and beside it the bytes of the rows that are as they were."""
        before = task.committed[column.name]
        keys = [
            column.key_of(r) if task.writes(column.name, i) else task.key(column.name, i) for i, r in enumerate(rows)
        ]
        kept = [i for i, key in enumerate(keys) if key is not None and key == task.key(column.name, i)]
        made = {*kept, *encoded}
        now = [key if i in made else None for i, key in enumerate(keys)]
        if before is not None and list(before.keys) == now:
            return
        stored = {**(read_rows(self.cache, column, before, kept) if before and kept else {}), **encoded}
        self.cache.commit_features(column, task.shard, [stored.get(i) for i in range(len(rows))], now, _next(before))
        self.shards_written += 1


def _may_change(task: ShardTask, column: str) -> bool:
    return any(task.writes(column, row) for row in range(len(task.rows)))


def _next(before: Commit | None) -> int:
    return before.generation + 1 if before else 1


def store(column: Column, features: Features, sample: str) -> Features:
    """The arrays in the dtypes that the column stores. KcacheError naming the sample when a value does not fit."""
    stored = {}
    for spec in column.fields:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(features[spec.name]).astype(spec.dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            finite = bool(np.isfinite(features[spec.name]).all())
            fault = f"is too large for {spec.dtype}" if finite else "is not a finite number"
            remedy = "--store-dtype fp32" if finite else "--encode-dtype fp32"
            raise KcacheError(
                f"field '{spec.name}' of column '{column.name}' {fault} for sample '{sample}': the encoder or its"
                f" precision is at fault, not the picture; encode again with {remedy} into another folder"
            )
        stored[spec.name] = array
    return stored
