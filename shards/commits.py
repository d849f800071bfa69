"""The record that makes one shard file exist: what it is called, its digests, and what each row was made from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .errors import DamageError
from .records import Record, load_record


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
        record = load_record(path)
        try:
            commit = cls(**{**record, "keys": tuple(record["keys"])})
            files = commit.files
        except (KeyError, TypeError) as error:
            raise DamageError(f"{path} is not a commit that kcache wrote: {error}") from None
        if not all(layout.is_inside(file) for file in files) or len(commit.keys) != commit.rows:
            raise DamageError(f"{path} names a file outside of its cache, or other rows than its own")
        return commit

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


def sha256(data: bytes) -> str:
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def digests(data: bytes) -> Record:
    """What a record says of a file that it names."""
    return {"bytes": len(data), "sha256": sha256(data)}
