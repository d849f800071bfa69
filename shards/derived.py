"""What is derived from the commits of a column, kept in ``index/`` so that ten million rows open within a second."""

import hashlib
import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from . import durable, layout
from .cache import Cache
from .columns import Column
from .errors import CacheError
from .files import open_plain
from .index import ENTRY
from .pinned import FILE, EntriesInMemory, EntriesOnDisk, Numbers, PinnedColumn, Table
from .records import Record, dump_record, integer, load_record, mapping, string

IN_MEMORY = 64 * 2**20
"""Bytes of entries that are held in memory, those of a million captions; of more, each is read when it is asked for."""

_SLICE = 4 * 2**20
"""Bytes of a large file that are checked at a time."""


def load_derived(cache: Cache, name: str, state: str, column: Column) -> PinnedColumn | None:
    """What `store_derived` kept of a column; None where it is of another state, or not whole."""
    path = cache.root / layout.derived(f"{name}.json")
    if not path.is_file():
        return None
    try:
        record = load_record(path)
        if record["state"] != state or record["fingerprint"] != column.fingerprint:
            return None
        return _load(cache, column, record, path.with_suffix(".idx"))
    except (CacheError, OSError, KeyError, TypeError, ValueError):
        return None  # Derived files are never trusted to be whole: the commits are read instead.


def store_derived(cache: Cache, name: str, state: str, pinned: PinnedColumn) -> None:
    """Keep what the commits of a column say: its table of files, the rows without features, and all entries."""
    table = pinned.table.tobytes() + pinned.absent.tobytes()
    entries = pinned.entries.tobytes()
    record: dict[str, Any] = {
        "state": state,
        "fingerprint": pinned.column.fingerprint,
        "files": len(pinned.table),
        "rows": int(pinned.starts[-1]),
        "absent": len(pinned.absent),
        "stale": pinned.stale,
        "names": {str(shard): file for shard, file in pinned.names.items()},
        "table_sha256": hashlib.sha256(table).hexdigest(),
        "entries_crc32": crc32(entries),
    }
    try:
        durable.replace(cache.root / layout.derived(f"{name}.idx"), b"".join([table, entries]))
        durable.replace(cache.root / layout.derived(f"{name}.json"), dump_record(record))
    except (OSError, CacheError):
        pass  # A read-only or full disk: opening is slower, nothing else changes.


def _load(cache: Cache, column: Column, record: Record, path: Path) -> PinnedColumn | None:
    files, rows, absent, stale = (integer(record, name) for name in ("files", "rows", "absent", "stale"))
    start, nbytes = files * FILE.itemsize + absent * 8, rows * len(column.fields) * ENTRY.itemsize
    names = mapping(record, "names")
    with open(open_plain(path), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size != start + nbytes:
            return None
        head = file.read(start)
        table = np.frombuffer(head, FILE, files)
        missing = np.frombuffer(head, np.int64, absent, files * FILE.itemsize)
        if hashlib.sha256(head).hexdigest() != record["table_sha256"] or not _is_possible(table, missing, rows):
            return None
        stored, checksum = _entries(file, path, start, rows, len(column.fields))
        if checksum != record["entries_crc32"]:
            return None
    if not all(layout.is_inside(string(names, shard)) for shard in names):
        return None
    named = {int(shard): file for shard, file in names.items()}
    return PinnedColumn(column, cache.container, table, stored, missing, stale, named)


def _is_possible(table: Table, absent: Numbers, rows: int) -> bool:
    """Whether the numbers can be those of files and rows, whoever wrote them."""
    rising = all(bool((numbers[1:] > numbers[:-1]).all()) for numbers in (table["shard"], absent))
    positive = all(bool((table[name] >= 0).all()) for name in ("shard", "generation", "bytes", "rows"))
    inside = not len(absent) or (absent[0] >= 0 and absent[-1] < rows)
    return rising and positive and bool(inside) and sum(table["rows"].tolist()) == rows


def _entries(
    file: FileIO, path: Path, start: int, rows: int, fields: int
) -> tuple[EntriesInMemory | EntriesOnDisk, int]:
    """The entries in the rest of a file, in memory if they are few, and their crc32."""
    nbytes = rows * fields * ENTRY.itemsize
    if nbytes <= IN_MEMORY:
        data = file.read(nbytes)
        return EntriesInMemory(np.frombuffer(data, ENTRY).reshape(-1, fields)), crc32(data)
    checksum, part = 0, memoryview(bytearray(_SLICE))
    while count := file.readinto(part):
        checksum = crc32(part[:count], checksum)
    return EntriesOnDisk(path, os.dup(file.fileno()), start, rows, fields), checksum
