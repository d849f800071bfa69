"""Metadata of a damaged cache written again from what is whole: the samples' commits, the plan, and what is derived."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from . import durable, layout
from .cache import Cache
from .commits import Commit, commit_of, samples_key, sha256
from .dataset_options import dataset_options, dataset_records
from .errors import CacheError
from .files import read_plain
from .records import dump_lines, dump_record, load_lines
from .salvage import LOST, Salvage, older_commits, whole_samples
from .snapshot import stale_rows


def feature_columns(cache: Cache) -> dict[str, int]:
    """The latest edition of every column that has a record or commits: a lost record must not hide its column."""
    editions = cache.begun_editions()
    for path in (cache.root / layout.COLUMNS).glob("*.json"):
        if parsed := layout.parse_column(path.name):
            editions[parsed[0]] = max(parsed[1], editions.get(parsed[0], 0))
    return {name: edition for name, edition in sorted(editions.items()) if name != layout.SAMPLES}


def mend_samples(cache: Cache, shard: int, generation: int, lost: Salvage) -> str | None:
    """Bring the samples of a shard back, or note in ``lost`` what is left of them; returns what was written again."""
    try:
        commit = cache.commit(layout.SAMPLES, shard, generation)
    except CacheError:
        if rebuilt := samples_commit(cache, shard, generation):
            return write_commit(cache, rebuilt)
    else:
        if whole_samples(cache, commit):
            return None
    for older in older_commits(cache, layout.SAMPLES, shard, generation):
        if whole_samples(cache, older):
            left = replace(older, generation=generation, keys=(LOST,) * older.rows)
            lost.commits[layout.SAMPLES, shard] = left
            return None
    lost.forgotten.append(shard)
    return None


def samples_commit(cache: Cache, shard: int, generation: int) -> Commit | None:
    """The commit of the one samples file that no other commit names.

    The keys of rows that were set aside are unknown: the next encode tries these again. None where there are several
    such files, of which a killed encode may have left one, or none.
    """
    found = []
    for path, data in unnamed_files(cache, layout.SAMPLES, shard, generation, "jsonl"):
        try:
            keys = [None if "set_aside" in row else samples_key(row, None) for row in load_lines(path)]
        except (CacheError, KeyError, TypeError):
            continue
        file = path.relative_to(cache.root).as_posix()
        found.append(commit_of(layout.SAMPLES, shard, generation, file, data, keys))
    return found[0] if len(found) == 1 else None


def lost_samples_commit(cache: Cache, shard: int, generation: int) -> Commit | None:
    """As `samples_commit`, of a shard that has no commit of samples any more, but features of ``generation``.

    It gets a generation above 1 where features lag behind it: only then does a reader look for such rows.
    """
    commit = samples_commit(cache, shard, generation)
    if commit is None or generation > 1 or not _lags_behind(cache, commit):
        return commit
    return replace(commit, generation=2)


def _lags_behind(cache: Cache, commit: Commit) -> bool:
    """Whether any features of a shard are of other samples than ``commit`` has."""
    for name in feature_columns(cache):
        try:
            column, rows = cache.column(name), cache.rows_of(commit)
            features = cache.commit(name, commit.shard, cache.commits(name)[commit.shard])
            if stale_rows(column, features, rows):
                return True
        except (CacheError, KeyError):
            continue  # it has none of this shard, or cannot be read before it is mended
    return False


def mend_plan(cache: Cache) -> Iterator[str]:
    """Plans from the ids of the samples; one of which nothing was encoded is planned anew by the next encode."""
    generations = cache.commits(layout.SAMPLES)
    planned = (layout.parse_number(path.name) for path in (cache.root / layout.PLAN).glob("*"))
    numbers = [number for number in planned if number is not None]
    for shard in reversed(range(max([*numbers, *generations], default=-1) + 1)):
        path = cache.root / layout.plan(shard)
        try:
            cache.planned_ids(shard)
            continue
        except CacheError:
            ids = _first_ids(cache, shard, generations.get(shard, 0))
        if ids:
            durable.replace(path, dump_lines([{"id": name} for name in ids], shard=shard))
            yield f"{layout.plan(shard)}: written again from the samples"
        elif shard not in generations and not (cache.root / layout.plan(shard + 1)).exists():
            durable.remove(path)
            yield f"{layout.plan(shard)}: removed, nothing of it was encoded; 'kcache encode' plans its samples anew"


def _first_ids(cache: Cache, shard: int, generation: int) -> list[str] | None:
    """The ids in the first generation of a shard's samples that can be read: those under which they were planned."""
    for commit in reversed(older_commits(cache, layout.SAMPLES, shard, generation + 1)):
        if whole_samples(cache, commit):
            return [str(row["id"]) for row in cache.rows_of(commit)]
    return None


def drop_options(cache: Cache) -> Iterator[str]:
    """Remove damaged records of how the dataset is read; says what is to be said again."""
    for number in dataset_records(cache):
        try:
            dataset_options(cache, number)
        except CacheError:
            durable.remove(cache.root / layout.dataset(number))
            said = "removed; say to 'kcache encode' how the dataset is read (--where, --caption-column, ...)"
            yield f"{layout.dataset(number)}: {said}"


def drop_derived(cache: Cache) -> None:
    """Whether they are damaged or old cannot be told; they are made again when the column is opened next."""
    for name in feature_columns(cache):
        for suffix in ("json", "idx"):
            durable.remove(cache.root / layout.derived(f"{name}.{suffix}"))


def write_commit(cache: Cache, commit: Commit) -> str:
    """Write a damaged commit again; returns a sentence that says so."""
    path = cache.commit_path(commit.column, commit.shard, commit.generation)
    durable.replace(path, dump_record(commit.to_record()))
    return f"{path.relative_to(cache.root).as_posix()}: written again from {commit.file}"


def unnamed_files(cache: Cache, stem: str, shard: int, generation: int, suffix: str) -> Iterator[tuple[Path, bytes]]:
    """The whole files of a shard that no commit of an older generation names, with their bytes."""
    name = stem.split(".")[0]
    named = {commit.file for commit in older_commits(cache, name, shard, generation)}
    for path in sorted((cache.root / stem).glob(f"{shard:06d}-*.{suffix}")):
        try:
            data = read_plain(path, path.lstat().st_size)
        except CacheError:
            continue  # a link, a pipe or a bad sector
        is_whole = path.stem == f"{shard:06d}-{sha256(data)[:8]}"
        if is_whole and path.relative_to(cache.root).as_posix() not in named:
            yield path, data
