"""Shards as HDF5: flat contiguous arrays with offsets, readable with h5py alone."""

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import Field
from .index import ENTRY, Entries
from .tar import Row


def pack(rows: Sequence[Row | None], fields: Sequence[Field], first_row: int) -> tuple[bytes, Entries]:
    """The bytes of an HDF5 file with ``rows`` (None: set aside, no data) and their index.

    For a field of fixed shape, ``FIELD`` has one row for each sample present. For a ragged one, ``FIELD`` is all
    samples end to end and ``FIELD_offsets`` (int64) says where each begins, with the total last. ``rows`` (int64)
    holds the row numbers of the samples present.
    """
    import h5py

    kept = [i for i, row in enumerate(rows) if row is not None]
    present = [row for row in rows if row is not None]
    entries = np.zeros((len(rows), len(fields)), ENTRY)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "v108")) as file:
        file.create_dataset("rows", data=np.asarray([first_row + i for i in kept], np.int64))
        for j, field in enumerate(fields):
            arrays = [np.ascontiguousarray(row[field.name], field.dtype) for row in present]
            start = _write_field(file, field, arrays)
            for i, array in zip(kept, arrays, strict=True):
                entries[i, j] = (start, array.nbytes, zlib.crc32(array.tobytes()))
                start += array.nbytes
    return buffer.getvalue(), entries


def unpack(data: bytes, fields: Sequence[Field], first_row: int, rows: int) -> list[Row | None]:
    """The inverse of `pack`; ValueError for a file that `pack` never makes, such as one with links or filters."""
    import h5py

    found: list[Row | None] = [None] * rows
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            arrays = {name: _plain(file, name, len(data)) for name in file}
    except (OSError, RuntimeError) as error:
        raise ValueError(f"it is no HDF5 file that kcache wrote: {error}") from None
    try:
        for k, key in enumerate(arrays["rows"].tolist()):
            if not 0 <= key - first_row < rows:
                raise ValueError(f"row {key} is none of this shard")
            found[key - first_row] = {field.name: _row(field, arrays, k) for field in fields}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"it lacks a field or a row: {error}") from None
    return found


def _plain(file: Any, name: str, most: int) -> npt.NDArray[np.generic]:
    """A dataset whose bytes lie in the file as they are; any other kind could lead to other files or unpack to more."""
    import h5py

    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external or dataset.chunks:
        raise ValueError(f"'{name}' is no contiguous array")
    if dataset.dtype.kind not in "fi" or dataset.nbytes > most:
        raise ValueError(f"'{name}' is no array of numbers that fits into its file")
    return np.asarray(dataset[...])


def _row(field: Field, arrays: dict[str, npt.NDArray[np.generic]], k: int) -> npt.NDArray[np.generic]:
    """One field of the ``k``-th sample present."""
    array = arrays[field.name]
    if field.is_ragged:
        start, end = (int(n) for n in arrays[f"{field.name}_offsets"][k : k + 2])
        one = array[start:end]
    else:
        one = array[k]
    if one.dtype != field.dtype or one.shape != field.shape_of(one.nbytes):
        raise ValueError(f"field '{field.name}' is of another type or shape than its column")
    return one


def packed_size(rows: Sequence[Sequence[int]], fields: Sequence[Field]) -> int:
    """Bytes of the HDF5 file of rows whose fields have so many bytes, to a few hundred."""
    ragged = sum(field.is_ragged for field in fields)
    datasets = 1 + len(fields) + ragged
    return sum(map(sum, rows)) + 8 * len(rows) + 8 * (len(rows) + 1) * ragged + 120 + 300 * datasets


def _write_field(file: "object", field: Field, arrays: list[npt.NDArray[np.generic]]) -> int:
    """Write one field; returns the place of its first byte in the file."""
    import h5py

    assert isinstance(file, h5py.File)
    if field.is_ragged:
        lengths = [len(array) for array in arrays]
        file.create_dataset(f"{field.name}_offsets", data=np.cumsum([0, *lengths], dtype=np.int64))
        flat = np.concatenate(arrays) if arrays else np.zeros((0, *field.shape_of(0)[1:]), field.dtype)
    else:
        flat = np.stack(arrays) if arrays else np.zeros((0, *field.shape_of(field.row_bytes)), field.dtype)
    dataset = file.create_dataset(field.name, data=flat)
    return int(dataset.id.get_offset() or 1)  # An empty array lies nowhere, and 0 would mean that it was set aside.
