"""What is about to be encoded, looked at beforehand: captions that are cut, bytes, and the time it takes here."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

from kcache.shards import Column
from kcache.shards.cache import packed_size
from kcache.shards.index import index_size

from .encoders import Encoder, ImageEncoder
from .report import EncodeReport, Estimate
from .text_column import TextColumn
from .timing import Timings
from .work import ShardTask, Work

COMMITTED_ROW = 70
"""Bytes of a row's key in a commit: 64 letters, their quotes, a comma and white space."""


def captions_to_encode(work: Work, column: Column) -> Iterator[tuple[str, Sequence[str]]]:
    """Id and captions of every sample whose captions one column lacks."""
    for task in work.tasks:
        for i, captions in _stale_captions(task, column):
            sample, row = task.samples[i], task.rows[i]
            yield sample.id if sample else str(row["id"]) if row else "", captions


def _stale_captions(task: ShardTask, column: Column) -> Iterator[tuple[int, Sequence[str]]]:
    for i, (row, sample) in enumerate(zip(task.rows, task.samples, strict=True)):
        key = column.key_of(row) if row else column.input_key(list(sample.captions)) if sample else None
        if key is not None and key != task.key(column.name, i) and task.writes(column.name, i):
            yield i, row["captions"] if row else sample.captions if sample else ()


def inspect_captions(report: EncodeReport, work: Work, encoders: dict[str, Encoder]) -> None:
    """Note the captions about to be encoded that are cut or empty."""
    empty = set[str]()
    for encoder in encoders.values():
        if isinstance(encoder, TextColumn):
            pairs = [(i, c) for i, captions in captions_to_encode(work, encoder.column) for c in captions]
            for (sample, caption), count in zip(
                pairs, encoder.uncut_token_counts([caption for _, caption in pairs]), strict=True
            ):
                if count > encoder.tokenizer.model_max_length:
                    report.cut[sample] = max(count, report.cut.get(sample, 0))
                if not caption.strip():
                    empty.add(sample)
    report.empty_captions += len(empty)


def estimate(work: Work, encoders: Mapping[str, Encoder], timings: Timings, container: str) -> dict[str, Estimate]:
    """What each column's work would take: bytes counted, seconds from a batch timed here."""
    return {name: _estimate(work, encoder, timings, container) for name, encoder in encoders.items()}


def _estimate(work: Work, encoder: Encoder, timings: Timings, container: str) -> Estimate:
    column, new = encoder.column, set(work.new_ids)
    samples = nbytes = disk = unplanned = 0
    for task in work.tasks:
        rows = _text_rows(task, encoder) if isinstance(encoder, TextColumn) else _picture_rows(task, encoder)
        samples += len(rows)
        unplanned += sum((sample := task.samples[i]) is not None and sample.id in new for i in rows)
        nbytes += sum(map(sum, rows.values()))
        disk += _file_bytes(task, column, rows, container)
    inputs = samples
    if isinstance(encoder, TextColumn):
        inputs = len({caption for _, captions in captions_to_encode(work, column) for caption in captions})
    return Estimate(samples, unplanned, nbytes, disk, inputs * timings.encoding(column.name) if inputs else 0.0)


def _text_rows(task: ShardTask, encoder: TextColumn) -> dict[int, list[int]]:
    """Bytes of each field, for every row of a shard whose captions are to be encoded."""
    stale = dict(_stale_captions(task, encoder.column))
    embeds, hidden_states, lengths = (field.row_bytes for field in encoder.column.fields)
    counts = iter(encoder.token_counts([caption for captions in stale.values() for caption in captions]))
    tokens = {i: sum(islice(counts, len(captions))) for i, captions in stale.items()}
    return {i: [len(stale[i]) * embeds, tokens[i] * hidden_states, len(stale[i]) * lengths] for i in stale}


def _picture_rows(task: ShardTask, encoder: Encoder) -> dict[int, list[int]]:
    """Bytes of each field, for every row of a shard whose picture is to be encoded."""
    beside = [field.row_bytes for field in encoder.column.fields[1:]]
    row = [cast(ImageEncoder, encoder).row_bytes - sum(beside), *beside]
    return {i: row for i, names in task.pictures.items() if encoder.column.name in names}


def _file_bytes(task: ShardTask, column: Column, fresh: Mapping[int, Sequence[int]], container: str) -> int:
    """Bytes of shard file, index and commit that would be written, about; 0 where the file there is stays as it is.

    What is copied from the file before is counted too; a row that is made anew takes about what it took.
    """
    before = task.committed[column.name]
    lost = any(
        row is not None and column.key_of(row) is None and task.key(column.name, i) is not None
        for i, row in enumerate(task.rows)
    )
    if not fresh and not lost:
        return 0
    added = [row for i, row in fresh.items() if task.key(column.name, i) is None]
    records = index_size(len(task.rows), len(column.fields)) + COMMITTED_ROW * len(task.rows)
    made = packed_size(container, added, column.fields) if added or not before else 0
    return made + (before.bytes if before else 0) + records
