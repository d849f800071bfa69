"""All columns of each sample joined in WebDataset tars, for programs that know nothing of kcache."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from . import durable, layout
from .cache import Cache
from .errors import CacheError
from .leases import reading
from .losses import require_nothing_lost
from .reader import ColumnReader, read_null
from .records import Record, digest, dump_record, load_record
from .snapshot import Snapshot
from .tar import npy

RECORD = "kcache-export.json"
"""In the folder of an export: which state of which cache it is of, so that another one is never mixed in."""


Described = Callable[[int, int], Record]
"""From shard and row to the metadata of a sample."""


@dataclass(frozen=True)
class Joined:
    """What was exported. ``left_out``: samples that have no features, as they were set aside or removed."""

    to: str
    samples: int
    left_out: int
    tars: int
    written: int
    nbytes: int


def export_joined(
    cache: Cache,
    to: Path,
    columns: Sequence[str] = (),
    shard_size: int | None = None,
    progress: Callable[[int], object] = lambda samples: None,
) -> Joined:
    """Write ``00000.tar`` and up: for each sample its features, captions and sizes. Empty ``columns``: all of them.

    Members are ``KEY.json``, ``KEY.txt`` (the first caption) and ``KEY.COLUMN.FIELD.npy``; equal caches make equal
    bytes. Killed and called again it goes on with the tars that are missing. CacheError when the cache is not finished,
    or the folder holds something else.
    """
    with reading(cache.root):
        return _export(cache, to, columns, shard_size, progress)


def _export(
    cache: Cache, to: Path, columns: Sequence[str], shard_size: int | None, progress: Callable[[int], object]
) -> Joined:
    require_nothing_lost(cache)
    names, size = list(columns) or cache.column_names(), shard_size or cache.shard_size
    if not names:
        raise CacheError(f"{cache.name} has no columns yet; finish it with 'kcache encode DATASET {cache.name}'")
    snapshot = Snapshot(cache, names)
    generations = cache.commits(layout.SAMPLES)
    state = digest([snapshot.digest, sorted(generations.items())])
    _begin(to, {"state": state, "columns": names, "shard_size": size, "samples": len(snapshot)})
    _write_nulls(cache, names, to)
    described, written, nbytes = _descriptions(cache, generations), 0, 0
    starts = range(0, len(snapshot), size)
    for number, start in enumerate(starts):
        path, rows = to / f"{number:05d}.tar", range(start, min(start + size, len(snapshot)))
        if not path.exists():
            written += durable.put_if_absent(path, _tar(snapshot, names, rows, described))
        nbytes += path.stat().st_size
        progress(len(rows))
    planned = sum(len(cache.planned_ids(shard)) for shard in range(cache.shard_count))
    return Joined(str(to), len(snapshot), planned - len(snapshot), len(starts), written, nbytes)


def _begin(to: Path, record: Record) -> None:
    """Make the folder that of this export. CacheError where it is not empty, or that of another."""
    if to.is_file():
        raise CacheError(f"{to} is a file; name a folder for the export")
    if not (to / RECORD).exists():
        names = [path.name for path in to.iterdir()] if to.is_dir() else []
        if foreign := sorted(name for name in names if not name.startswith(durable.TEMPORARY)):
            raise CacheError(f"{to} is not empty (it has: {', '.join(foreign[:3])}); name another folder")
        durable.put_if_absent(to / RECORD, dump_record(record))
    elif load_record(to / RECORD) != record:
        raise CacheError(
            f"{to} holds an export of another state of a cache, or with other columns or shards; remove it, or name"
            " another folder"
        )
    durable.clear_dead_temporaries(to)


def _write_nulls(cache: Cache, names: Sequence[str], to: Path) -> None:
    """``null/COLUMN.FIELD.npy``: what stands in for a dropped condition."""
    for column in (cache.column(name) for name in names):
        for field, array in (read_null(cache, column) if column.null else {}).items():
            durable.put_if_absent(to / "null" / f"{column.name}.{field}.npy", npy(array))


def _tar(snapshot: Snapshot, names: Sequence[str], positions: range, described: Described) -> bytes:
    buffer, readers = io.BytesIO(), {name: ColumnReader(snapshot, name) for name in names}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for position in positions:
            key, row = f"{position:09d}", described(*snapshot.place(position))
            _add(tar, f"{key}.json", (json.dumps({"key": key, **row}, ensure_ascii=False) + "\n").encode())
            _add(tar, f"{key}.txt", row["caption"].encode())
            for name, reader in readers.items():
                for field in reader.column.fields:
                    _add(tar, f"{key}.{name}.{field.name}.npy", npy(reader.read(position, field.name)))
    for reader in readers.values():
        reader.close()
    return buffer.getvalue()


def _descriptions(cache: Cache, generations: Mapping[int, int]) -> Described:
    """What the samples column says of the row of a shard, as other programs look for it."""
    rows_of = lru_cache(maxsize=1)(lambda shard: cache.samples(shard, generations[shard]))

    def described(shard: int, number: int) -> Record:
        row = rows_of(shard)[number]
        of_picture = {name: row[name] for name in ("width", "height", "sha256")}
        return {"id": row["id"], "caption": row["captions"][0], "captions": row["captions"], **of_picture}

    return described


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One member; owner, mode and time are fixed, so equal samples make equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
