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
    """The inverse of `pack`, for a file that is whole."""
    found: list[dict[str, npt.NDArray[np.generic]]] = [{} for _ in range(rows)]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            key, field, _ = info.name.split(".")
            member = tar.extractfile(info)
            assert member is not None
            found[int(key) - first_row][field] = np.lib.format.read_array(io.BytesIO(member.read()), allow_pickle=False)
    return [row or None for row in found]


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
