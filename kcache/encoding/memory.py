"""sha256 of pictures by size and time of change, kept in ``index/`` so that a second run opens no picture."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from kcache.shards import durable, layout

from .dataset import Dataset, Stat


class Memory:
    """What is known of the pictures of one dataset. Derived: deleting its file costs time and nothing else."""

    def __init__(self, dataset: Dataset, root: Path | None, *, rehash: bool = False) -> None:
        """Read what an earlier run left in the cache at ``root`` (None: not made yet)."""
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
        # A file that changed within the last two seconds may change again without its time showing it.
        if stat is not None and stat[1] < self._started - 2 * 10**9:
            self._seen[sample_id] = (stat, sha256)

    def store(self, root: Path) -> None:
        """Keep what was learned in the cache at ``root``, where the disk allows it."""
        if self._seen == self._known:
            return
        lines = (json.dumps([i, *stat, sha256], ensure_ascii=True) for i, (stat, sha256) in self._seen.items())
        try:
            durable.replace(_path(root), "".join(f"{line}\n" for line in lines).encode())
        except OSError:
            pass  # A read-only or full disk: the pictures are hashed again next time.


def _load(root: Path) -> Iterator[tuple[str, tuple[Stat, str]]]:
    try:
        for line in _path(root).read_text().splitlines():
            sample_id, size, changed, sha256 = json.loads(line)
            yield sample_id, ((size, changed), sha256)
    except (OSError, ValueError, TypeError):
        return


def _path(root: Path) -> Path:
    return root / layout.derived("pictures.jsonl")


class Scans:
    def __init__(self, root: Path | None, *, rehash: bool = False) -> None: ...
    def store(self, root: Path) -> None: ...
