"""The record that makes one shard file exist: what it is called, its digests, and what each row was made from."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import layout
from .errors import DamageError
from .records import Record, digest, integer, load_record, mapping, string

_SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_ROWS = 2**32 - 1
"""Rows that an index can count."""


@dataclass(frozen=True)
class Commit:
    """One shard file of one column. ``keys`` has the input key of every row, None where it has no features."""

    column: str
    shard: int
    generation: int
    file: str
    bytes: int
    sha256: str
    rows: int
    keys: tuple[str | None, ...]
    index: Record | None = None

    @classmethod
    def load(cls, path: Path) -> "Commit":
        """The inverse of `to_record`; DamageError where it is not whole or names a file outside the cache."""
        record = {"index": None, **load_record(path)}
        try:
            return cls(
                column=string(record, "column"),
                shard=integer(record, "shard"),
                generation=integer(record, "generation", least=1),
                rows=integer(record, "rows", most=MAX_ROWS),
                keys=_keys(record),
                index=reference(mapping(record, "index")) if record["index"] is not None else None,
                **reference(record),
            )
        except (KeyError, ValueError) as error:
            raise DamageError(f"{path} is not a commit that kcache wrote: {error}") from None

    @property
    def reference(self) -> Record:
        """The shard file with its digests."""
        return {"file": self.file, "bytes": self.bytes, "sha256": self.sha256}

    @property
    def files(self) -> list[str]:
        """What it names: the shard file, and its index where it has one."""
        return [self.file, *([str(self.index["file"])] if self.index else [])]

    def to_record(self) -> Record:
        """The content of the commit's file."""
        return {**self.__dict__, "keys": list(self.keys)}


def commit_of(
    column: str,
    shard: int,
    generation: int,
    file: str,
    data: bytes,
    keys: Sequence[str | None],
    index: Record | None = None,
) -> Commit:
    """The commit of a file that holds ``data``."""
    return Commit(column, shard, generation, file, len(data), sha256(data), len(keys), tuple(keys), index)


def samples_key(row: Mapping[str, Any], decoding: object) -> str | None:
    """The key of a row of the samples column.

    A row that was set aside counts for what decodes pictures now (``decoding``) and is tried again when that changes.
    """
    if "removed" in row:
        return None
    return digest([row["captions"], row["sha256"], *([decoding] if "set_aside" in row else [])])


def reference(record: Record) -> Record:
    """What a record says of a file that it names; ValueError where that lies outside of the cache or cannot be."""
    file, named = string(record, "file"), string(record, "sha256")
    if not layout.is_inside(file):
        raise ValueError("it names a file outside of its cache")
    if not _SHA256.fullmatch(named):
        raise ValueError("its sha256 is none")
    return {"file": file, "bytes": integer(record, "bytes"), "sha256": named}


def _keys(record: Record) -> tuple[str | None, ...]:
    keys = record["keys"]
    if type(keys) is not list or len(keys) != record["rows"]:
        raise ValueError("it has other keys than rows")
    if not all(key is None or type(key) is str for key in keys):
        raise ValueError("its keys are no texts")
    return tuple(keys)


def sha256(data: bytes) -> str:
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digests(data: bytes) -> Record:
    """What a record says of a file that it names."""
    return {"bytes": len(data), "sha256": sha256(data)}
