"""Where everything in a cache lies: the one place that knows its file names."""

import re
from collections.abc import Iterable

FORMAT_VERSION = 1
"""Written in ``kcache.json``; a reader refuses every other version."""

CONTAINERS = ("tar", "h5")
"""The two kinds of shard file."""

ROOT_RECORD = "kcache.json"
CARD = "README.md"
"""For people and for the hub; no record names it and no reader needs it."""

PLAN = "plan"
COMMITS = "commits"
COLUMNS = "columns"
DATASET = "dataset"
"""How the dataset is read, one record for each time that this was another."""

INDEX = "index"
"""Everything that is not the cache's content: what is derived from the commits, and leases."""
LEASES = f"{INDEX}/leases"

SAMPLES = "samples"
"""The column of captions, image hashes and sizes; every other column holds features."""

MAX_SHARD_SIZE = 1_000_000
"""Samples that a shard may have: it is held in memory while it is written."""

_COLUMN_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_STEM = re.compile(r"(.+?)(?:\.([0-9]{1,9}))?")
_FILE = re.compile(r"[a-z0-9-]+(\.[0-9]+)?/[a-z0-9-]+(\.[a-z0-9-]+)+")
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_COMMIT_NAME = re.compile(r"([0-9]{6,12})\.([0-9]{6,12})\.json")
_COMMIT_NAMES = re.compile(r"(?:(?<=/)|(?<![\s\S]))([0-9]{6,12})\.([0-9]{6,12})\.json(?=/|\Z)")
_NUMBERED = re.compile(r"([0-9]{6,12})\.jsonl?")


def is_column_name(name: str) -> bool:
    """Whether ``name`` may name a column: it becomes a folder, so it is kept to letters, digits and dashes.

    Windows opens a device in place of a file that is called as one, whatever ending the name has.
    """
    return _COLUMN_NAME.fullmatch(name) is not None and name not in _DEVICES


def stem(name: str, edition: int) -> str:
    """What the files of one edition of a column are named after: ``text``, and once it was replaced ``text.2``."""
    return name if edition == 1 else f"{name}.{edition}"


def parse_stem(stem: str) -> tuple[str, int] | None:
    """The inverse of `stem`: ``(name, edition)``, or None for any other text."""
    match = _STEM.fullmatch(stem)
    edition = int(match[2] or 1) if match else 0
    return (match[1], edition) if match and is_column_name(match[1]) and edition > 0 else None


def parse_column(filename: str) -> tuple[str, int] | None:
    """``(name, edition)`` of a column's record, or None for any other file."""
    return parse_stem(filename.removesuffix(".json")) if filename.endswith(".json") else None


def plan(shard: int) -> str:
    """The ids that a shard's samples had when they were added."""
    return f"{PLAN}/{shard:06d}.jsonl"


def column(stem: str) -> str:
    """The record of one column."""
    return f"{COLUMNS}/{stem}.json"


def null(stem: str, sha256: str, suffix: str) -> str:
    """The null features of one column: a shard of one row, named by its content."""
    return f"{COLUMNS}/{stem}.null-{sha256[:8]}.{suffix}"


def dataset(number: int) -> str:
    """How the dataset is read since the ``number``-th change of that, counted from 1; the highest one counts."""
    return f"{DATASET}/{number:06d}.json"


def shard(stem: str, shard: int, sha256: str, suffix: str) -> str:
    """A shard file, named by its content."""
    return f"{stem}/{shard:06d}-{sha256[:8]}.{suffix}"


def commit(stem: str, shard: int, generation: int) -> str:
    """The record that makes a shard file exist."""
    return f"{commits(stem)}/{shard:06d}.{generation:06d}.json"


def commits(stem: str) -> str:
    """The folder of one column's commits."""
    return f"{COMMITS}/{stem}"


def parse_commit(filename: str) -> tuple[int, int] | None:
    """``(shard, generation)`` of a commit's file name, or None for any other file."""
    match = _COMMIT_NAME.fullmatch(filename)
    return (int(match[1]), int(match[2])) if match else None


def parse_commits(filenames: Iterable[str]) -> list[tuple[int, int]]:
    """What `parse_commit` makes of each of many names that are those of commits: in one go, for there may be many."""
    return [(int(shard), int(generation)) for shard, generation in _COMMIT_NAMES.findall("/".join(filenames))]


def parse_number(filename: str) -> int | None:
    """The number that a file of ``plan/`` or ``dataset/`` is named after, or None for any other file."""
    match = _NUMBERED.fullmatch(filename)
    return int(match[1]) if match else None


def derived(name: str) -> str:
    """A file in ``index/``: made from the commits, may be deleted at any time."""
    return f"{INDEX}/{name}"


def is_inside(path: str) -> bool:
    """Whether a path read from a record can be one of a cache: a file in one folder, both of the names in use here."""
    return len(path) < 200 and _FILE.fullmatch(path) is not None


def is_record(path: str) -> bool:
    """Whether a path is one of those that are there to be listed: the root record, plans, columns, commits."""
    if path == ROOT_RECORD:
        return True
    folder, _, rest = path.partition("/")
    return is_inside(rest) if folder == COMMITS else folder in (PLAN, COLUMNS, DATASET) and is_inside(path)
