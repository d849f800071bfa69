"""A cache on disk: create or open it, read and extend its plan, columns and commits."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from . import durable, hdf5, layout, tar
from .columns import Column, Field, differences
from .commits import Commit, commit_of, digests, sha256
from .errors import CacheError, DamageError, UsageError
from .files import read_committed, refuse_links
from .index import dump_index
from .local_cache import LocalCache
from .no_cache import not_a_cache
from .records import Record, dump_lines, dump_record, integer, load_lines, load_record, parse_lines, string
from .storage import Storage, open_storage

PACK = {"tar": tar.pack, "h5": hdf5.pack}
"""What makes the bytes of a shard file of each container, with its index."""

NO_ROOT_RECORD = (
    "nothing else says how the cache is laid out, so no command can bring it back; copy it from another cache of the"
    " same --shard-size and --format, such as a new one of a single picture"
)
"""What is to be done where ``kcache.json`` is lost."""

_PACKED_SIZE = {"tar": tar.packed_size, "h5": hdf5.packed_size}


class Cache:
    """The files of one cache. Holds no open file, so it may be shared, forked and pickled.

    Any number of processes may add to one cache: every file is written once, and of two that race for a name one wins.
    ``root`` is the local folder that is read, ``name`` what people call the cache: the folder, or the URL of a store.
    """

    def __init__(self, name: Path | str, local: LocalCache | None = None) -> None:
        """Open the cache in a folder, or at a URL, of which ``local`` keeps a copy.

        CacheError when there is none, or one of another format version.
        """
        self._open(open_storage(name, local))

    def _open(self, storage: Storage) -> None:
        storage.refresh()
        self.storage, self.root, self.name = storage, storage.root, storage.name
        if not (self.root / layout.ROOT_RECORD).is_file():
            if {layout.PLAN, layout.COMMITS} <= {*storage.names()}:
                raise DamageError(f"{self.name}/{layout.ROOT_RECORD} is missing: {NO_ROOT_RECORD}")
            raise CacheError(not_a_cache(self.name, self.root))
        refuse_links(self.root, self.root / layout.COMMITS, self.root / layout.derived(""))
        try:
            record = load_record(self.root / layout.ROOT_RECORD)
        except DamageError:
            raise DamageError(f"{self.name}/{layout.ROOT_RECORD} is damaged: {NO_ROOT_RECORD}") from None
        _refuse_other_version(self.name, record.get("format_version"))
        try:
            self.shard_size = integer(record, "shard_size", least=1, most=layout.MAX_SHARD_SIZE)
            self.container = string(record, "container")
        except (KeyError, ValueError) as error:
            raise DamageError(f"{self.root / layout.ROOT_RECORD} is not one that kcache wrote: {error}") from None
        if self.container not in layout.CONTAINERS:
            raise CacheError(f"{self.root / layout.ROOT_RECORD} names a container that kcache never writes")

    @classmethod
    def create(cls, name: Path | str, *, shard_size: int, container: str, local: LocalCache | None = None) -> "Cache":
        """Open the cache in a folder or at a URL, made now if there is nothing.

        A place with other things in it is refused: a cache never mixes with a user's files. CacheError where a store
        cannot be written to by several at once.
        """
        storage = open_storage(name, local)
        storage.refresh()
        refuse_foreign_folder(storage)
        if shard_size > layout.MAX_SHARD_SIZE:
            raise UsageError(f"a shard has {layout.MAX_SHARD_SIZE:,} samples at most, not {shard_size:,}")
        if not (storage.root / layout.ROOT_RECORD).exists():
            record = {"format_version": layout.FORMAT_VERSION, "shard_size": shard_size, "container": container}
            storage.put_if_absent(layout.ROOT_RECORD, dump_record(record))
        storage.require_put_if_absent(layout.ROOT_RECORD)
        return cls._of(storage)

    def in_a_folder(self, command: str) -> str:
        """How a command that needs a folder is run for a cache in a store."""
        there, back = (
            f"copy it with 'aws s3 sync {self.name} COPY'",
            f"'aws s3 sync COPY {self.name} --exclude \"index/*\"'",
        )
        if not self.name.startswith("s3://"):
            there, back = "copy it into a folder", "copy that back, without index/"
        return f"{there}, run '{command}' with the copy, and {back} (docs/stores.md)"

    @property
    def how_to_repair(self) -> str:
        """What brings back what is damaged, wherever the cache lies."""
        if self.storage.is_local:
            return f"run 'kcache verify {self.name} --repair --dataset DATASET'"
        return self.in_a_folder("kcache verify --repair --dataset DATASET")

    def require_local(self, what: str) -> None:
        """UsageError for a cache in a store, where ``what``, a command, cannot work."""
        if not self.storage.is_local:
            raise UsageError(f"{what} works in local folders and {self.name} is in a store: {self.in_a_folder(what)}")

    def reopened(self) -> "Cache":
        """The same cache as it is now: what this object remembers of the plan may be old."""
        return Cache._of(self.storage)

    @classmethod
    def _of(cls, storage: Storage) -> "Cache":
        cache = cls.__new__(cls)
        cache._open(storage)
        return cache

    # -- plan ---------------------------------------------------------------------------------------------------------

    @cached_property
    def shard_count(self) -> int:
        """How many shards the plan has (asked of the disk once; see `extend_plan`)."""
        shards = self.planned_shards()
        count = max(shards, default=-1) + 1
        # Asked for again by name: a listing may miss a file that another process adds while it is made.
        for shard in range(count) if len(shards) < count else ():
            if shard not in shards and not (self.root / layout.plan(shard)).exists():
                raise DamageError(f"{self.name} lacks {layout.plan(shard)}; run 'kcache verify {self.name}'")
        return count

    def planned_shards(self) -> set[int]:
        """The shards that have a plan; where it has no holes, those below `shard_count`."""
        numbers = (layout.parse_number(name) for name in _listed(self.root / layout.PLAN))
        return {number for number in numbers if number is not None}

    def planned_ids(self, shard: int) -> list[str]:
        """The ids that one shard's samples had when they were added, in order."""
        path = self.root / layout.plan(shard)
        try:
            return [string(line, "id") for line in load_lines(path, shard=shard)]
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{path} is not a plan that kcache wrote: {error}") from None

    def ids(self, shard: int) -> list[str]:
        """The ids of one shard's samples, in order: what the samples column calls them since a picture was renamed."""
        generation = self.commits(layout.SAMPLES).get(shard)
        return [row["id"] for row in self.samples(shard, generation)] if generation else self.planned_ids(shard)

    def extend_plan(self, ids: Sequence[str], first: int | None = None) -> None:
        """Append new samples; known ids keep their places. Killed in the middle and called again, it ends the same.

        ``first`` is the number of their first shard, which whoever found them to be new counted: two processes that
        found the same then write the same. CacheError where another process planned other samples there.
        """
        first = self.shard_count if first is None else first
        for shard, start in enumerate(range(0, len(ids), self.shard_size), first):
            path, chunk = self.root / layout.plan(shard), list(ids[start : start + self.shard_size])
            if (
                not self.storage.put_if_absent(layout.plan(shard), dump_lines([{"id": i} for i in chunk], shard=shard))
                and self.planned_ids(shard) != chunk
            ):
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
        return sorted(self.editions())

    def editions(self) -> dict[str, int]:
        """The latest edition of every feature column."""
        editions: dict[str, int] = {}
        for file in _listed(self.root / layout.COLUMNS):
            if parsed := layout.parse_column(file):
                editions[parsed[0]] = max(editions.get(parsed[0], 0), parsed[1])
        return editions

    def stem(self, name: str) -> str:
        """What the files of a column's latest edition are named after."""
        return layout.stem(name, self.editions().get(name, 1))

    def column(self, name: str) -> Column:
        """The record of one column; CacheError naming those that exist when ``name`` is not among them."""
        begun = self.begun_editions().get(name, 0)  # before the records: another process may be making one
        editions = self.editions()
        if begun > editions.get(name, 0):
            lost = self.root / layout.column(layout.stem(name, begun))
            raise DamageError(f"{lost} is missing, though shards of it were committed; run 'kcache verify {self.name}'")
        if name not in editions:
            have = ", ".join(sorted(editions)) or "none"
            raise CacheError(f"{self.name} has no column '{name}' (it has: {have}); add it with 'kcache encode'")
        path = self.root / layout.column(layout.stem(name, editions[name]))
        column = Column.from_record(load_record(path))
        if (column.name, column.edition) != (name, editions[name]):
            raise DamageError(f"{path} is the record of another column; run 'kcache verify {self.name}'")
        return column

    def begun_editions(self) -> dict[str, int]:
        """The highest edition of every column that has a folder of commits; its record was written before."""
        begun: dict[str, int] = {}
        for name, edition in filter(None, map(layout.parse_stem, self.begun_stems())):
            begun[name] = max(begun.get(name, 0), edition)
        return begun

    def begun_stems(self) -> list[str]:
        """What the folders of commits are called: one for each edition of a column that was begun."""
        return sorted(name for name in _listed(self.root / layout.COMMITS) if layout.parse_stem(name))

    def add_column(self, column: Column, null: tar.Row | None) -> Column:
        """Write a column's record and its null features unless they exist; returns the column as it stands on disk.

        CacheError when the column exists with another fingerprint.
        """
        if column.name in self.column_names():
            existing = self.column(column.name)
            if existing.fingerprint != column.fingerprint:
                raise CacheError(different_column(self.name, existing, column))
            return existing
        return self._put_column(column, null)

    def replace_column(self, column: Column, null: tar.Row | None) -> Column:
        """Begin a new edition of a column, made by another encoder; it has no shards yet.

        The edition before it keeps its files, for those who read them; nobody finds it by name any more.
        """
        existing = self.column(column.name)
        if existing.fingerprint == column.fingerprint:
            return existing
        return self._put_column(replace(column, edition=existing.edition + 1), null)

    def restore_column(self, column: Column, null: tar.Row | None) -> None:
        """Write a column's damaged record anew, or that of its null features; its edition is ``column.edition``."""
        if null is not None:
            column = replace(column, null=self._put_null(column, null))
        self.storage.replace(layout.column(column.stem), dump_record(column.to_record()))

    def _put_column(self, column: Column, null: tar.Row | None) -> Column:
        if null is not None:
            column = replace(column, null=self._put_null(column, null))
        if self.storage.put_if_absent(layout.column(column.stem), dump_record(column.to_record())):
            return self.column(column.name)
        return self.add_column(column, None)  # Another process was first: its column must be this one.

    def _put_null(self, column: Column, null: tar.Row) -> Record:
        """Write null features; returns the reference to them for the column's record."""
        data, entries = PACK[self.container]([null], column.fields, 0)
        index = dump_index(entries)
        # Named by their content: of two processes that race for a column, one wins with its own null features.
        file, index_file = (layout.null(column.stem, sha256(data), suffix) for suffix in (self.container, "idx"))
        self.storage.put_content(file, data)
        self.storage.put_content(index_file, index)
        return {"file": file, **digests(data), "index": {"file": index_file, **digests(index)}}

    # -- shards -------------------------------------------------------------------------------------------------------

    def commits(self, name: str) -> dict[int, int]:
        """The current generation of every committed shard of a column, by shard."""
        return self.commits_of(self.stem(name))

    def commits_of(self, stem: str) -> dict[int, int]:
        """What `commits` says, of one edition of a column by what its files are named after."""
        return dict(sorted(layout.parse_commits(_listed(self.root / layout.commits(stem)))))

    def commit_path(self, name: str, shard: int, generation: int) -> Path:
        """Where one commit of a column's latest edition lies."""
        return self.root / layout.commit(self.stem(name), shard, generation)

    def commit(self, name: str, shard: int, generation: int) -> Commit:
        """One commit; DamageError where it is not whole or names a file outside the cache."""
        path = self.commit_path(name, shard, generation)
        commit = Commit.load(path)
        named = (commit.column, commit.shard, commit.generation, commit.file.split("/")[0])
        if named != (name, shard, generation, path.parent.name):
            raise DamageError(f"{path} names another shard than its own; run 'kcache verify {self.name}'")
        return commit

    def require_file(self, commit: Commit) -> None:
        """DamageError where the file of a commit is not there or has another size than was committed."""
        size = self.storage.size(commit.file)
        if size != commit.bytes:
            has = "is missing" if size is None else f"has {size:,} of {commit.bytes:,} bytes"
            path = self.root / commit.file if self.storage.is_local else f"{self.name}/{commit.file}"
            raise DamageError(f"{path} {has}; copy it again, or have its rows encoded again: {self.how_to_repair}")

    def bring_samples(self) -> None:
        """Have the samples of all shards at hand: from a store many at once come faster than one after another."""
        if not self.storage.is_local:
            commits = [self.commit(layout.SAMPLES, *commit) for commit in self.commits(layout.SAMPLES).items()]
            self.storage.bring([commit.reference for commit in commits])

    def read_committed(self, reference: Mapping[str, Any]) -> bytes:
        """The bytes of a file that a record names with its size and sha256. DamageError where they are others."""
        self.storage.bring([reference])
        try:
            return read_committed(self.root, reference)
        except DamageError:
            if self.storage.is_local:
                raise
            (self.root / str(reference["file"])).unlink(missing_ok=True)  # the copy; the store may have it whole
            self.storage.bring([reference])
            return read_committed(self.root, reference)

    def commit_features(
        self,
        column: Column,
        shard: int,
        rows: Sequence[tar.Row | None],
        keys: Sequence[str | None],
        generation: int = 1,
    ) -> None:
        """Write one shard file of a feature column with its index, then the commit that makes it exist.

        ``generation`` is one more than that of the commit which it takes the place of. CacheError where another process
        committed other rows meanwhile.
        """
        data, entries = PACK[self.container](rows, column.fields, self.row_key(shard, 0))
        index = dump_index(entries)
        file = layout.shard(column.stem, shard, sha256(data), self.container)
        index_file = str(Path(file).with_suffix(".idx").as_posix())
        self.storage.put_content(file, data)
        self.storage.put_content(index_file, index)
        reference = {"file": index_file, **digests(index)}
        self._commit(commit_of(column.name, shard, generation, file, data, keys, reference), column.stem)

    def commit_samples(
        self, shard: int, rows: Sequence[Record], keys: Sequence[str | None], generation: int = 1
    ) -> None:
        """Write one shard of the samples column: a row has ``id``, ``captions``, ``sha256`` and what `samples` says."""
        data = dump_lines(rows)
        file = layout.shard(layout.SAMPLES, shard, sha256(data), "jsonl")
        self.storage.put_content(file, data)
        self._commit(commit_of(layout.SAMPLES, shard, generation, file, data, keys), layout.SAMPLES)

    def samples(self, shard: int, generation: int | None = None) -> list[dict[str, Any]]:
        """The samples column of one shard, as it is now or was at a generation.

        A row has ``id``, ``captions`` and ``sha256``; ``width`` and ``height``, or the reason it was ``set_aside``;
        ``removed`` once it was pruned.
        """
        if generation is None:
            generation = self.commits(layout.SAMPLES).get(shard, 1)
        return self.rows_of(self.commit(layout.SAMPLES, shard, generation))

    def rows_of(self, commit: Commit) -> list[dict[str, Any]]:
        """The rows of the samples column that one of its commits names."""
        path = self.root / commit.file
        rows = parse_lines(self.read_committed(commit.reference), path)
        if len(rows) != commit.rows:
            raise DamageError(f"{path} has {len(rows):,} rows, its commit says {commit.rows:,}")
        try:
            for row in rows:
                _check_row(row)
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{path} has a row that kcache never writes: {error}") from None
        return rows

    def _commit(self, commit: Commit, stem: str) -> None:
        durable.failpoint("commit")
        file = layout.commit(stem, commit.shard, commit.generation)
        made = self.storage.put_if_absent(file, dump_record(commit.to_record()))
        # Where another process was first it encoded the same rows, or the dataset was edited between the two.
        if not made and tuple(load_record(self.root / file)["keys"]) != commit.keys:
            raise CacheError(
                f"another process committed other rows as {self.name}/{file}; run the command again to go on from there"
            )


def _listed(folder: Path) -> list[str]:
    """The names in a folder of the cache, none where it is not there."""
    return os.listdir(folder) if folder.is_dir() else []


def _check_row(row: Record) -> None:
    """ValueError where a row of the samples column has other kinds of values than it should."""
    captions = row["captions"]
    if type(captions) is not list or not all(type(caption) is str for caption in captions):
        raise ValueError("its captions are no texts")
    string(row, "id")
    for name in ("sha256", "set_aside"):
        if row.get(name) is not None:
            string(row, name)
    for name in ("width", "height"):
        if name in row:
            integer(row, name, least=1)


def _refuse_other_version(root: str, version: object) -> None:
    if type(version) is int and version > layout.FORMAT_VERSION:
        raise CacheError(
            f"{root} has cache format {version} and this kcache reads format {layout.FORMAT_VERSION}; a newer kcache"
            " made it: install that, or encode into another folder"
        )
    if type(version) is not int or version < layout.FORMAT_VERSION:
        raise CacheError(
            f"{root} has cache format {version!r:.40}, which no kcache has written; encode into another folder"
        )


def packed_size(container: str, rows: Sequence[Sequence[int]], fields: Sequence[Field]) -> int:
    """Bytes of a shard file of ``container``, by the bytes of every field of every row."""
    return _PACKED_SIZE[container](rows, fields)


def refuse_foreign_folder(storage: Storage) -> None:
    """CacheError where a cache's place is a file, or a folder with other things than a cache in it."""
    root = storage.root
    for path in (root, *root.parents):
        if path.is_file():
            raise CacheError(f"{path} is a file; name a folder for the cache")
    # Listed before the record is looked for: another process may be making the cache, and makes the record first.
    foreign = storage.names()
    if foreign and not storage.has(layout.ROOT_RECORD):
        if {layout.PLAN, layout.COMMITS} <= {*foreign}:
            raise DamageError(f"{storage.name}/{layout.ROOT_RECORD} is missing: {NO_ROOT_RECORD}")
        raise CacheError(
            f"{storage.name} is not empty and not a kcache cache (it has: {', '.join(foreign[:3])});"
            " name another folder for the cache"
        )


def different_column(root: str, existing: Column, wanted: Column) -> str:
    """The sentence for a column that was encoded otherwise than is now asked, naming each difference."""
    return (
        f"column '{existing.name}' of {root} was encoded otherwise ({'; '.join(differences(existing, wanted))});"
        f" encode with the same options, or make the column anew with --replace-column {existing.name}"
    )
