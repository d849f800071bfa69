"""The hot path: fields of chosen rows, read from known offsets straight into the caller's buffers."""

import contextlib
import io
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cache import Cache
from .columns import Column, Field
from .errors import CacheError, DamageError
from .files import open_plain
from .index import check_entries, load_index, present
from .snapshot import ShardFile, Snapshot
from .storage import Storage

MAX_OPEN_FILES = 64
"""Shard files that one reader keeps open unless it is told otherwise; the one unused longest is closed first."""


def _seek_and_read(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """What ``os.preadv`` does for one buffer, in two calls: Windows and older macOS do not have it."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    with io.FileIO(descriptor, closefd=False) as file:
        return file.readinto(buffers[0])


_read_at: Callable[[int, Sequence[memoryview], int], int] = getattr(os, "preadv", _seek_and_read)


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
        self._max_open_files = max_open_files
        self._snapshot = snapshot
        self._fields = {field.name: j for j, field in enumerate(pinned.column.fields)}
        entries = pinned.entries[snapshot.ordinals(name)]
        self._offsets, self._nbytes, self._crcs = entries["offset"], entries["nbytes"], entries["crc32"]
        self._shards = snapshot.rows[:, 0]
        self._files = {file.shard: file for file in pinned.files}
        self._open: OrderedDict[int, int] = OrderedDict()

    def field(self, name: str) -> Field:
        """One field of the column."""
        return self.column.fields[self._fields[name]]

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field for every position (shape ``(n,)``), known without reading."""
        return np.asarray(self._nbytes[:, self._fields[field]])

    def read_into(self, position: int, field: str, out: memoryview) -> None:
        """Fill ``out`` (exactly as long as the stored array) with one field of one row.

        DamageError, naming shard and sample, when the bytes are not those that were committed.
        """
        j = self._fields[field]
        descriptor = self._descriptor(int(self._shards[position]))
        try:
            count = _read_at(descriptor, [out], int(self._offsets[position, j]))
        except (OSError, OverflowError) as error:  # a bad sector, or a place that no file has
            raise self._damage(position, field, f"it cannot be read ({error})") from None
        if count != len(out) or len(out) != self._nbytes[position, j]:
            raise self._damage(position, field, f"{count:,} of {int(self._nbytes[position, j]):,} bytes could be read")
        if self.check_crc and zlib.crc32(out) != self._crcs[position, j]:
            raise self._damage(position, field, "the bytes do not match their crc32")

    def read(self, position: int, field: str) -> npt.NDArray[np.generic]:
        """One field of one row as a new array."""
        spec, nbytes = self.field(field), int(self.nbytes(field)[position])
        if nbytes % spec.row_bytes or not (spec.is_ragged or nbytes == spec.row_bytes):
            raise self._damage(position, field, f"{nbytes:,} bytes are no array of {spec.dtype} {list(spec.shape)}")
        out = np.empty(nbytes, np.uint8)
        self.read_into(position, field, out.data)
        return out.view(spec.dtype).reshape(spec.shape_of(nbytes))

    def close(self) -> None:
        """Close every file; the reader may be used again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        descriptor = self._open.get(shard)
        if descriptor is None:
            descriptor = self._open[shard] = self._open_file(self._files[shard])
            if len(self._open) > self._max_open_files:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(shard)
        return descriptor

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
        for shard in [shard for shard, opened in self._open.items() if not os.fstat(opened).st_nlink]:
            os.close(self._open.pop(shard))

    def _damage(self, position: int, field: str, what: str) -> DamageError:
        shard, row = (int(n) for n in self._snapshot.rows[position])
        cache = self._snapshot.cache
        sample = self._snapshot.cache.ids(shard)[row]
        return DamageError(
            f"{cache.root / self._files[shard].file}: field '{field}' of sample '{sample}': {what};"
            f" run 'kcache verify {cache.name} --deep'"
        )


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
