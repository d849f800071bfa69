"""The shapes of a run's latents: read once, so that samples of one shape make up a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kcache.progress import logger
from kcache.shards import ColumnReader, DamageError, KcacheError, Snapshot

from .samples import Positions, Samples

Rows = npt.NDArray[np.int32]
"""The shape (C, H, W) of every sample's latents, by position (n, 3)."""

AT_ONCE = 4096
"""Shapes that are read in one call."""


@dataclass(frozen=True)
class Shapes:
    """The shape (C, H, W) of every sample's latents, and the samples of each shape."""

    distinct: Sequence[tuple[int, ...]]
    """Every shape that occurs, sorted."""
    numbers: npt.NDArray[np.intp]
    """For every position, which of `distinct` it has (shape (n,))."""

    @cached_property
    def groups(self) -> Sequence[Positions]:
        """The positions of each shape, in the order of `distinct`."""
        return [np.flatnonzero(self.numbers == number) for number in range(len(self.distinct))]

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape with the most values: buffers that hold it hold any."""
        return max(self.distinct, key=math.prod)

    def of(self, positions: Sequence[int]) -> tuple[int, ...]:
        """The one shape of all ``positions``; ValueError where they have several."""
        numbers: npt.NDArray[np.intp] = self.numbers[positions]
        if (numbers != numbers[0]).any():
            raise ValueError(f"a batch of latents of {len(set(numbers.tolist()))} shapes cannot be stacked")
        return self.distinct[int(numbers[0])]


def read_shapes(samples: Samples, names: Sequence[str], *, check_crc: bool) -> Shapes:
    """The shapes of the latents in columns ``names``, which are views of the same pictures.

    A column of one shape says so in its record; the others have a field ``shape``. KcacheError where two columns
    differ, DamageError where a shape is not that of the bytes that are stored.
    """
    latents = samples.snapshots[0].pinned[names[0]].column.fields[0]
    if not latents.is_ragged:
        return Shapes([latents.shape_of(latents.row_bytes)], np.zeros(len(samples), np.intp))
    rows = np.concatenate([_rows_of_views(snapshot, names, check_crc) for snapshot in samples.snapshots])
    distinct, numbers = np.unique(rows, axis=0, return_inverse=True)
    return Shapes([tuple(shape) for shape in distinct.tolist()], numbers.reshape(-1))


def report_groups(groups: Sequence[Positions], global_batch: int) -> None:
    """Say how many shapes there are, and warn of those with fewer samples than an update has."""
    if len(groups) == 1:
        return
    sizes = [len(group) for group in groups]
    logger.info(
        "the latents have %d shapes, of %s to %s samples; each update is of one of them",
        len(groups),
        f"{min(sizes):,}",
        f"{max(sizes):,}",
    )
    if small := sum(size < global_batch for size in sizes):
        logger.warning(
            "%d of %d shapes with fewer samples than the %s of an update: their updates repeat samples, and come so"
            " much more rarely",
            small,
            len(groups),
            f"{global_batch:,}",
        )


def _rows_of_views(snapshot: Snapshot, names: Sequence[str], check_crc: bool) -> Rows:
    first = _read_rows(snapshot, names[0], check_crc)
    for name in names[1:]:
        _refuse_different(snapshot, names[0], first, name, _read_rows(snapshot, name, check_crc))
    return first


def _read_rows(snapshot: Snapshot, name: str, check_crc: bool) -> Rows:
    """The shapes in one column, read in the order in which they lie on disk."""
    reader, rows = ColumnReader(snapshot, name, check_crc=check_crc), np.empty((len(snapshot), 3), np.int32)
    try:
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            outs = [row.view(np.uint8).data for row in some]
            reader.rows(range(start, start + len(some))).read_into("shape", outs)
    finally:
        reader.close()
    stored = reader.nbytes("latents")
    nbytes = rows.prod(axis=1, dtype=np.int64) * reader.field("latents").row_bytes
    if (wrong := np.flatnonzero((nbytes != stored) | (rows < 1).any(axis=1))).size:
        at, root = int(wrong[0]), snapshot.cache.name
        raise DamageError(
            f"sample '{_sample(snapshot, at)}' has a shape of {_show(rows[at])} and latents of {int(stored[at]):,}"
            f" bytes in column '{name}' of {root}; run 'kcache verify {root} --deep'"
        )
    return rows


def _refuse_different(snapshot: Snapshot, name: str, rows: Rows, other_name: str, other_rows: Rows) -> None:
    if (different := np.flatnonzero((rows != other_rows).any(axis=1))).size:
        at, root = int(different[0]), snapshot.cache.name
        raise KcacheError(
            f"columns '{name}' and '{other_name}' of {root} have latents of different shapes (sample"
            f" '{_sample(snapshot, at)}': {_show(rows[at])} and {_show(other_rows[at])}); encode the second like the"
            f" first with 'kcache encode DATASET {root} --replace-column {other_name}'"
        )


def _show(shape: Rows) -> str:
    """A shape as people write it: 4x64x96."""
    return "x".join(str(int(size)) for size in shape)


def _sample(snapshot: Snapshot, position: int) -> str:
    """The id of the sample at a position."""
    shard, row = snapshot.place(position)
    return snapshot.cache.ids(shard)[row]
