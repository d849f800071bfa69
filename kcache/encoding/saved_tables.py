"""Tables of the ``datasets`` library: saved in a folder, on the hub, or streamed from there."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

from .dataset import DatasetOptions, stat_of
from .memory import Scans
from .rows import RowReader
from .streams import Stream
from .tables import Cell, Part, Table

ROWS_AT_ONCE = 1000
"""Rows of captions and metadata that are read together."""


class SavedImages:
    """The image column of a ``datasets.Dataset``; its Arrow files are mapped, not loaded."""

    def __init__(self, table: Any, column: str, options: DatasetOptions) -> None:
        """``table`` has its images undecoded, as `_undecoded` makes it."""
        self._table, self._column = table.select_columns([column]), column
        files = sorted(str(Path(file["filename"]).resolve()) for file in table.cache_files)
        stats = [stat_of(file) for file in files]
        # Many files make one table. Their common size and latest change stand for them all.
        known = [stat for stat in stats if stat is not None]
        stat = (sum(s[0] for s in known), max(s[1] for s in known)) if known and len(known) == len(files) else None
        key = [files, column, options.config_name, options.split]
        self.parts = [Part(key, stat, 0, len(table), self._holds_all())]

    def cell(self, row: int) -> Cell:
        """The image of one row."""
        return cell_of(self._table[row][self._column])

    def place(self, row: int) -> str:
        """Rows are numbered from 0, as ``datasets`` does."""
        return f"row {row}"

    def _holds_all(self) -> bool:
        chunks = self._table.data.column(self._column).chunks
        return all(chunk.field("bytes").null_count == 0 for chunk in chunks)


def cell_of(value: Any, folder: Path | None = None) -> Cell:
    """An image as ``datasets`` stores it: ``{"bytes": ..., "path": ...}``, or the bytes themselves."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        return bytes(data) if data is not None else None if path is None else Path(folder or "", path)
    return None if value is None else bytes(value)


def open_saved(path: Path, options: DatasetOptions, scans: Scans) -> Table:
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    from datasets import DatasetDict, load_from_disk

    options.refuse(f"dataset {path}, which save_to_disk wrote", "config_name")
    try:
        loaded = load_from_disk(str(path))
    except Exception as error:  # datasets and Arrow raise a different class for each way of not being whole.
        cause = str(error).split("\n")[0].rstrip(". ") or type(error).__name__
        raise KcacheError(
            f"dataset {path} does not load as a folder that save_to_disk wrote ({cause}); save it again"
        ) from error
    if isinstance(loaded, DatasetDict):
        if options.split not in loaded:
            raise KcacheError(f"dataset {path} has no split '{options.split}' (it has: {', '.join(loaded)})")
        loaded = loaded[options.split]
    else:
        options.refuse(f"dataset {path}, which is one table", "split")
    return open_table(loaded, str(path), options, scans)


def open_hub(name: str, options: DatasetOptions, scans: Scans) -> Table | Stream:
    """A dataset on the hub, by name: downloaded, or read as it comes with ``--streaming``."""
    from datasets import load_dataset

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        loaded = load_dataset(
            name, options.config_name, split=options.split, cache_dir=options.cache_dir, streaming=options.streaming
        )
    except Exception as error:  # datasets raises a different class for each way of not finding one.
        cause = str(error).split("\n")[0] or type(error).__name__
        raise KcacheError(
            f"dataset {name} is not a folder, and could not be had from the hub ({cause.rstrip('. ')});"
            " check the name and the connection, or name a folder of pictures"
        ) from None
    return Stream(loaded, name, options) if options.streaming else open_table(loaded, name, options, scans)


def open_table(table: Any, name: str, options: DatasetOptions, scans: Scans) -> Table:
    """The samples of a ``datasets.Dataset``."""
    column = options.image_column or "image"
    source = f"dataset {name}"
    if column not in table.column_names:
        have = ", ".join(repr(field) for field in table.column_names)
        raise KcacheError(f"{source} has no column '{column}' (it has: {have}); choose one with --image-column")
    reader = RowReader(source, options, fields=table.column_names)
    table = _undecoded(table, column, name)
    return Table(SavedImages(table, column, options), _rows(table, reader.columns), reader, options, scans)


def _undecoded(table: Any, column: str, name: str) -> Any:
    """The table with its images as ``{"bytes": ..., "path": ...}``."""
    from datasets import Image

    try:
        return table.cast_column(column, Image(decode=False))
    except Exception as error:  # Arrow raises a different class for each type that is no image.
        raise KcacheError(
            f"column '{column}' of dataset {name} holds no images but {table.features[column]};"
            " choose another with --image-column"
        ) from error


def _rows(table: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.select_columns(columns).with_format(None).iter(batch_size=ROWS_AT_ONCE):
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield dict(zip(columns, values, strict=True))
