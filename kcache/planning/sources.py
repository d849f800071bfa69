"""What a plan is for: a cache, or a dataset that is not encoded yet, with the bytes that its columns take."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from kcache.checkpoints import Checkpoint
from kcache.fitting import require_decoder_dimensions, require_prior_dimensions
from kcache.shards import Cache, ColumnReader, Field, KcacheError, Snapshot, summarize
from kcache.shards.cache import packed_size
from kcache.shards.index import index_size
from kcache.views import parse_column

MAX_TOKENS = 77
SHARD_SIZE = 256
COMMITTED_ROW = 70
"""Bytes of a row's key in a commit."""


@dataclass(frozen=True)
class ColumnSize:
    """One column on disk, with what lies beside it."""

    name: str
    bytes: int
    per_sample: float


@dataclass(frozen=True)
class Source:
    """What there is to train on. ``tokens`` are those of the longest caption; 0 where there is no text."""

    path: str
    encoded: bool
    samples: int
    tokens: int
    columns: list[ColumnSize]
    resolutions: list[int]

    @property
    def stages(self) -> list[str]:
        """Those that it has the columns for."""
        has_images = any(column.name == "image" for column in self.columns)
        return ["prior"] * bool(self.tokens and has_images) + ["decoder"] * bool(self.resolutions and has_images)


def open_cache(path: Path, prior: Checkpoint | None, decoder: Checkpoint | None, shapes: dict[str, Any]) -> Source:
    """A cache, whole or not; KcacheError where it does not fit the checkpoints, whose configurations are ``shapes``."""
    cache = Cache(path)
    found = summarize(cache)
    columns = {name: cache.column(name) for name in cache.column_names()}
    images = [columns["image"]] if "image" in columns else []
    latents = [column for name, column in columns.items() if name.startswith("latents-") and name[8:].isdigit()]
    if prior and "text" in columns:
        require_prior_dimensions(cache, prior, shapes["prior"], columns["text"], images)
    if decoder and latents:
        require_decoder_dimensions(cache, decoder, shapes["decoder"], latents, images)
    sizes = [ColumnSize(c.name, c.bytes, c.bytes / c.rows if c.rows else 0.0) for c in found.columns]
    rows = max((column.rows for column in found.columns), default=0)
    resolutions = sorted(parse_column(column.name).resolution or 0 for column in latents)
    return Source(str(path), True, rows, _longest(cache) if "text" in columns else 0, sizes, resolutions)


def open_data(dataset: Any, path: str, resolutions: Sequence[int], tokenizer: Path | None, width: int) -> Source:
    """A dataset of ``kcache encode`` that is not encoded: its captions' tokens are counted, its pictures not opened."""
    usable = [sample for sample in dataset.samples if sample.fault is None]
    if not usable:
        raise KcacheError(f"dataset {path} has no sample that could be encoded; 'kcache encode' says why")
    tokens = _tokens([caption for sample in usable for caption in sample.captions], tokenizer)
    counts, start = [], 0
    for sample in usable:
        counts.append(tokens[start : start + len(sample.captions)])
        start += len(sample.captions)
    columns = [
        _column("text", _text_fields(width), [[2 * width * len(c), 2 * width * sum(c), 4 * len(c)] for c in counts]),
        _column("image", (Field("image_embeds", "float16", (width,)),), [[2 * width]] * len(usable)),
    ]
    for resolution in resolutions:
        field = Field("latents", "float16", (4, resolution // 8, resolution // 8))
        columns.append(_column(f"latents-{resolution}", (field,), [[field.row_bytes]] * len(usable)))
    return Source(path, False, len(usable), max(tokens), columns, list(resolutions))


def _text_fields(width: int) -> tuple[Field, ...]:
    return (
        Field("text_embeds", "float16", (None, width)),
        Field("hidden_states", "float16", (None, width)),
        Field("lengths", "int32", (None,)),
    )


def _column(name: str, fields: Sequence[Field], rows: Sequence[Sequence[int]]) -> ColumnSize:
    """What tar shards of so many bytes in each row take, with their indexes and commits."""
    nbytes = 0
    for start in range(0, len(rows), SHARD_SIZE):
        some = rows[start : start + SHARD_SIZE]
        nbytes += packed_size("tar", some, fields) + index_size(len(some), len(fields)) + COMMITTED_ROW * len(some)
    return ColumnSize(name, nbytes, nbytes / len(rows))


def _longest(cache: Cache) -> int:
    """Tokens of the longest caption, of a sample's several their mean: the index alone is read."""
    snapshot = Snapshot(cache, ["text"], partial=True)
    if not len(snapshot):
        return 0
    reader = ColumnReader(snapshot, "text")
    try:
        captions = reader.nbytes("lengths") // 4
        states = reader.nbytes("hidden_states") // reader.field("hidden_states").row_bytes
        return int(np.ceil(states / np.maximum(captions, 1)).max())
    finally:
        reader.close()


def _tokens(captions: list[str], tokenizer: Path | None) -> list[int]:
    """Tokens of each caption, cut as CLIP cuts them: by the checkpoint's tokenizer, or by the small one of kcache.

    That knows fewer words and so finds a few tokens more.
    """
    from kcache.text_features import load_tokenizer, token_counts

    def counted(folder: Path) -> list[int]:
        return [min(count, MAX_TOKENS) for count in token_counts(load_tokenizer(folder), captions)]

    if tokenizer is not None and tokenizer.is_dir():
        return counted(tokenizer)
    with as_file(files("kcache") / "data" / "kandinsky-tiny" / "prior" / "tokenizer") as folder:
        return counted(folder)
