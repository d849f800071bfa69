"""A cache on disk: create or open it, read and extend its plan, columns and commits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import durable, hdf5, layout, tar
from .columns import Column
from .errors import CacheError, DamageError
from .index import dump_index
from .records import Record, dump_lines, dump_record, load_lines, load_record

_PACK = {"tar": tar.pack, "h5": hdf5.pack}


@dataclass(frozen=True)
class Commit:
    """The record that makes one shard file exist. ``keys`` has the input key of every row, None where set aside."""

    column: str
    shard: int
    generation: int
    file: str
    bytes: int
    sha256: str
    rows: int
    keys: tuple[str | None, ...]
    index: Record | None = None

    def to_record(self) -> Record:
        """The content of the commit's file."""
        return {**self.__dict__, "keys": list(self.keys)}


class Cache:
    """The files of one cache. Holds no open file, so it may be shared, forked and pickled.

    Any number of processes may add to one cache: every file is written once, and of two that race for a name one wins.
    """

    def __init__(self, root: Path | str) -> None:
        """Open the cache at ``root``; CacheError when there is none, or one of another format version."""
        self.root = Path(root)
        if not (self.root / layout.ROOT_RECORD).is_file():
            raise CacheError(f"{self.root} is not a kcache cache; make one with 'kcache encode DATASET {self.root}'")
        record = load_record(self.root / layout.ROOT_RECORD)
        if record.get("format_version") != layout.FORMAT_VERSION:
            raise CacheError(
                f"{self.root} has cache format {record.get('format_version')} and this kcache reads format"
                f" {layout.FORMAT_VERSION}; use the kcache that made it, or encode into another folder"
            )
        self.shard_size = int(record["shard_size"])
        self.container = str(record["container"])
        if self.container not in layout.CONTAINERS or self.shard_size < 1:
            raise CacheError(
                f"{self.root / layout.ROOT_RECORD} names a container or shard size that kcache never writes"
            )

    @classmethod
    def create(cls, root: Path | str, *, shard_size: int, container: str) -> "Cache":
        """Open the cache at ``root``, made now if the folder is absent or empty.

        A folder with other things in it is refused: a cache never mixes with a user's files.
        """
        root = Path(root)
        refuse_foreign_folder(root)
        if not (root / layout.ROOT_RECORD).exists():
            record = {"format_version": layout.FORMAT_VERSION, "shard_size": shard_size, "container": container}
            durable.put_if_absent(root / layout.ROOT_RECORD, dump_record(record))
        return cls(root)

    # -- plan ---------------------------------------------------------------------------------------------------------

    @cached_property
    def shard_count(self) -> int:
        """How many shards the plan has (asked of the disk once; see `extend_plan`)."""
        shards = {int(p.stem) for p in (self.root / "plan").glob("*.jsonl") if p.stem.isdigit()}
        count = max(shards, default=-1) + 1
        # Asked for again by name: a listing may miss a file that another process adds while it is made.
        for shard in sorted(set(range(count)) - shards):
            if not (self.root / layout.plan(shard)).exists():
                raise DamageError(f"{self.root} lacks {layout.plan(shard)}; run 'kcache verify {self.root}'")
        return count

    def ids(self, shard: int) -> list[str]:
        """The ids of one shard's samples, in order."""
        return [str(line["id"]) for line in load_lines(self.root / layout.plan(shard))]

    def extend_plan(self, ids: Sequence[str], first: int | None = None) -> None:
        """Append new samples; known ids keep their places. Killed in the middle and called again, it ends the same.

        ``first`` is the number of their first shard, which whoever found them to be new counted: two processes that
        found the same then write the same. CacheError where another process planned other samples there.
        """
        first = self.shard_count if first is None else first
        for shard, start in enumerate(range(0, len(ids), self.shard_size), first):
            path, chunk = self.root / layout.plan(shard), list(ids[start : start + self.shard_size])
            if not durable.put_if_absent(path, dump_lines({"id": i} for i in chunk)) and self.ids(shard) != chunk:
                raise CacheError(
                    f"another process planned other samples into {path}; run the command again to go on from its plan"
                )
        self.__dict__.pop("shard_count", None)

    def row_key(self, shard: int, row: int) -> int:
        """The number of a sample in its shard's file: unique in the cache and never reused."""
        return shard * self.shard_size + row

    # -- columns ------------------------------------------------------------------------------------------------------

    def column_names(self) -> list[str]:
        """The feature columns whose record exists, sorted."""
        return sorted(p.stem for p in (self.root / "columns").glob("*.json") if layout.is_column_name(p.stem))

    def column(self, name: str) -> Column:
        """The record of one column; CacheError naming those that exist when ``name`` is not among them."""
        if name not in self.column_names():
            have = ", ".join(self.column_names()) or "none"
            raise CacheError(f"{self.root} has no column '{name}' (it has: {have}); add it with 'kcache encode'")
        return Column.from_record(load_record(self.root / layout.column(name)))

    def add_column(self, column: Column, null: tar.Row | None) -> Column:
        """Write a column's record and its null features unless they exist; returns the column as it stands on disk.

        CacheError when the column exists with another fingerprint.
        """
        if column.name in self.column_names():
            existing = self.column(column.name)
            if existing.fingerprint != column.fingerprint:
                raise CacheError(different_column(self.root, existing, column))
            return existing
        if null is not None:
            column = Column(**{**column.__dict__, "null": self._put_null(column, null)})
        if durable.put_if_absent(self.root / layout.column(column.name), dump_record(column.to_record())):
            return self.column(column.name)
        return self.add_column(column, None)  # Another process was first: its column must be this one.

    def _put_null(self, column: Column, null: tar.Row) -> Record:
        """Write null features; returns the reference to them for the column's record."""
        data, entries = _PACK[self.container]([null], column.fields, 0)
        index = dump_index(entries)
        # Named by their content: of two processes that race for a column, one wins with its own null features.
        file, index_file = (layout.null(column.name, _sha256(data), suffix) for suffix in (self.container, "idx"))
        durable.put_content(self.root / file, data)
        durable.put_content(self.root / index_file, index)
        return {"file": file, **_digests(data), "index": {"file": index_file, **_digests(index)}}

    # -- shards -------------------------------------------------------------------------------------------------------

    def commits(self, name: str) -> dict[int, int]:
        """The current generation of every committed shard of a column, by shard."""
        folder = self.root / layout.commits(name)
        current: dict[int, int] = {}
        for path in folder.iterdir() if folder.is_dir() else ():
            if parsed := layout.parse_commit(path.name):
                current[parsed[0]] = max(current.get(parsed[0], 0), parsed[1])
        return dict(sorted(current.items()))

    def commit(self, name: str, shard: int, generation: int) -> Commit:
        """One commit; DamageError where it is not whole or names a file outside the cache."""
        path = self.root / layout.commit(name, shard, generation)
        record = load_record(path)
        try:
            commit = Commit(**{**record, "keys": tuple(record["keys"])})
            named = (commit.column, commit.shard, commit.generation) == (name, shard, generation)
            files = [commit.file, *([commit.index["file"]] if commit.index else [])]
        except (KeyError, TypeError) as error:
            raise DamageError(f"{path} is not a commit that kcache wrote: {error}") from None
        if not named or not all(layout.is_inside(str(file)) for file in files) or len(commit.keys) != commit.rows:
            raise DamageError(f"{path} names another shard than its own; run 'kcache verify {self.root}'")
        return commit

    def commit_features(
        self, column: Column, shard: int, rows: Sequence[tar.Row | None], keys: Sequence[str | None]
    ) -> None:
        """Write one shard file of a feature column with its index, then the commit that makes it exist."""
        data, entries = _PACK[self.container](rows, column.fields, self.row_key(shard, 0))
        index = dump_index(entries)
        file = layout.shard(column.name, shard, _sha256(data), self.container)
        index_file = str(Path(file).with_suffix(".idx").as_posix())
        durable.put_content(self.root / file, data)
        durable.put_content(self.root / index_file, index)
        self._commit(column.name, shard, file, data, keys, {"file": index_file, **_digests(index)})

    def commit_samples(self, shard: int, rows: Sequence[Record], keys: Sequence[str | None]) -> None:
        """Write one shard of the samples column (captions, image sha256, size, or why it was set aside)."""
        data = dump_lines(rows)
        file = layout.shard(layout.SAMPLES, shard, _sha256(data), "jsonl")
        durable.put_content(self.root / file, data)
        self._commit(layout.SAMPLES, shard, file, data, keys, None)

    def samples(self, shard: int, generation: int = 1) -> list[dict[str, Any]]:
        """The samples column of one shard: ``id``, ``captions``, ``sha256``, ``width``, ``height`` or ``set_aside``."""
        commit = self.commit(layout.SAMPLES, shard, generation)
        rows = load_lines(self.root / commit.file)
        if len(rows) != commit.rows:
            raise DamageError(f"{commit.file} has {len(rows):,} rows, its commit says {commit.rows:,}")
        return rows

    def _commit(
        self, name: str, shard: int, file: str, data: bytes, keys: Sequence[str | None], index: Record | None
    ) -> None:
        commit = Commit(name, shard, 1, file, len(data), _sha256(data), len(keys), tuple(keys), index)
        durable.failpoint("commit")
        durable.put_if_absent(self.root / layout.commit(name, shard, 1), dump_record(commit.to_record()))


def refuse_foreign_folder(root: Path) -> None:
    """CacheError where ``root`` is a file, or a folder with other things than a cache in it."""
    for path in (root, *root.parents):
        if path.is_file():
            raise CacheError(f"{path} is a file; name a folder for the cache")
    # Listed before the record is looked for: another process may be making the cache, and makes the record first.
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    foreign = sorted(name for name in names if not name.startswith(durable.TEMPORARY))
    if foreign and not (root / layout.ROOT_RECORD).exists():
        raise CacheError(
            f"{root} is not empty and not a kcache cache (it has: {', '.join(foreign[:3])});"
            " name another folder for the cache"
        )


def different_column(root: Path, existing: Column, wanted: Column) -> str:
    """The sentence for a column that was encoded otherwise than is now asked, naming each difference."""
    differences = []
    for part in ("encoder", "preprocessing"):
        old, new = getattr(existing, part), getattr(wanted, part)
        differences += [
            f"{k} is {old.get(k)!r}, not {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
        ]
    if existing.encode_dtype != wanted.encode_dtype:
        differences.append(f"encode dtype is {existing.encode_dtype}, not {wanted.encode_dtype}")
    if existing.fields != wanted.fields:
        old_fields = [f"{f.name} {f.dtype} {list(f.shape)}" for f in existing.fields]
        differences.append(
            f"fields are {old_fields}, not {[f'{f.name} {f.dtype} {list(f.shape)}' for f in wanted.fields]}"
        )
    return (
        f"column '{existing.name}' of {root} was encoded otherwise ({'; '.join(differences)});"
        " encode with the same options, or into another cache folder"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digests(data: bytes) -> Record:
    return {"bytes": len(data), "sha256": _sha256(data)}
