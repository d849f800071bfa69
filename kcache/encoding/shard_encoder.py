"""Shard after shard: pictures from the pool through the encoders, into commits that follow one behind."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from kcache.shards import Cache, Column, KcacheError
from kcache.shards.records import digest

from .config import EncodeConfig
from .dataset import Dataset, Sample
from .encoders import Encoder, Features, ImageEncoder
from .images import Decoding
from .memory import Memory
from .pictures import Picture, prepare
from .work import SamplesRow, ShardTask, input_of


class ShardEncoder:
    """Encodes the shards of one run; counts what it encoded and what it set aside."""

    def __init__(
        self,
        config: EncodeConfig,
        cache: Cache,
        dataset: Dataset,
        encoders: dict[str, Encoder],
        columns: dict[str, Column],
        memory: Memory,
    ) -> None:
        self.cache, self.dataset, self.columns, self.memory = cache, dataset, columns, memory
        self.encoded = dict.fromkeys(columns, 0)
        self.set_aside: dict[str, str] = {}
        self.decoding = Decoding(config.alpha or "white", config.max_pixels)
        self.batch_size = config.batch_size or 16
        self.workers = config.workers or min(8, os.cpu_count() or 1)
        self.samples = {sample.id: sample for sample in dataset.samples}
        self.text = {n: e for n, e in encoders.items() if columns[n].reads == "captions"}
        self.image = {n: cast(ImageEncoder, e) for n, e in encoders.items() if columns[n].reads == "image"}

    def to_decode(self, task: ShardTask) -> list[Sample]:
        """The samples of a shard whose pictures must be read."""
        if task.rows is not None and not any(name in self.image for name in task.columns):
            return []
        usable = [i for n, i in enumerate(task.ids) if task.rows is None or "set_aside" not in task.rows[n]]
        return [self.samples[i] for i in usable if i in self.samples]

    def prepare(self, item: tuple[ShardTask, Sample]) -> Picture:
        """One picture as the arrays that this shard's columns need (in the pool)."""
        task, sample = item
        wanted = {name: self.image[name] for name in task.columns if name in self.image}
        return prepare(self.dataset, sample, wanted, self.decoding)

    def encode_shard(
        self, task: ShardTask, ready: Iterator[Picture], advance: Callable[[int], Any]
    ) -> Callable[[], None]:
        """Encode one shard's missing columns; returns the function that commits them."""
        features: dict[str, dict[str, Features]] = {name: {} for name in task.columns}
        rows: dict[str, SamplesRow] = {row["id"]: row for row in task.rows or ()}
        batch: list[Picture] = []
        decoded = self.to_decode(task)
        for number, _ in enumerate(decoded, 1):
            picture = next(ready)
            self._note(task, picture, rows)
            if picture.set_aside is None:
                batch.append(picture)
            if len(batch) == self.batch_size or (number == len(decoded) and batch):
                self._encode_pictures(batch, features)
                batch = []
            advance(1)
        advance(len(task.ids) - len(decoded))
        self._encode_captions(rows, features)
        for sample_id in task.ids:
            # A sample that vanished between planning and now: it keeps its place, with the reason.
            rows.setdefault(sample_id, {"id": sample_id, "captions": [], "sha256": None, "set_aside": "it is gone"})
        for name, by_id in features.items():
            self.encoded[name] += len(by_id)
        ordered = [rows[sample_id] for sample_id in task.ids]
        return lambda: self._commit(task, ordered, features)

    def _note(self, task: ShardTask, picture: Picture, rows: dict[str, SamplesRow]) -> None:
        """Fill in a sample's row, or check it against the row that an earlier run wrote."""
        captions = list(self.samples[picture.id].captions)
        row: SamplesRow = {"id": picture.id, "captions": captions, "sha256": picture.sha256}
        if picture.set_aside is None:
            row |= {"width": picture.width, "height": picture.height}
        else:
            row["set_aside"] = picture.set_aside
            self.set_aside[picture.id] = picture.set_aside
        if rows.setdefault(picture.id, row) != row:
            raise KcacheError(f"'{picture.id}' changed while it was being encoded; run the same command again")
        if picture.sha256:
            self.memory.learn(picture.id, picture.stat, picture.sha256)

    def _encode_pictures(self, batch: list[Picture], features: dict[str, dict[str, Features]]) -> None:
        for name, encoder in self.image.items():
            if name in features:
                arrays = [picture.prepared.pop(name) for picture in batch]
                for picture, one in zip(batch, encoder.features(arrays, self.batch_size), strict=True):
                    features[name][picture.id] = store(self.columns[name], one, picture.id)

    def _encode_captions(self, rows: dict[str, SamplesRow], features: dict[str, dict[str, Features]]) -> None:
        usable = [row for row in rows.values() if "set_aside" not in row]
        for name, encoder in self.text.items():
            if name in features:
                encoded = encoder.features([row["captions"] for row in usable], self.batch_size)
                for row, one in zip(usable, encoded, strict=True):
                    features[name][row["id"]] = store(self.columns[name], one, row["id"])

    def _commit(self, task: ShardTask, rows: list[SamplesRow], features: dict[str, dict[str, Features]]) -> None:
        """Commit the samples column first: features without their samples would be unexplained."""
        if task.rows is None:
            keys = [digest([row["captions"], row["sha256"]]) for row in rows]
            self.cache.commit_samples(task.shard, rows, keys)
        for name, by_id in features.items():
            column = self.columns[name]
            keys_or_none = [column.input_key(input_of(column, row)) if row["id"] in by_id else None for row in rows]
            self.cache.commit_features(column, task.shard, [by_id.get(row["id"]) for row in rows], keys_or_none)


class Committer:
    """Commits a shard while the next one is encoded; at most one is waiting, so a kill costs little more than one."""

    def __enter__(self) -> "Committer":
        self._pool, self._last = ThreadPoolExecutor(1, thread_name_prefix="kcache-commit"), None
        return self

    _last: Future[None] | None

    def submit(self, commit: Callable[[], None]) -> None:
        """Wait for the commit before, then begin this one. Raises what went wrong in the one before."""
        if self._last:
            self._last.result()
        self._last = self._pool.submit(commit)

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if self._last and kind is None:
            self._last.result()


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
