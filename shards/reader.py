"""The hot path: fields of chosen rows, read from known offsets straight into the caller's buffers."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32

from .cache import Cache
from .columns import Column, Field
from .errors import CacheError, DamageError
from .files import open_plain, read_at
from .index import ENTRY, Entries, check_entries, load_index, present
from .pinned import ShardFile
from .snapshot import Snapshot
from .storage import Storage

MAX_OPEN_FILES = 64
"""Shard files that one reader keeps open unless it is told otherwise; the one unused longest is closed first."""


_AT_ONCE = 2**18
"""Rows that are looked up in one go where all are asked for."""


class ColumnReader:
    """Random access to one column of a snapshot, by position in ``snapshot.rows``.

    Reads with ``preadv``, not a memory map: a file that was cut is an error and not a SIGBUS. Not for two threads.
    """

    def __init__(
        self, snapshot: Snapshot, name: str, *, check_crc: bool = True, max_open_files: int = MAX_OPEN_FILES
    ) -> None:
        """Open no file yet. ``check_crc`` compares the crc32 of every field that is read."""
        pinned = snapshot.pinned[name]
        self.column = pinned.column
        self.check_crc = check_crc
        self.max_open_files = max_open_files
        self.is_local = snapshot.cache.storage.is_local
        self._snapshot = snapshot
        self.numbers = {field.name: j for j, field in enumerate(pinned.column.fields)}
        """Which of the column's fields each is."""
        self._name, self._pinned = name, pinned
        self._opened: dict[int, int] = {}

    def field(self, name: str) -> Field:
        """One field of the column."""
        return self.column.fields[self.numbers[name]]

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field for every position (shape ``(n,)``), known without reading."""
        n = len(self._snapshot)
        parts = (self.rows(np.arange(start, min(start + _AT_ONCE, n))) for start in range(0, n, _AT_ONCE))
        return np.concatenate([np.zeros(0, np.uint32), *(part.nbytes(field).copy() for part in parts)])

    def rows(self, positions: Sequence[int] | npt.NDArray[np.int64]) -> "Rows":
        """Look up the rows at some positions, such as a batch, at once."""
        at = np.asarray(positions, np.int64)
        shards, ordinals = self._snapshot.lookup(self._name, at)
        return Rows(self, at, self._pinned.stored.take(ordinals), shards)

    def read(self, position: int, field: str) -> npt.NDArray[np.generic]:
        """One field of one row as a new array."""
        return self.rows([position]).read(0, field)

    def close(self) -> None:
        """Close every file; the reader may be used again."""
        while self._opened:
            os.close(self._opened.popitem()[1])

    def shard_bytes(self, shard: int) -> int:
        """Bytes of the file of one shard, as its commit says."""
        return self._pinned.file(shard).bytes

    def descriptors(self, shards: Sequence[int]) -> list[int]:
        """The open file of each of so many shards as may be open at once; good until this is called again."""
        opened = self._opened
        for shard in dict.fromkeys(shards):
            descriptor = opened.pop(shard, None)
            opened[shard] = self._open_file(self._pinned.file(shard)) if descriptor is None else descriptor
        while len(opened) > self.max_open_files:
            os.close(opened.pop(next(iter(opened))))
        return [opened[shard] for shard in shards]

    def _open_file(self, file: ShardFile) -> int:
        path, storage = self._snapshot.cache.root / file.file, self._snapshot.cache.storage
        if storage.is_local:
            descriptor = open_plain(path)
        else:
            descriptor = _brought(storage, path, {"file": file.file, "bytes": file.bytes, "sha256": file.sha256})
            self._close_evicted()
        size = os.fstat(descriptor).st_size
        if size != file.bytes:
            os.close(descriptor)
            raise DamageError(
                f"{path} has {size:,} bytes, its commit says {file.bytes:,};"
                f" run 'kcache verify {self._snapshot.cache.name}'"
            )
        return descriptor

    def _close_evicted(self) -> None:
        """Close files that made way for others in a local cache: their room is free only then."""
        for shard in [shard for shard, opened in self._opened.items() if not os.fstat(opened).st_nlink]:
            os.close(self._opened.pop(shard))

    def damage(self, position: int, field: str, what: str) -> DamageError:
        """The sentence for a field that cannot be read as it was committed."""
        shard, row = self._snapshot.place(position)
        cache = self._snapshot.cache
        sample = self._snapshot.cache.ids(shard)[row]
        return DamageError(
            f"{cache.root / self._pinned.file(shard).file}: field '{field}' of sample '{sample}': {what};"
            f" run 'kcache verify {cache.name} --deep'"
        )


class Rows:
    """Some rows of one column, which are read together: what is known of them beforehand is looked up once for all."""

    def __init__(
        self,
        reader: ColumnReader,
        positions: npt.NDArray[np.int64],
        entries: Entries,
        shards: npt.NDArray[np.int64],
    ) -> None:
        """``entries`` (shape ``(n, fields)``) and ``shards`` are those of the n ``positions``."""
        self._reader, self._positions, self._entries, self._shards = reader, positions, entries, shards

    def __len__(self) -> int:
        return len(self._positions)

    def only(self, which: Sequence[int]) -> "Rows":
        """Some of the rows."""
        return Rows(self._reader, self._positions[which], self._entries[which], self._shards[which])

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field of every row (shape ``(n,)``), known without reading."""
        return np.asarray(self._of(field)["nbytes"])

    def read_into(self, field: str, outs: Sequence[memoryview]) -> None:
        """Fill each of ``outs`` (exactly as long as the stored array) with one field of its row.

        DamageError, naming shard and sample, when the bytes are not those that were committed.
        """
        if len(self) <= self._reader.max_open_files and self._reader.is_local:
            self._read_into(field, outs)
        else:
            for which in self._pieces():
                self.only(which)._read_into(field, [outs[i] for i in which])

    def read(self, i: int, field: str) -> npt.NDArray[np.generic]:
        """One field of the ``i``-th of the rows as a new array."""
        spec, nbytes = self._reader.field(field), int(self.nbytes(field)[i])
        possible = spec.is_ragged and nbytes <= self._reader.shard_bytes(int(self._shards[i]))
        if nbytes % spec.row_bytes or not (possible or nbytes == spec.row_bytes):
            raise self._damage(i, field, f"{nbytes:,} bytes are no array of {spec.dtype} {list(spec.shape)}")
        out = np.empty(nbytes, np.uint8)
        self.only([i]).read_into(field, [out.data])
        return out.view(spec.dtype).reshape(spec.shape_of(nbytes))

    def _pieces(self) -> list[list[int]]:
        """Rows whose files may be open at once: of a cache in a store one shard, as fetching it may push out others."""
        if not self._reader.is_local:
            return [np.flatnonzero(self._shards == shard).tolist() for shard in np.unique(self._shards)]
        most = self._reader.max_open_files
        return [list(range(start, min(start + most, len(self)))) for start in range(0, len(self), most)]

    def _read_into(self, field: str, outs: Sequence[memoryview]) -> None:
        """As `read_into`, of rows that lie in no more shards than may be open at once.

        All is read first and compared then: this is where a loader spends its time, and so is each step of Python.
        """
        offsets, nbytes, crcs = (self._of(field)[name].tolist() for name in ENTRY.names or ())
        descriptors = self._reader.descriptors(self._shards.tolist())
        if (sizes := list(map(len, outs))) != nbytes:
            i = next(i for i, size in enumerate(sizes) if size != nbytes[i])
            raise self._damage(i, field, f"{sizes[i]:,} of {nbytes[i]:,} bytes were asked for")
        try:
            counts = [read_at(*one) for one in zip(descriptors, [[out] for out in outs], offsets, strict=True)]
        except (OSError, OverflowError):  # a bad sector, or a place that no file has
            raise self._unreadable(field, descriptors, outs, offsets) from None
        if counts != nbytes:
            i = next(i for i, count in enumerate(counts) if count != nbytes[i])
            raise self._damage(i, field, f"{counts[i]:,} of {nbytes[i]:,} bytes could be read")
        if self._reader.check_crc and (found := list(map(crc32, outs))) != crcs:
            i = next(i for i, crc in enumerate(found) if crc != crcs[i])
            raise self._damage(i, field, "the bytes do not match their crc32")

    def _unreadable(
        self, field: str, descriptors: Sequence[int], outs: Sequence[memoryview], offsets: Sequence[int]
    ) -> DamageError:
        """Which of the rows cannot be read, found by reading them again."""
        for i, (descriptor, out, offset) in enumerate(zip(descriptors, outs, offsets, strict=True)):
            try:
                read_at(descriptor, [out], offset)
            except (OSError, OverflowError) as error:
                return self._damage(i, field, f"it cannot be read ({error})")
        return self._damage(0, field, "it, or another that was read with it, could not be read at first")

    def _of(self, field: str) -> Entries:
        """The entries of one field (shape ``(n,)``)."""
        return self._entries[:, self._reader.numbers[field]]

    def _damage(self, i: int, field: str, what: str) -> DamageError:
        return self._reader.damage(int(self._positions[i]), field, what)


def _brought(storage: Storage, path: Path, reference: Mapping[str, Any]) -> int:
    """A descriptor of a shard file, fetched again where it made way for others before it was opened."""
    for _ in range(_PATIENCE):
        storage.bring([reference])
        if path.exists():
            with contextlib.suppress(DamageError):
                return open_plain(path)
    raise CacheError(
        f"{path} was pushed out {_PATIENCE} times before it could be read: other processes need the local cache too;"
        " give a larger --local-cache-size"
    )


_PATIENCE = 100


def read_null(cache: Cache, column: Column) -> Mapping[str, npt.NDArray[np.generic]]:
    """The null features of a column by field, checked against its record. CacheError when it has none."""
    if column.null is None:
        raise CacheError(f"column '{column.name}' of {cache.name} has no null features")
    data = cache.read_committed(column.null)
    name = str(column.null["index"]["file"])
    entries = load_index(cache.read_committed(column.null["index"]), name)
    check_entries(entries, column.fields, len(data), name)
    if present(entries).tolist() != [True]:
        raise DamageError(f"{cache.root / name} is not of one row; run 'kcache verify {cache.name}'")
    arrays = {}
    for field, entry in zip(column.fields, entries[0], strict=True):
        start, nbytes = int(entry["offset"]), int(entry["nbytes"])
        arrays[field.name] = np.frombuffer(data[start : start + nbytes], field.dtype).reshape(field.shape_of(nbytes))
    return arrays
