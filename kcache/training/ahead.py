"""Shard files of caches in a store, fetched ahead of the batches that read them, as far as the local cache has room."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from kcache.progress import logger
from kcache.shards import KcacheError
from kcache.shards.local_cache import LocalCache

from .mixture import Order
from .samples import Samples
from .sources import MicroBatch, Source

THREADS = 8
"""Fetches at once: one alone rarely fills a line."""

_Shard = tuple[int, int]
"""Which cache of the run, and which of its shards."""


class Ahead:
    """Goes through the order ahead of the batches, and has each shard fetched before it is read first.

    It stops where the shards between the batch that is read and the one that it has come to fill the local cache, for
    to fetch more would push out what is read before. Use as a context manager. Nothing here is needed for what is read
    to be right: a reader fetches what it lacks, and it is there that an error is raised.
    """

    def __init__(
        self, samples: Samples, source: Source, order: Order, steps: range, local: LocalCache | None, *, wanted: bool
    ) -> None:
        """``order`` is its own: another thread asks for other epochs. ``wanted``: whether this process is to fetch."""
        self._samples, self._source, self._order = samples, source, order
        self._steps, self._size = steps, local.size if local else 0
        remote = [not snapshot.cache.storage.is_local for snapshot in samples.snapshots]
        self._references = [
            _references(snapshot) if far else {} for snapshot, far in zip(samples.snapshots, remote, strict=True)
        ]
        self._wanted = wanted and any(remote)
        self._now, self._closed = steps.start, False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="kcache-ahead", daemon=True)

    def following(self, batches: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The batches, each noted as it is taken to be read."""
        for batch in batches:
            with self._moved:
                self._now = batch.step
                self._moved.notify()
            yield batch

    def __enter__(self) -> "Ahead":
        if self._wanted:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._moved:
            self._closed = True
            self._moved.notify()
        if self._wanted:
            self._thread.join()

    def _run(self) -> None:
        needed: dict[_Shard, int] = {}  # the last step known to read each shard, from the batch that is read on
        with ThreadPoolExecutor(THREADS, "kcache-fetch") as pool:
            for step in self._steps:
                shards = self._shards(step)
                new = [shard for shard in shards if shard not in needed]
                if not self._wait(needed, sum(self._bytes(shard) for shard in new)):
                    pool.shutdown(wait=False, cancel_futures=True)
                    return
                # What was forgotten while it waited has to be asked for again.
                for shard in (shard for shard in shards if shard not in needed):
                    pool.submit(self._fetch, shard)
                needed.update(dict.fromkeys(shards, step))

    def _shards(self, step: int) -> list[_Shard]:
        positions = [self._source.sample_of(position) for position in self._order.batch(step).tolist()]
        parts = self._samples.part_of(np.asarray(positions))
        found: dict[_Shard, None] = {}
        for part, position in zip(parts.tolist(), positions, strict=True):
            if self._references[part]:
                _, at = self._samples.place(position)
                found[part, self._samples.snapshots[part].place(at)[0]] = None
        return list(found)

    def _wait(self, needed: dict[_Shard, int], nbytes: int) -> bool:
        """Wait until there is room for so many bytes more; False where there is no need any more."""
        with self._moved:
            while not self._closed:
                for shard in [shard for shard, step in needed.items() if step < self._now]:
                    del needed[shard]
                if not needed or sum(map(self._bytes, needed)) + nbytes <= self._size:
                    return True
                self._moved.wait()
        return False

    def _bytes(self, shard: _Shard) -> int:
        return sum(int(reference["bytes"]) for reference in self._references[shard[0]][shard[1]])

    def _fetch(self, shard: _Shard) -> None:
        part, number = shard
        try:
            self._samples.snapshots[part].cache.storage.bring(self._references[part][number])
        except (KcacheError, OSError) as error:
            logger.debug("fetching ahead: %s", error)  # the reader, which needs it, will say so


def _references(snapshot: Any) -> dict[int, Sequence[dict[str, Any]]]:
    """The files of each shard."""
    found: dict[int, list[dict[str, Any]]] = {}
    for pinned in snapshot.pinned.values():
        for file in pinned.files:
            found.setdefault(file.shard, []).append({"file": file.file, "bytes": file.bytes, "sha256": file.sha256})
    return dict(found)
