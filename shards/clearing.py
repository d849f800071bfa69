"""`kcache gc`: removes what no current commit names, in an order in which it may be killed at any step."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import durable, layout
from .cache import Cache
from .leases import clearing
from .leftovers import COMMITS, Leftover, Leftovers, find_leftovers

MIN_AGE = 3600.0
"""Seconds for which a file is left alone that no commit names: a writer without a lease may be about to name it."""


@dataclass
class Cleared:
    """What was removed, and what has another program open (on Windows only)."""

    files: int = 0
    bytes: int = 0
    held: int = 0


def clear(
    cache: Cache, shown: Leftovers, min_age: float = MIN_AGE, progress: Callable[[int], object] = lambda files: None
) -> Cleared:
    """Remove of ``shown`` what may still go now. Killed at any step the cache is what it was; a second run ends it.

    CacheError, with nothing removed, where the cache is written to or something that is current is damaged.
    """
    cleared, wanted = Cleared(), {leftover.path for leftover in shown.found}
    with clearing(cache.root):
        found = [leftover for leftover in find_leftovers(cache, min_age).found if leftover.path in wanted]
        # What names a file goes before the file, for good: no commit ever names one that is not there.
        names = [leftover for leftover in found if _is_record(leftover)]
        files = [leftover for leftover in found if not _is_record(leftover)]
        for group in (names, files):
            for leftover in group:
                if durable.remove(cache.root / leftover.path):
                    cleared.files += 1
                    cleared.bytes += leftover.bytes
                else:
                    cleared.held += 1
                progress(1)
            _settle(cache, group)
    return cleared


def _is_record(leftover: Leftover) -> bool:
    return leftover.kind == COMMITS or leftover.path.endswith(".json")


def _settle(cache: Cache, removed: Sequence[Leftover]) -> None:
    """Flush the folders that files were removed from, and remove those of replaced columns that are empty now."""
    for folder in sorted({os.path.dirname(leftover.path) for leftover in removed}):
        durable.sync_folder(cache.root / folder)
        stem = folder.removeprefix("commits/")
        if layout.parse_column(f"{stem}.json") and not any((cache.root / folder).iterdir()):
            (cache.root / folder).rmdir()
