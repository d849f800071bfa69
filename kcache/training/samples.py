"""The samples of a run: the rows of one or several pinned snapshots, end to end, each with a position of its own."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kcache.shards import ColumnReader, Field, Snapshot

Positions = npt.NDArray[np.int64]

MAX_OPEN_FILES = 128
"""Shard files that one source keeps open, shared among its readers: 1,024 is all that a process commonly may have."""


class Rows(Protocol):
    """Some rows of a column, as `kcache.shards.Rows` has them."""

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field of every row."""

    def only(self, which: Sequence[int]) -> "Rows":
        """Some of the rows."""

    def read_into(self, field: str, outs: Sequence[memoryview]) -> None:
        """Fill each of ``outs`` with one field of its row."""

    def read(self, i: int, field: str) -> npt.NDArray[np.generic]:
        """One field of the ``i``-th row as a new array."""


class Reader(Protocol):
    """Random access to one column by position, as `kcache.shards.ColumnReader` has it."""

    def field(self, name: str) -> Field:
        """One field of the column."""

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        """Stored bytes of one field for every position."""

    def rows(self, positions: Sequence[int] | Positions) -> Rows:
        """The rows at some positions, such as a batch."""

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
        shard, row = self.snapshots[part].place(at)
        return self.snapshots[part].cache.ids(shard)[row]

    def caption(self, position: int) -> str:
        """The first caption of a sample."""
        part, at = self.place(position)
        shard, row = self.snapshots[part].place(at)
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
        self._readers, self._starts = readers, starts

    def field(self, name: str) -> Field:
        return self._readers[0].field(name)

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        return np.concatenate([reader.nbytes(field) for reader in self._readers])

    def rows(self, positions: Sequence[int] | Positions) -> Rows:
        at = np.asarray(positions, np.int64)
        parts = np.searchsorted(self._starts, at, side="right") - 1
        found: dict[int, Rows] = {}
        for part in np.unique(parts).tolist():
            found[part] = self._readers[part].rows(at[parts == part] - self._starts[part])
        return _JoinedRows(parts, found)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


class _JoinedRows:
    """Rows of several snapshots: which snapshot each is of, and the rows of each snapshot in their order."""

    def __init__(self, parts: npt.NDArray[np.int64], rows: Mapping[int, Rows]) -> None:
        self._parts, self._rows = parts, rows

    def only(self, which: Sequence[int]) -> Rows:
        some = self._parts[which]
        found = {part: self._rows[part].only(self._within(which, part)) for part in np.unique(some).tolist()}
        return _JoinedRows(some, found)

    def nbytes(self, field: str) -> npt.NDArray[np.uint32]:
        found = np.zeros(len(self._parts), np.uint32)
        for part, rows in self._rows.items():
            found[self._parts == part] = rows.nbytes(field)
        return found

    def read_into(self, field: str, outs: Sequence[memoryview]) -> None:
        for part, rows in self._rows.items():
            rows.read_into(field, [outs[i] for i in np.flatnonzero(self._parts == part).tolist()])

    def read(self, i: int, field: str) -> npt.NDArray[np.generic]:
        part = int(self._parts[i])
        return self._rows[part].read(self._within([i], part)[0], field)

    def _within(self, which: Sequence[int], part: int) -> list[int]:
        """The places of some rows among those of one snapshot."""
        places = np.cumsum(self._parts == part) - 1
        return [int(places[i]) for i in which if self._parts[i] == part]
