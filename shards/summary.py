"""What a cache holds, counted from its records: columns, rows, bytes, what made them, and what was set aside."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import layout
from .cache import Cache
from .columns import Column
from .dataset_options import dataset_options
from .errors import CacheError
from .losses import require_nothing_lost
from .reader import ColumnReader
from .records import Record
from .salvage import lacking_rows
from .snapshot import Snapshot, stale_rows


@dataclass(frozen=True)
class ColumnSummary:
    """One column: how many of the plan's shards it has, and their rows with features and bytes on disk."""

    name: str
    shards: int
    rows: int
    behind: int
    """Rows whose samples have changed since they were encoded; training refuses the column for as long."""
    lacking: list[str]
    """Samples without features: lost and not brought back, or left out by ``--columns``; training leaves them out."""
    bytes: int
    fingerprint: str
    fields: dict[str, str]
    encoder: Record
    encode_dtype: str
    preprocessing: Record
    notes: Record


@dataclass(frozen=True)
class Summary:
    """A whole cache."""

    path: str
    format_version: int
    container: str
    shard_size: int
    shards: int
    samples: int
    captions: int
    removed: int
    """Rows that `--prune` took out; their places are not used again by others."""
    forgotten: int
    """Rows that never had features and are of samples that the dataset has no more."""
    dataset_options: Record
    """How the last encode was told to read its dataset, where that is not the default."""
    set_aside: dict[str, str] = field(default_factory=dict)
    columns: list[ColumnSummary] = field(default_factory=list)


def summarize(cache: Cache) -> Summary:
    """Read the records of a cache; no features are read. DamageError where a record of which they tell is gone."""
    require_nothing_lost(cache)
    set_aside, captions, removed, forgotten = {}, 0, 0, 0
    cache.bring_samples()
    generations = cache.commits(layout.SAMPLES)
    edited = {shard: generation for shard, generation in generations.items() if generation > 1}
    for row in itertools.chain.from_iterable(cache.samples(*commit) for commit in generations.items()):
        if "removed" in row:
            forgotten += "set_aside" in row
            removed += "set_aside" not in row
            continue
        captions += len(row["captions"])
        if "set_aside" in row:
            set_aside[row["id"]] = row["set_aside"]
    return Summary(
        path=cache.name,
        format_version=layout.FORMAT_VERSION,
        container=cache.container,
        shard_size=cache.shard_size,
        shards=cache.shard_count,
        samples=sum(len(cache.planned_ids(shard)) for shard in range(cache.shard_count)) - removed - forgotten,
        captions=captions,
        removed=removed,
        forgotten=forgotten,
        dataset_options=dataset_options(cache),
        set_aside=set_aside,
        columns=[_summarize_column(cache, cache.column(name), edited) for name in cache.column_names()],
    )


def cut_captions(cache: Cache) -> Iterator[tuple[str, str, str]]:
    """Column, sample and caption of all that fill the text encoder to its end: what did not fit was cut."""
    for name in cache.column_names():
        column = cache.column(name)
        if column.reads != "captions":
            continue
        snapshot = Snapshot(cache, [name], partial=True)
        reader = ColumnReader(snapshot, name)
        samples: dict[int, list[dict[str, Any]]] = {}
        for position, (shard, row) in enumerate(snapshot.rows.tolist()):
            if shard not in samples:
                samples = {shard: cache.samples(shard)}
            captions, lengths = samples[shard][row]["captions"], reader.read(position, "lengths")
            if len(captions) != len(lengths):
                raise CacheError(
                    f"column '{name}' of {cache.name} has {len(lengths):,} captions of '{samples[shard][row]['id']}',"
                    f" and the sample has {len(captions):,}; encode it again with --replace-column {name}"
                )
            for caption, length in zip(captions, lengths, strict=True):
                if length == column.preprocessing["max_length"]:
                    yield name, samples[shard][row]["id"], caption
        reader.close()


def _summarize_column(cache: Cache, column: Column, edited: Mapping[int, int]) -> ColumnSummary:
    """``edited`` are the shards whose samples have been written anew, with their generation."""
    name = column.name
    commits = [cache.commit(name, shard, generation) for shard, generation in cache.commits(name).items()]
    rewritten = [commit for commit in commits if commit.shard in edited]
    lacking = ((cache.samples(c.shard), c) for c in commits if None in c.keys)
    return ColumnSummary(
        name=name,
        shards=len(commits),
        rows=sum(key is not None for commit in commits for key in commit.keys),
        behind=sum(len(stale_rows(column, c, cache.samples(c.shard, edited[c.shard]))) for c in rewritten),
        lacking=[str(rows[i]["id"]) for rows, c in lacking for i in lacking_rows(column, c, rows)],
        bytes=sum(commit.bytes for commit in commits),
        fingerprint=column.fingerprint,
        fields={f.name: f"{f.dtype} {list(f.shape)}".replace("None", "*") for f in column.fields},
        encoder=column.encoder,
        encode_dtype=column.encode_dtype,
        preprocessing=column.preprocessing,
        notes=column.notes,
    )
