"""Where a cache's files are: in a local folder, or in an object store of which a local folder is filled as needed."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from . import durable
from .local_cache import LocalCache
from .mirror import Mirror
from .objects import is_url, open_objects


class Storage(Protocol):
    """What a cache asks of the place where its files are. File names are relative, with ``/``."""

    root: Path
    """The local folder that is read."""
    name: str
    """What people call the cache: its folder, or its URL."""
    is_local: bool

    def refresh(self) -> None:
        """Have all records, those written by others since among them, in the folder."""

    def bring(self, references: Iterable[Mapping[str, Any]]) -> None:
        """Have the files that records name with their size and sha256 in the folder.

        DamageError where the store has another file than was committed.
        """

    def size(self, file: str) -> int | None:
        """Bytes of a shard file, None where there is no such file; may be as of the last refresh."""

    def names(self) -> list[str]:
        """Up to a few of the names at the root, not those of unfinished files."""

    def require_writable(self) -> None:
        """UsageError where nothing can ever be written."""

    def has(self, file: str) -> bool:
        """Whether there is a file, asked now."""

    def read(self, file: str, most: int) -> bytes | None:
        """The bytes of a file that may change, as they are now; None where there is none, or one with more."""

    def require_put_if_absent(self, file: str) -> None:
        """CacheError unless of two writers of one file, such as ``file``, which exists, only the first can win."""

    def put_if_absent(self, file: str, data: bytes) -> bool:
        """Make ``file`` hold ``data`` unless it exists; True when it holds ``data`` because of this call."""

    def put_content(self, file: str, data: bytes) -> None:
        """Make a content-named file: an existing one with the same bytes is kept, a damaged one replaced."""

    def replace(self, file: str, data: bytes) -> None:
        """Make ``file`` hold ``data``, in place of whatever was there."""


class Folder:
    """A cache in a local folder: nothing has to be brought."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, str(root)

    def refresh(self) -> None:
        """Nothing to do."""

    def bring(self, references: Iterable[Mapping[str, Any]]) -> None:
        """Nothing to do."""

    def size(self, file: str) -> int | None:
        """As the disk says."""
        path = self.root / file
        return path.stat().st_size if path.is_file() else None

    def names(self) -> list[str]:
        """All of them."""
        names = os.listdir(self.root) if self.root.is_dir() else []
        return sorted(name for name in names if not name.startswith(durable.TEMPORARY))

    def require_writable(self) -> None:
        """A disk that cannot be written to says so when it is."""

    def has(self, file: str) -> bool:
        """As the disk says."""
        return (self.root / file).exists()

    def read(self, file: str, most: int) -> bytes | None:
        """From the disk."""
        size = self.size(file)
        return (self.root / file).read_bytes() if size is not None and size <= most else None

    def require_put_if_absent(self, file: str) -> None:
        """File systems have links, or see `durable`."""

    def put_if_absent(self, file: str, data: bytes) -> bool:
        """See `durable.put_if_absent`."""
        return durable.put_if_absent(self.root / file, data)

    def put_content(self, file: str, data: bytes) -> None:
        """See `durable.put_content`."""
        durable.put_content(self.root / file, data)

    def replace(self, file: str, data: bytes) -> None:
        """See `durable.replace`."""
        durable.replace(self.root / file, data)


def open_storage(name: Path | str, local: LocalCache | None = None) -> Storage:
    """The storage of a folder or a URL; ``local`` is where the files of a URL are kept (None: the default place).

    UsageError for a URL that is none, or needs a package that is not installed.
    """
    if not is_url(name):
        return Folder(Path(name))
    return Mirror(open_objects(str(name)), local or LocalCache.default())
