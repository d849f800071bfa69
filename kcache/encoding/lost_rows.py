"""What a repair may write: the rows that are lost, and no others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kcache.shards import Column, Commit, layout
from kcache.shards.salvage import LOST, Salvage, lacking_rows

from .dataset import Sample
from .memory import Memory
from .sample_rows import SamplesRow, has_features

Rows = Sequence[SamplesRow | None]
Committed = Mapping[str, Commit | None]


def lost_rows(
    salvage: Salvage, shard: int, rows: Rows, columns: Sequence[Column], committed: Committed
) -> dict[str, frozenset[int]]:
    """By column, the rows of a shard that may be written; none of a column that the shard does not have yet.

    Where the samples themselves are lost any row may turn out to be another one.
    """
    if not salvage.has_samples(shard):
        every = frozenset(range(len(rows)))
        return {name: every if commit or name == layout.SAMPLES else frozenset() for name, commit in committed.items()}
    known = [row for row in rows if row is not None]
    lost: dict[str, frozenset[int]] = {layout.SAMPLES: frozenset()}
    for column in columns:
        commit = committed[column.name]
        marked = [i for i, key in enumerate(commit.keys) if key == LOST] if commit else []
        lost[column.name] = frozenset([*marked, *(lacking_rows(column, commit, known) if commit else [])])
    return lost


def is_kept(
    salvage: Salvage, shard: int, i: int, row: SamplesRow, columns: Sequence[Column], committed: Committed
) -> bool:
    """Whether the samples column is to go on saying of a row what it says, whatever the dataset says now.

    Where only older samples are left a row of these is right if all features that are left are of it.
    """
    if salvage.has_samples(shard):
        return True
    commits = [(column, commit) for column in columns if (commit := committed[column.name])]
    return all(commit.keys[i] in (LOST, column.key_of(row)) for column, commit in commits)


def with_picture_of(row: SamplesRow, sample: Sample | None, memory: Memory) -> Sample | None:
    """The sample if it still has the picture of its row, whatever became of its captions; else None."""
    if sample is None or not has_features(row) or (sample.fault and not sample.captionless):
        return None
    return replace(sample, fault=None) if memory.sha256(sample.id) == row["sha256"] else None
