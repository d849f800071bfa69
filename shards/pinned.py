"""The shard files of one column as they were when it was opened, and where each row lies: of any number of rows."""

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import layout
from .columns import Column
from .errors import DamageError
from .files import read_at
from .index import ENTRY, Entries

FILE = np.dtype([("shard", "<i8"), ("generation", "<i8"), ("bytes", "<i8"), ("rows", "<i8"), ("sha256", "V32")])
"""One shard file in `PinnedColumn.table`."""

Table = npt.NDArray[np.void]
"""Shard files (shape ``(shards,)``, of dtype `FILE`), by the number of the shard."""

Numbers = npt.NDArray[np.int64]

_AT_ONCE = 2**28
"""Bytes of entries that are read in one call: of more than 2 GB a system may read less."""


@dataclass(frozen=True)
class ShardFile:
    """One committed shard file of a column."""

    shard: int
    generation: int
    file: str
    bytes: int
    sha256: str
    rows: int


class EntriesInMemory:
    """The entries of all rows of a column, end to end."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def take(self, ordinals: Numbers) -> Entries:
        """Those of some rows (shape ``(k, fields)``)."""
        return self._entries[ordinals]

    def all(self) -> Entries:
        """Those of all rows."""
        return self._entries


class EntriesOnDisk:
    """The entries of so many rows that they stay in their file: what is asked for is read, and nothing is kept.

    Read and not mapped: a file that is cut is an error and not a SIGBUS. One that is replaced stays as it was here.
    """

    def __init__(self, path: Path, descriptor: int, start: int, rows: int, fields: int) -> None:
        """``start`` is where the entries begin in the file, which is closed with this object."""
        self._path, self._descriptor, self._start = path, descriptor, start
        self._rows, self._fields = rows, fields
        weakref.finalize(self, os.close, descriptor)

    def take(self, ordinals: Numbers) -> Entries:
        """Those of some rows (shape ``(k, fields)``)."""
        found = np.empty((len(ordinals), self._fields), ENTRY)
        size = self._fields * ENTRY.itemsize
        data = found.view(np.uint8).reshape(-1).data
        # Rows that follow each other are read in one go: a batch has hardly any, and all rows are all such.
        begins = np.flatnonzero(np.diff(ordinals, prepend=-2) != 1)
        ends = [*begins[1:].tolist(), len(ordinals)]
        for first, begin, end in zip(ordinals[begins].tolist(), begins.tolist(), ends, strict=True):
            self._read(data[begin * size : end * size], self._start + first * size)
        return found

    def _read(self, out: memoryview, start: int) -> None:
        for at in range(0, len(out), _AT_ONCE):
            part = out[at : at + _AT_ONCE]
            if read_at(self._descriptor, [part], start + at) != len(part):
                raise DamageError(f"{self._path} was cut while in use; run the command again, which makes it anew")

    def all(self) -> Entries:
        """Those of all rows, in memory."""
        return self.take(np.arange(self._rows))


@dataclass(frozen=True)
class PinnedColumn:
    """The committed shard files of one column, and the index entries of their rows end to end.

    ``stale`` is the number of rows whose features were made from something that the sample is no longer: an encode was
    cut off after it noted the change. Their entries say that they have no features. ``absent`` are all rows that have
    none, as ordinals: places among the rows of all files, end to end. ``names`` are those of files that are called
    otherwise than kcache calls them, by shard.
    """

    column: Column
    container: str
    table: Table
    stored: EntriesInMemory | EntriesOnDisk
    absent: Numbers
    stale: int = 0
    names: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def starts(self) -> Numbers:
        """The ordinal at which each file begins, and the number of all rows (shape ``(shards + 1,)``)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.table["rows"], dtype=np.int64)])

    @property
    def entries(self) -> Entries:
        """The entries of all rows (shape ``(rows, fields)``), in memory."""
        return self.stored.all()

    @property
    def files(self) -> Iterator[ShardFile]:
        """All files, shard by shard."""
        return map(self._file, self.table)

    def file(self, shard: int) -> ShardFile:
        """The file of one shard."""
        return self._file(self.table[int(np.searchsorted(self.table["shard"], shard))])

    def _file(self, row: np.void) -> ShardFile:
        shard, generation, nbytes, rows = (int(row[name]) for name in ("shard", "generation", "bytes", "rows"))
        digest = bytes(row["sha256"]).hex()
        name = self.names.get(shard) or layout.shard(self.column.stem, shard, digest, self.container)
        return ShardFile(shard, generation, name, nbytes, digest, rows)


def table_of(files: Sequence[ShardFile]) -> Table:
    """The table of some files."""
    rows = [(file.shard, file.generation, file.bytes, file.rows, bytes.fromhex(file.sha256)) for file in files]
    return np.array(rows, FILE)
