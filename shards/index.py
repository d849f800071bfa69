"""The binary index of a shard: for each sample and field, offset, length and crc32."""

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from zlib_ng.zlib_ng import crc32  # that of zlib, three times as fast

from .columns import Field
from .errors import DamageError

ENTRY = np.dtype([("offset", "<u8"), ("nbytes", "<u4"), ("crc32", "<u4")])
"""One field of one sample; an offset of 0 marks a sample that was set aside."""

Entries = npt.NDArray[np.void]
"""Entries of shape (rows, fields)."""

_HEADER = struct.Struct("<8sIIII8x")
_MAGIC = b"KCACHEIX"
_VERSION = 1


def dump_index(entries: Entries) -> bytes:
    """The bytes of an index file: 32 bytes of header, then 16 bytes for each sample and field."""
    rows, fields = entries.shape
    body = np.ascontiguousarray(entries, dtype=ENTRY).tobytes()
    return _HEADER.pack(_MAGIC, _VERSION, rows, fields, _checksum(rows, fields, body)) + body


def index_size(rows: int, fields: int) -> int:
    """Bytes of an index file."""
    return _HEADER.size + rows * fields * ENTRY.itemsize


def load_index(data: bytes, name: str) -> Entries:
    """The entries in the bytes of an index file; ``name`` is for the error."""
    if len(data) >= _HEADER.size:
        magic, version, rows, fields, checksum = _HEADER.unpack_from(data)
        body = memoryview(data)[_HEADER.size :]
        whole = magic == _MAGIC and version == _VERSION and len(body) == rows * fields * ENTRY.itemsize
        if whole and checksum == _checksum(rows, fields, body) and not any(data[24:32]):
            return np.frombuffer(body, ENTRY).reshape(rows, fields)
    raise DamageError(
        f"{name} is cut or damaged, or no index that kcache wrote; run 'kcache verify --deep' on its cache"
    )


def check_entries(entries: Entries, fields: Sequence[Field], nbytes: int, name: str) -> None:
    """DamageError unless every row is set aside or lies in a file of ``nbytes`` bytes with arrays that its fields have.

    ``name`` is for the error.
    """
    if entries.ndim != 2 or entries.shape[1] != len(fields):
        raise DamageError(f"{name} is of another number of fields than its column, {len(fields)}")
    offset, length = entries["offset"], entries["nbytes"].astype(np.uint64)
    absent = offset == 0
    step = np.array([field.row_bytes for field in fields], np.uint64)
    ragged = np.array([field.is_ragged for field in fields])
    inside = (offset <= nbytes) & (length <= nbytes - np.minimum(offset, np.uint64(nbytes)))
    whole = np.where(ragged, length % step == 0, length == step)
    if (absent != absent.all(axis=1, keepdims=True)).any() or not (absent | inside & whole).all():
        raise DamageError(f"{name} points outside of its shard, or to arrays that its column does not have")


def present(entries: Entries) -> npt.NDArray[np.bool_]:
    """Which rows (shape (rows,)) hold features, and were not set aside."""
    return np.asarray((entries["offset"] != 0).all(axis=1))


def _checksum(rows: int, fields: int, body: bytes | memoryview) -> int:
    return crc32(body, crc32(struct.pack("<II", rows, fields)))
