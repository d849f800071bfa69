"""Where everything in a cache lies: the one place that knows its file names."""

import re
from pathlib import PurePosixPath

FORMAT_VERSION = 1
"""Written in ``kcache.json``; a reader refuses every other version."""

CONTAINERS = ("tar", "h5")
"""The two kinds of shard file."""

ROOT_RECORD = "kcache.json"
SAMPLES = "samples"
"""The column of captions, image hashes and sizes; every other column holds features."""

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_COMMIT_NAME = re.compile(r"(\d{6,})\.(\d{6,})\.json")


def is_column_name(name: str) -> bool:
    """Whether ``name`` may name a column: it becomes a folder, so it is kept to letters, digits and dashes.

    Windows opens a device in place of a file that is called as one, whatever ending the name has.
    """
    return _COLUMN_NAME.fullmatch(name) is not None and name not in _DEVICES


def plan(shard: int) -> str:
    """The ids of one shard."""
    return f"plan/{shard:06d}.jsonl"


def column(name: str) -> str:
    """The record of one column."""
    return f"columns/{name}.json"


def null(name: str, sha256: str, suffix: str) -> str:
    """The null features of one column: a shard of one row, named by its content."""
    return f"columns/{name}.null-{sha256[:8]}.{suffix}"


def shard(name: str, shard: int, sha256: str, suffix: str) -> str:
    """A shard file, named by its content."""
    return f"{name}/{shard:06d}-{sha256[:8]}.{suffix}"


def commit(name: str, shard: int, generation: int) -> str:
    """The record that makes a shard file exist."""
    return f"{commits(name)}/{shard:06d}.{generation:06d}.json"


def commits(name: str) -> str:
    """The folder of one column's commits."""
    return f"commits/{name}"


def parse_commit(filename: str) -> tuple[int, int] | None:
    """``(shard, generation)`` of a commit's file name, or None for any other file."""
    match = _COMMIT_NAME.fullmatch(filename)
    return (int(match[1]), int(match[2])) if match else None


def derived(name: str) -> str:
    """A file in ``index/``: made from the commits, may be deleted at any time."""
    return f"index/{name}"


def is_inside(path: str) -> bool:
    """Whether a path read from a record stays inside the cache (no absolute path, no ``..``)."""
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path
