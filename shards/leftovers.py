"""What no current commit names: found file by file, each with its kind, and what of it must stay for now."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import durable, layout
from .cache import Cache
from .columns import Column
from .commits import Commit
from .dataset_options import dataset_records
from .errors import CacheError
from .leases import READER, Lease, Pins, leases
from .losses import require_nothing_lost

COMMITS, SHARDS, SAMPLES, EDITIONS, NULLS, OPTIONS, TEMPORARY, DERIVED = KINDS = (
    "older commits",
    "older shards",
    "older samples",
    "replaced columns",
    "older null features",
    "older dataset options",
    "temp files",
    "stale index",
)
"""The kinds of leftovers, as people read them."""

_SHARD_FILE = re.compile(r"(\d{6,})-[0-9a-f]{8}\.(?:tar|h5|idx|jsonl)")
_NULL_FILE = re.compile(r"(.+)\.null-[0-9a-f]{8}\.(?:tar|h5|idx)")
_KEPT = re.compile(rf"{layout.INDEX}/(?:pictures\.jsonl|scans/[^/]+\.json)|{layout.LEASES}/(?:reader|writer|gc)-[^/]+")
"""What is neither the cache's content nor a leftover: what encoding remembers, and leases."""


@dataclass(frozen=True)
class Leftover:
    """A file that no current commit names. ``path`` is relative to the cache."""

    path: str
    kind: str
    bytes: int


@dataclass
class Leftovers:
    """All files of a cache that no current commit names."""

    found: list[Leftover] = field(default_factory=list)
    """What may go now."""
    young: list[Leftover] = field(default_factory=list)
    """What is too young, or has been current until a moment ago: somebody without a lease may be at it."""
    in_use: list[Leftover] = field(default_factory=list)
    """What a reader pinned, and temp files that are being written."""
    unfinished: list[Leftover] = field(default_factory=list)
    """Files of shards that their column has no commit of: left by a kill, or all that is left of a lost commit."""
    unknown: list[str] = field(default_factory=list)
    """Files that kcache did not make."""
    readers: list[Lease] = field(default_factory=list)


def find_leftovers(cache: Cache, min_age: float) -> Leftovers:
    """Look at every file of a cache; those that changed, or ceased to be current, ``min_age`` seconds ago may go.

    CacheError where something that is current is damaged or lost: what is older may be all that is left of it.
    """
    readers = [lease for lease in leases(cache.root) if lease.kind == READER and lease.is_alive]
    # After the leases: a reader that is not among them yet will pin what is current, and that stays.
    cache.require_local("kcache gc")
    require_nothing_lost(cache)
    current = _Current(Cache(cache.root))
    pinned = _pinned_files(cache, [lease.pins for lease in readers])
    result, now = Leftovers(readers=readers), time.time()
    for path in sorted(_files(cache.root)):
        if path in current.files or _KEPT.fullmatch(path):
            continue
        try:
            leftover = current.leftover(path)
            if leftover is None:
                result.unknown.append(path)
            elif _is_in_use(cache.root / path, leftover, pinned):
                result.in_use.append(leftover)
            elif current.may_be_the_last(leftover):
                result.unfinished.append(leftover)
            else:
                (result.young if now - current.since(path) < min_age else result.found).append(leftover)
        except FileNotFoundError:
            continue  # a temp file that its process gave up meanwhile
    return result


class _Current:
    """The files that current records name, and what every other file is."""

    def __init__(self, cache: Cache) -> None:
        self.root = cache.root
        self.options = max(dataset_records(cache), default=0)
        self.shards = cache.shard_count
        self.files = {
            layout.ROOT_RECORD,
            layout.CARD,
            *map(layout.plan, range(self.shards)),
            layout.dataset(self.options),
        }
        self.editions = {layout.SAMPLES: 1}
        self.changed: dict[str, float] = {}
        """When the current commit of a shard, or the record of a column's edition, was written; by what it is of."""
        for name in cache.column_names():
            self._add_record(cache.column(name))
        for name in self.editions:
            self._add_commits(cache, name)

    def _add_record(self, column: Column) -> None:
        self.editions[column.name] = column.edition
        self.files.add(layout.column(column.stem))
        self.files.update([column.null["file"], column.null["index"]["file"]] if column.null else [])
        self.files.update(layout.derived(f"{column.name}{suffix}") for suffix in (".json", ".idx"))
        self.changed[column.name] = (self.root / layout.column(column.stem)).stat().st_mtime

    def _add_commits(self, cache: Cache, name: str) -> None:
        for shard, generation in cache.commits(name).items():
            commit, path = cache.commit(name, shard, generation), cache.commit_path(name, shard, generation)
            cache.require_file(commit)
            self.files.update([path.relative_to(self.root).as_posix(), *commit.files])
            self.changed[f"{cache.stem(name)}/{shard:06d}"] = path.stat().st_mtime

    def leftover(self, path: str) -> Leftover | None:
        """A file that is not among ``files``; None for one that kcache never made."""
        kind = self._kind(path)
        return Leftover(path, kind, (self.root / path).lstat().st_size) if kind else None

    def may_be_the_last(self, leftover: Leftover) -> bool:
        """Whether a file is of a shard of the plan that its column has no commit of."""
        if leftover.kind not in (SHARDS, SAMPLES):
            return False
        stem, _, name = leftover.path.partition("/")
        shard = name.split("-")[0]
        return int(shard) < self.shards and f"{stem}/{shard}" not in self.changed

    def since(self, path: str) -> float:
        """Since when a leftover has been one, at least."""
        folder, _, name = path.removeprefix("commits/").rpartition("/")
        stem, shard = (name, "") if folder == layout.COLUMNS else (folder, re.split(r"[-.]", name)[0])
        successor = self.changed.get(f"{stem}/{shard}") or self.changed.get(stem.split(".")[0], 0.0)
        return max((self.root / path).lstat().st_mtime, successor)

    def _kind(self, path: str) -> str | None:
        folder, _, name = path.rpartition("/")
        suffix = Path(name).suffix
        if name.startswith(durable.TEMPORARY):
            return TEMPORARY
        if folder == layout.INDEX:
            return DERIVED if layout.is_column_name(Path(name).stem) and suffix in (".json", ".idx") else None
        if folder == layout.DATASET:
            number = layout.parse_number(name)
            return OPTIONS if number is not None and number < self.options else None
        if folder == layout.COLUMNS:
            return self._kind_of_record(name)
        stem = folder.removeprefix("commits/")
        is_commit = folder != stem
        edition = self._edition(stem) if (layout.parse_commit if is_commit else _SHARD_FILE.fullmatch)(name) else None
        if edition is None:
            return None
        if edition < self.editions[stem.split(".")[0]]:
            return EDITIONS
        return COMMITS if is_commit else SAMPLES if stem == layout.SAMPLES else SHARDS

    def _kind_of_record(self, name: str) -> str | None:
        if null := _NULL_FILE.fullmatch(name):
            return NULLS if self._edition(null[1]) else None
        return EDITIONS if name.endswith(".json") and self._edition(name[:-5]) else None

    def _edition(self, stem: str) -> int | None:
        """Which edition of a column has its files named so; None where the cache has no such column or edition."""
        name, edition = layout.parse_column(f"{stem}.json") or ("", 0)
        is_known = edition <= self.editions.get(name, 0) and layout.stem(name, edition) == stem
        return edition if is_known else None


def _pinned_files(cache: Cache, pinned: Sequence[Pins | None]) -> set[str] | None:
    """The files that readers said they read; None: any, for one of them has not said it yet."""
    files: set[str] = set()
    for pins in pinned:
        if pins is None:
            return None
        for stem, commits in pins.items():
            files.add(f"{layout.COLUMNS}/{stem}.")
            for shard, generation in commits:
                path = layout.commit(stem, shard, generation)
                if path not in files and (cache.root / path).exists():
                    files.update([path, *_named_by(cache.root, path, stem, shard)])
    return files


def _named_by(root: Path, commit: str, stem: str, shard: int) -> Sequence[str]:
    """The files of a commit; of one that is damaged, and was replaced by a repair, all that it may have named."""
    try:
        return Commit.load(root / commit).files
    except CacheError:
        return [path.relative_to(root).as_posix() for path in (root / stem).glob(f"{shard:06d}-*")]


def _is_in_use(path: Path, leftover: Leftover, pinned: set[str] | None) -> bool:
    if leftover.kind == TEMPORARY:
        return durable.is_under_way(path)
    if leftover.kind == DERIVED:
        return False
    record = leftover.path.partition(".null-")[0].removesuffix(".json") + "."
    return pinned is None or leftover.path in pinned or record in pinned


def _files(root: Path) -> Iterator[str]:
    """Every file and link below a folder, relative to it. Links are not followed."""
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name).relative_to(root).as_posix() for name in (*names, *links))
