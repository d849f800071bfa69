"""Shards made by a stranger, of which `kcache verify --repair` is to rebuild an index: bombs and links are refused."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from toy_cache import FIELDS, row

from kcache.shards import hdf5, tar
from kcache.shards.tar import Row

ROWS: list[Row | None] = [row("text", 0), None, row("text", 2)]


@pytest.mark.parametrize("pack", [tar, hdf5])
def test_what_is_packed_is_unpacked(pack: Any) -> None:
    data, _ = pack.pack(ROWS, FIELDS["text"], 8)
    unpacked = pack.unpack(data, FIELDS["text"], 8, 3)
    assert unpacked[1] is None
    for one, other in ((ROWS[0], unpacked[0]), (ROWS[2], unpacked[2])):
        assert one is not None
        assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}


def tar_of(name: str, member: bytes, **info: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        made = tarfile.TarInfo(name)
        made.size = len(member)
        for key, value in info.items():
            setattr(made, key, value)
        file.addfile(made, io.BytesIO(member))
    return buffer.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


NAME = "000000008.text_embeds.npy"
ABSURD = npy(np.zeros((1, 3), np.float32)).replace(b"(1, 3)", b"(9**9,")
TARS = {
    "compressed": gzip.compress(tar_of(NAME, bytes(1 << 20))),
    "a name that leads out": tar_of("../../000000008.text_embeds.npy", b""),
    "a link": tar_of(NAME, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a device": tar_of(NAME, b"", type=tarfile.CHRTYPE),
    "another row": tar_of("000000099.text_embeds.npy", npy(np.zeros((1, 3), np.float32))),
    "another field": tar_of("000000008.other.npy", npy(np.zeros((1, 3), np.float32))),
    "a pickle": tar_of(NAME, npy(np.array([{"a": 1}], object), allow_pickle=True)),
    "another type": tar_of(NAME, npy(np.zeros((1, 3), np.int32))),
    "an absurd shape": tar_of(NAME, ABSURD),
    "nothing else": tar_of(NAME, npy(np.zeros((1, 3), np.float32))),
    "no tar": b"KCACHE" * 1000,
}


def h5_of(fill: Callable[[h5py.File], object]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        fill(file)
    return buffer.getvalue()


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("rows", layout)


H5S = {
    "a bomb": lambda f: f.create_dataset("rows", (1 << 28,), "i8", chunks=(1 << 20,), compression="gzip", fillvalue=0),
    "an external link": lambda f: f.__setitem__("rows", h5py.ExternalLink("/etc/passwd", "/x")),
    "a soft link": lambda f: f.__setitem__("rows", h5py.SoftLink("/rows")),
    "a virtual array": _virtual,
    "external storage": lambda f: f.create_dataset("rows", (4,), "i8", external=[("/etc/passwd", 0, 32)]),
    "bytes that are not there": lambda f: f.create_dataset("rows", (1 << 40,), "i8"),
    "text": lambda f: f.create_dataset("rows", data="text"),
    "a group": lambda f: f.create_group("rows"),
    "other rows": lambda f: f.create_dataset("rows", data=[99]),
    "no rows": lambda f: f.create_dataset("other", data=[1]),
}
FILES: dict[str, tuple[Any, bytes]] = {
    **{f"tar: {name}": (tar, data) for name, data in TARS.items()},
    **{f"h5: {name}": (hdf5, h5_of(fill)) for name, fill in H5S.items()},
    "h5: no HDF5": (hdf5, b"no file" * 100),
}


@pytest.mark.parametrize("name", FILES)
def test_a_shard_that_kcache_never_writes_is_refused(name: str, tmp_path: Path) -> None:
    pack, data = FILES[name]
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"."):
        pack.unpack(data, FIELDS["text"], 8, 3)
    assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    tracemalloc.stop()
