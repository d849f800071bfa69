"""What earlier runs read, kept in ``index/`` by size and time of change so that a second run opens no picture."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcache.shards import DamageError, durable, layout
from kcache.shards.files import read_plain
from kcache.shards.records import sealed, unsealed

from .dataset import Dataset, Stat

_MAY_CHANGE_AGAIN = 2 * 10**9
"""Nanoseconds within which a file may change a second time without its time of change showing it."""

_MAX_BYTES = 8 * 2**30
"""A larger file is not believed: sixty million pictures are less."""

_SCANS_VERSION = 1
"""What a scan holds and means; another one is not believed."""


class Memory:
    """sha256 of the pictures of one dataset. Derived: deleting its file costs time and nothing else."""

    def __init__(self, dataset: Dataset, root: Path | None, rehash: bool = False) -> None:
        """Read what an earlier run left in the cache at ``root`` (None: there is none); ``rehash`` believes nothing."""
        self._dataset, self._started = dataset, time.time_ns()
        self._known = dict(_load(root)) if root and not rehash else {}
        self._seen: dict[str, tuple[Stat, str]] = {}

    def sha256(self, sample_id: str) -> str | None:
        """sha256 of an image now, or None when it cannot be read."""
        stat = self._dataset.stat(sample_id)
        known = self._known.get(sample_id)
        if stat is not None and known is not None and known[0] == stat:
            self._seen[sample_id] = known
            return known[1]
        try:
            sha256 = self._dataset.sha256(sample_id)
        except OSError:
            return None
        self.learn(sample_id, stat, sha256)
        return sha256

    def learn(self, sample_id: str, stat: Stat | None, sha256: str) -> None:
        """Note what an image hashed to; ``stat`` is from before its bytes were read."""
        if stat is not None and stat[1] < self._started - _MAY_CHANGE_AGAIN:
            self._seen[sample_id] = (stat, sha256)

    def store(self, root: Path) -> None:
        """Keep what was learned in the cache at ``root``, where the disk allows it."""
        if self._seen == self._known:
            return
        lines = (json.dumps([i, *stat, sha256], ensure_ascii=True) for i, (stat, sha256) in self._seen.items())
        try:
            durable.replace(_path(root), sealed("".join(f"{line}\n" for line in lines).encode()))
        except OSError:
            pass  # A read-only or full disk: the pictures are hashed again next time.


class Scans:
    """What sources learned by reading whole files (the members of a tar, the sha256 of a table's images).

    One file for each key, in ``index/scans/``. Derived: deleting the folder costs time and nothing else.
    """

    def __init__(self, root: Path | None, rehash: bool = False) -> None:
        """What an earlier run left in the cache at ``root`` (None: there is none); ``rehash`` believes nothing."""
        self._folder = _scans(root) if root and not rehash else None
        self._started = time.time_ns()
        self._asked: set[str] = set()
        self._learned: dict[str, bytes] = {}

    def get(self, key: str, stat: Stat | None) -> Any:
        """What `put` was given for this key while the file was as ``stat`` says, or None."""
        name = _name(key)
        self._asked.add(name)
        if self._folder is None or stat is None:
            return None
        try:
            record = json.loads(unsealed(read_plain(self._folder / name, _MAX_BYTES)))
            asked = {"version": _SCANS_VERSION, "key": key, "stat": list(stat)}
            return record["value"] if all(record[name] == asked[name] for name in asked) else None
        except (DamageError, OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def put(self, key: str, stat: Stat | None, value: Any) -> None:
        """Note what a file holds, as JSON; ``stat`` is from before it was read, None where there is no one file."""
        if stat is not None and stat[1] < self._started - _MAY_CHANGE_AGAIN:
            record = {"version": _SCANS_VERSION, "key": key, "stat": stat, "value": value}
            self._asked.add(_name(key))
            line = json.dumps(record, ensure_ascii=True, separators=(",", ":"))
            self._learned[_name(key)] = sealed(f"{line}\n".encode())

    def store(self, root: Path) -> None:
        """Keep what was learned in the cache at ``root``, where the disk allows it; drop what nobody asked for."""
        folder = _scans(root)
        try:
            for name, record in self._learned.items():
                durable.replace(folder / name, record)
            for path in folder.glob("*.json"):
                if path.name not in self._asked:
                    path.unlink(missing_ok=True)
        except OSError:
            pass  # A read-only or full disk: the files are read again next time.
        self._learned.clear()


def _scans(root: Path) -> Path:
    return root / layout.derived("scans")


def _name(key: str) -> str:
    return f"{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:32]}.json"


def _load(root: Path) -> Iterator[tuple[str, tuple[Stat, str]]]:
    try:
        for line in unsealed(read_plain(_path(root), _MAX_BYTES)).splitlines():
            sample_id, size, changed, sha256 = json.loads(line)
            yield str(sample_id), ((size, changed), str(sha256))
    except (DamageError, OSError, ValueError, TypeError, RecursionError):
        return


def _path(root: Path) -> Path:
    return root / layout.derived("pictures.jsonl")
