"""Shards as WebDataset tars: nine-digit keys, one ``.npy`` member for each field."""

import io
import tarfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .columns import Field
from .index import ENTRY, Entries

Row = Mapping[str, npt.NDArray[np.generic]]
"""The arrays of one sample by field name."""


def pack(rows: Sequence[Row | None], fields: Sequence[Field], first_row: int) -> tuple[bytes, Entries]:
    """The bytes of a tar with ``rows`` (None: set aside, no members) and their index.

    Keys are ``first_row`` and up. Owner, mode and time are fixed, so equal rows make equal bytes.
    """
    entries = np.zeros((len(rows), len(fields)), ENTRY)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, row in enumerate(rows):
            for j, field in enumerate(fields if row is not None else ()):
                assert row is not None
                array = np.ascontiguousarray(row[field.name], field.dtype)
                member = npy(array)
                info = tarfile.TarInfo(f"{first_row + i:09d}.{field.name}.npy")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))
                start = buffer.tell() - _padded(len(member), tarfile.BLOCKSIZE) + len(member) - array.nbytes
                entries[i, j] = (start, array.nbytes, zlib.crc32(array.tobytes()))
    return buffer.getvalue(), entries


def unpack(data: bytes, fields: Sequence[Field], first_row: int, rows: int) -> list[Row | None]:
    """The inverse of `pack`; ValueError for a file that `pack` never makes, such as a compressed one."""
    found: list[dict[str, npt.NDArray[np.generic]]] = [{} for _ in range(rows)]
    known = {field.name: field for field in fields}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                key, name, _ = info.name.split(".")
                row, end = int(key) - first_row, info.offset_data + info.size
                if not info.isreg() or not 0 <= row < rows or end > len(data):
                    raise ValueError(f"its member {info.name} is none of this shard")
                found[row][name] = _array(data[info.offset_data : end], known[name])
    except (tarfile.TarError, KeyError) as error:
        raise ValueError(f"it is no tar that kcache wrote: {error}") from None
    if any(row and row.keys() != known.keys() for row in found):
        raise ValueError("a sample lacks a field")
    return [row or None for row in found]


def _array(member: bytes, field: Field) -> npt.NDArray[np.generic]:
    """The array in a ``.npy`` file, which must be exactly the one that `npy` would write for its values."""
    raw = member[_NPY_HEADER:]
    if len(raw) % field.row_bytes or not (field.is_ragged or len(raw) == field.row_bytes):
        raise ValueError(f"field '{field.name}' has {len(raw):,} bytes")
    array = np.frombuffer(raw, field.dtype).reshape(field.shape_of(len(raw)))
    if npy(array) != member:
        raise ValueError(f"field '{field.name}' is of another type or shape than its column")
    return array


def packed_size(rows: Sequence[Sequence[int]], fields: Sequence[Field]) -> int:
    """Bytes of the tar of rows whose fields have so many bytes; ``fields`` are as `pack` takes them."""
    block = tarfile.BLOCKSIZE
    members = sum(block + _padded(_NPY_HEADER + nbytes, block) for row in rows for nbytes in row)
    return _padded(members + 2 * block, tarfile.RECORDSIZE)


def _padded(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


_NPY_HEADER = 128
"""Bytes before the values of an array of few dimensions: numpy pads them to a multiple of 64."""


def npy(array: npt.NDArray[np.generic]) -> bytes:
    """The bytes of a ``.npy`` file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0), allow_pickle=False)
    return out.getvalue()
