"""Rows of a committed shard file read back, to be copied into its next generation."""

import zlib
from collections.abc import Iterable

import numpy as np

from .cache import Cache
from .columns import Column
from .commits import Commit
from .errors import DamageError
from .files import read_plain
from .snapshot import load_entries
from .tar import Row


def read_rows(cache: Cache, column: Column, commit: Commit, rows: Iterable[int]) -> dict[int, Row]:
    """The arrays of some rows of one shard file, by row. Every field is checked against its crc32.

    DamageError naming the file and the sample: what is damaged is never copied into a file with a right checksum.
    """
    entries = load_entries(cache, column, commit)
    cache.storage.bring([commit.reference])
    data = read_plain(cache.root / commit.file, commit.bytes)
    found: dict[int, Row] = {}
    for i in rows:
        arrays = {}
        for field, entry in zip(column.fields, entries[i], strict=True):
            start, nbytes = int(entry["offset"]), int(entry["nbytes"])
            raw = data[start : start + nbytes]
            if len(raw) != nbytes or zlib.crc32(raw) != entry["crc32"]:
                raise DamageError(
                    f"{cache.root / commit.file}: field '{field.name}' of sample '{cache.ids(commit.shard)[i]}' is"
                    f" damaged; run 'kcache verify {cache.name} --deep'"
                )
            arrays[field.name] = np.frombuffer(raw, field.dtype).reshape(field.shape_of(nbytes))
        found[i] = arrays
    return found
