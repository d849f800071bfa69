"""The samples of a run: the rows of one or several pinned snapshots, end to end, each with a position of its own."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kcache.shards import ColumnReader, Field, Snapshot

Positions = npt.NDArray[np.int64]

MAX_OPEN_FILES = 128
"""Shard files that one source keeps open, shared among its readers: 1,024 is all that a process commonly may have."""


class Reader(Protocol):
    """Random access to one column by position, as `kcache.shards.ColumnReader` has it."""

    def field(self, name: str) -> Field:
        """One field of the column."""

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field for every position."""

    def read_into(self, position: int, field: str, out: memoryview) -> None:
        """Fill ``out`` with one field of one row."""

    def read(self, position: int, field: str) -> npt.NDArray[np.generic]:
        """One field of one row as a new array."""

    def close(self) -> None:
        """Close every file."""


class Samples:
    """The rows of ``snapshots``, of the same columns in each: position 0 is the first row of the first."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self.snapshots = snapshots
        self._starts = np.cumsum([0, *map(len, snapshots)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def positions(self, part: int) -> Positions:
        """The positions of one snapshot's rows."""
        return np.arange(self._starts[part], self._starts[part + 1])

    def part_of(self, positions: Positions) -> npt.NDArray[np.int64]:
        """Which snapshot each position belongs to."""
        return np.asarray(np.searchsorted(self._starts, positions, side="right") - 1)

    def place(self, position: int) -> tuple[int, int]:
        """The snapshot and the place in it of one position."""
        part = int(self.part_of(np.array([position]))[0])
        return part, position - int(self._starts[part])

    def id(self, position: int) -> str:
        """The id of a sample as it is now called."""
        part, at = self.place(position)
        shard, row = (int(n) for n in self.snapshots[part].rows[at])
        return self.snapshots[part].cache.ids(shard)[row]

    def caption(self, position: int) -> str:
        """The first caption of a sample."""
        part, at = self.place(position)
        shard, row = (int(n) for n in self.snapshots[part].rows[at])
        return str(self.snapshots[part].cache.samples(shard)[row]["captions"][0])

    def open(self, names: Sequence[str], *, check_crc: bool) -> list[Reader]:
        """Readers of some columns that together keep no more than `MAX_OPEN_FILES` files open."""
        share = max(1, MAX_OPEN_FILES // (len(names) * len(self.snapshots)))
        return [self._open(name, check_crc, share) for name in names]

    def _open(self, name: str, check_crc: bool, share: int) -> Reader:
        readers = [ColumnReader(s, name, check_crc=check_crc, max_open_files=share) for s in self.snapshots]
        return readers[0] if len(readers) == 1 else _Joined(readers, self._starts)


class _Joined:
    """The same column of several snapshots as one reader; all have equal fields."""

    def __init__(self, readers: Sequence[ColumnReader], starts: Positions) -> None:
        self._readers, self._starts = readers, starts.tolist()

    def field(self, name: str) -> Field:
        return self._readers[0].field(name)

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        return np.concatenate([reader.nbytes(field) for reader in self._readers])

    def read_into(self, position: int, field: str, out: memoryview) -> None:
        reader, at = self._reader(position)
        reader.read_into(at, field, out)

    def read(self, position: int, field: str) -> npt.NDArray[np.generic]:
        reader, at = self._reader(position)
        return reader.read(at, field)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()

    def _reader(self, position: int) -> tuple[ColumnReader, int]:
        part = next(part for part, end in enumerate(self._starts[1:]) if position < end)
        return self._readers[part], position - int(self._starts[part])
