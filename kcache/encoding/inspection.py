"""What is about to be encoded, looked at beforehand: captions that are cut, bytes, and the time it takes here."""

import time
from collections.abc import Iterator, Sequence
from typing import cast

from PIL import Image

from kcache.progress import logger
from kcache.shards import Column

from .encoders import Encoder, ImageEncoder
from .report import EncodeReport, Estimate
from .text_column import TextColumn
from .work import ShardTask, Work


def captions_to_encode(work: Work, column: Column) -> Iterator[tuple[str, Sequence[str]]]:
    """Id and captions of every sample whose captions one column lacks."""
    for task in work.tasks:
        for i, captions in _stale_captions(task, column):
            sample, row = task.samples[i], task.rows[i]
            yield sample.id if sample else str(row["id"]) if row else "", captions


def _stale_captions(task: ShardTask, column: Column) -> Iterator[tuple[int, Sequence[str]]]:
    for i, (row, sample) in enumerate(zip(task.rows, task.samples, strict=True)):
        key = column.key_of(row) if row else column.input_key(list(sample.captions)) if sample else None
        if key is not None and key != task.key(column.name, i):
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


def estimate(work: Work, encoders: dict[str, Encoder], batch_size: int) -> dict[str, Estimate]:
    """What each column's work would take: bytes counted, seconds from a batch timed here."""
    found = {}
    new = set(work.new_ids)
    for name, encoder in encoders.items():
        if isinstance(encoder, TextColumn):
            stale = list(captions_to_encode(work, encoder.column))
            ids, captions = [i for i, _ in stale], [c for _, captions in stale for c in captions]
            nbytes, inputs = _text_bytes(encoder, captions), len(set(captions))
        else:
            pictures = [(task, i) for task in work.tasks for i, names in task.pictures.items() if name in names]
            ids = [sample.id for task, i in pictures if (sample := task.samples[i])]
            nbytes, inputs = len(ids) * cast(ImageEncoder, encoder).row_bytes, len(ids)
        seconds = inputs * _seconds_each(encoder, batch_size) if inputs else 0.0
        found[name] = Estimate(len(ids), sum(i in new for i in ids), nbytes, seconds)
    return found


def _text_bytes(encoder: TextColumn, captions: Sequence[str]) -> int:
    embeds, hidden_states, lengths = (field.row_bytes for field in encoder.column.fields)
    return sum(encoder.token_counts(captions)) * hidden_states + len(captions) * (embeds + lengths)


def _seconds_each(encoder: Encoder, batch_size: int) -> float:
    """Time of one input in a batch, measured: once for one alone, and for a whole batch where that is quick."""
    logger.info("timing the encoder of %s here", encoder.column.name)
    each = 0.0
    for count in (1, 1, batch_size):
        inputs = list(_made_up(encoder, count))
        started = time.perf_counter()
        for _ in encoder.features(inputs, batch_size):
            pass
        each = (time.perf_counter() - started) / count
        if each * batch_size > 20:  # seconds: more is too long to wait for an estimate
            break
    return each


def _made_up(encoder: Encoder, count: int) -> Iterator[object]:
    """Inputs of the usual size; captions differ, for equal ones are encoded once."""
    for number in range(count):
        if isinstance(encoder, TextColumn):
            yield [f"picture {number} of {count}"]
        else:
            yield cast(ImageEncoder, encoder).prepare(Image.new("RGB", (512, 512)), "0" * 64)
