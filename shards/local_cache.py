"""The local folder into which the files of object stores are fetched: bounded, and shared by all processes."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from . import durable, layout
from .errors import CacheError, UsageError
from .objects import is_url

DEFAULT_SIZE = 32 * 10**9
"""Bytes of shard files that are kept where nobody said otherwise."""

MARK = "copy-of"
"""In each folder here: the store that it is a copy of."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_STRIPES = 64


@dataclass(frozen=True)
class LocalCache:
    """A folder with one folder for each cache in a store, and at most ``size`` bytes of shard files in all of them.

    Records and indexes lie there too and are not counted. All of it may be deleted at any time: it is fetched again.
    """

    folder: Path
    size: int = DEFAULT_SIZE

    @classmethod
    def default(cls, folder: str | None = None, size: str | None = None) -> "LocalCache":
        """As the options say, else the environment (``KCACHE_LOCAL_CACHE``, ``KCACHE_LOCAL_CACHE_SIZE``)."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = folder or os.environ.get("KCACHE_LOCAL_CACHE") or str(home / "kcache" / "stores")
        size = size or os.environ.get("KCACHE_LOCAL_CACHE_SIZE")
        return cls(Path(folder).absolute(), parse_size(size) if size else DEFAULT_SIZE)

    def folder_of(self, identity: str) -> Path:
        """The folder of one store, made and marked if need be."""
        last = re.sub(r"[^A-Za-z0-9.-]+", "-", identity.split(" at ")[0].rsplit("/", 1)[-1])[:40]
        path = self.folder / f"{last}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not (path / MARK).exists():
                (path / MARK).write_text(f"{identity}\n", "utf-8")
        except OSError as error:
            raise CacheError(
                f"{self.folder} cannot be written to ({error.strerror}); name another folder with --local-cache or"
                " KCACHE_LOCAL_CACHE"
            ) from None
        return path

    def lock(self, *what: str) -> FileLock:
        """A lock among all processes of this machine; one of a few, so that no more files than these are made."""
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        stripe = int(hashlib.sha256("/".join(what).encode()).hexdigest(), 16) % _STRIPES
        return FileLock(folder / (f"{stripe:02d}" if what else "room"))

    @contextmanager
    def room(self, path: Path, nbytes: int) -> Iterator[Path]:
        """A file of ``nbytes`` to be filled, which becomes ``path`` at the end; what was unused longest makes way.

        CacheError where it cannot have that much room; the disk's error where that is full.
        """
        if nbytes > self.size:
            raise CacheError(
                f"a shard has {nbytes:,} bytes, and the local cache {self.folder} may have {self.size:,};"
                " give a larger --local-cache-size"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock():
            self._make_room(nbytes)
            temporary = durable.temporary_in(path.parent)
            with open(temporary, "xb") as file:
                file.truncate(nbytes)  # What is still to come counts already.
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of shard files, those on their way among them."""
        return sum(size for _, size, _ in self._files())

    def _make_room(self, nbytes: int) -> None:
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) + nbytes - self.size
        for _, size, path in files:
            if excess <= 0:
                return
            if path.name.startswith(durable.TEMPORARY) and durable.is_under_way(path):
                continue
            with contextlib.suppress(PermissionError):  # Windows keeps what is open; another one makes way.
                path.unlink(missing_ok=True)
                excess -= size
        if excess > 0:
            raise CacheError(
                f"the local cache {self.folder} has no room for {nbytes:,} bytes while other files are on their way;"
                f" give a larger --local-cache-size than {self.size:,}"
            )

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each was last used (ns), its bytes, and where it lies."""
        for mark in self.folder.glob(f"*/{MARK}"):
            for suffix in (*layout.CONTAINERS, ""):
                pattern = f"*/*.{suffix}" if suffix else f"*/{durable.TEMPORARY}*"
                for path in mark.parent.glob(pattern):
                    if path.parent.name == layout.COLUMNS:
                        continue  # null features: needed at any time, and small
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        yield stat.st_mtime_ns, stat.st_size, path


def local_cache_for(caches: Sequence[str], folder: str | None, size: str | None) -> LocalCache | None:
    """The local cache for those among ``caches`` that are in a store; None where none is.

    UsageError where one was asked for then.
    """
    if any(is_url(name) for name in caches):
        return LocalCache.default(folder, size)
    if folder or size:
        given = "--local-cache" if folder else "--local-cache-size"
        raise UsageError(f"{given} has no effect: {caches[0]} is a local folder and is read where it is; leave it out")
    return None


def parse_size(text: str) -> int:
    """Bytes of such as ``50GB``, ``512 MiB`` or ``1000000``. UsageError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise UsageError(f"'{text}' is no size; give one such as 50GB, 512MB or 20GiB")
    return int(float(match[1]) * unit)


def clear(folder: Path) -> None:
    """Remove everything in the folder of one store but its mark: what is there is of another cache than the store's."""
    for path in folder.iterdir():
        if path.name != MARK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
