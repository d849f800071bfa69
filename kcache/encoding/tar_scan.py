"""One tar read from end to end, header by header: where its images lie, and the captions and fields beside them."""

import json
import tarfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from kcache.shards.errors import KcacheError

from .walk import as_id, is_picture

LARGEST_TEXT = 2**24
"""Bytes of a ``.txt`` or ``.json`` member that are read; a larger one is no caption."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class Member:
    """One image in a tar and what lies beside it under the same name."""

    name: str
    offset: int
    size: int
    text: str | None = None
    fields: dict[str, Any] | None = None
    """Those fields of its ``.json`` that were asked for, or None where it has no such member."""
    fault: str | None = None


@dataclass
class TarScan:
    """The images of a tar in their order, the names of all fields of their ``.json``, and the damage, if any."""

    members: list[Member] = field(default_factory=list)
    field_names: list[str] = field(default_factory=list)
    fault: str | None = None


def scan_tar(path: Path, wanted: Collection[str]) -> TarScan:
    """Read one tar. ``wanted`` are the fields to take from each ``.json``; without any, these are not read.

    Damage ends the scan and becomes its ``fault``. KcacheError for a compressed tar.
    """
    reader = _TarReader(path, frozenset(wanted))
    with open(path, "rb") as file:
        _refuse_compressed(path, file)
        damage = reader.read(file)
    return reader.finish(damage)


class _TarReader:
    """Collects the members of a tar by stem.

    The stem is the name up to its last dot: webdataset cuts at the first one, and so makes one sample of
    ``cat.1.jpg`` and ``cat.2.jpg``, whose second picture replaces the first.
    """

    def __init__(self, path: Path, wanted: frozenset[str]) -> None:
        self._path, self._wanted = path, wanted
        self._images: dict[str, tuple[str, Member]] = {}  # by name: of two members of one name, tar means the last
        self._texts: dict[str, str] = {}
        self._fields: dict[str, dict[str, Any]] = {}
        self._faults: dict[str, str] = {}
        self._field_names: set[str] = set()
        self._last_stem = ""

    def read(self, file: BinaryIO) -> str | None:
        """Take in every member; returns where and how the tar is damaged, or None."""
        size, offset = self._path.stat().st_size, 0
        try:
            # `next` caches every header it reads; ten thousand of them are 15 MB, so the cache is emptied.
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # typeshed has no members; webdataset does this too
                    if member.isreg() and member.offset_data + member.size > size:
                        return f"is cut at byte {size:,}, inside of '{member.name}'"
                    self._take(member, file)
                    offset = tar.offset
                offset = tar.offset
        except (tarfile.TarError, ValueError) as error:
            return "is empty (0 bytes)" if not size else f"is damaged at byte {offset:,} of {size:,} ({error})"
        return _ending(file, offset, size)

    def _take(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        name = member.name.removeprefix("./")
        stem, _, suffix = name.rpartition(".")
        if is_picture(name.rpartition("/")[2]):
            self._last_stem = stem
            known, unnamed = as_id(name)
            image = Member(known, member.offset_data, member.size, fault=_unreadable(member, name) or unnamed)
            self._images[name] = (stem, image)
        elif suffix == "txt" or (suffix == "json" and self._wanted):
            self._last_stem = stem
            if fault := _unreadable(member, name) or self._read_text(member, stem, suffix, file):
                self._faults[stem] = fault

    def _read_text(self, member: tarfile.TarInfo, stem: str, suffix: str, file: BinaryIO) -> str | None:
        """Read a ``.txt`` or ``.json`` member; returns what is wrong with it, or None."""
        if member.size > LARGEST_TEXT:
            return f"its .{suffix} has {member.size:,} bytes, which no caption has"
        file.seek(member.offset_data)
        try:
            text = file.read(member.size).decode("utf-8-sig")
            if suffix == "txt":
                self._texts[stem] = text.strip()
                return None
            fields = json.loads(text)
        except UnicodeDecodeError:
            return f"its .{suffix} is not UTF-8 text"
        except (ValueError, RecursionError) as error:
            return f"its .json is not JSON: {error}"
        if not isinstance(fields, dict):
            return "its .json holds no object"
        self._field_names.update(fields)
        self._fields[stem] = {name: fields[name] for name in self._wanted if name in fields}
        return None

    def finish(self, damage: str | None) -> TarScan:
        """The samples, each with its caption and fields."""
        scan = TarScan(field_names=sorted(self._field_names))
        for stem, image in self._images.values():
            if damage and stem == self._last_stem:
                continue  # Only the next sample's beginning shows that a sample is whole.
            image.text, image.fields = self._texts.get(stem), self._fields.get(stem)
            image.fault = image.fault or self._faults.get(stem)
            scan.members.append(image)
        if damage:
            kept = f"the {len(scan.members):,} samples before that are used, what follows is lost"
            scan.fault = f"the tar {damage}: {kept}; copy the tar again"
        return scan


def _unreadable(member: tarfile.TarInfo, name: str) -> str | None:
    """Why the bytes of a member cannot be had from its place in the tar, or None."""
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the tar"
    if not member.isreg():
        return "it is a link or a device in the tar, which is not followed"
    return "it is stored sparsely in the tar; write the tar again without --sparse" if member.issparse() else None


def _ending(file: BinaryIO, offset: int, size: int) -> str | None:
    """tarfile stops in silence at a bad header as at the end: look at what it stopped at."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends at byte {size:,} without the mark that ends a tar"
    if any(block):
        return f"is damaged at byte {offset:,} of {size:,}, where a member should begin"
    while block := file.read(2**20):
        if any(block):
            return f"has an end mark at byte {offset:,} of {size:,} and more behind it, as tars joined by cat have"
    return None


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    start = file.read(6)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise KcacheError(
                f"{path} is compressed with {kind}, and in a compressed tar no image can be found without unpacking all"
                f" before it; unpack it to a plain .tar first"
            )
