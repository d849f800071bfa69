"""A cache in an object store: written there, and read from a local folder that is filled from it."""

import errno
import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import durable, layout
from .errors import CacheError, DamageError
from .local_cache import LocalCache, clear
from .objects import Objects, StoredObject
from .records import MAX_BYTES

_STATE = "state-of-copy"
"""In the local folder: which writing of the cache's root record the rest is of."""

_CLOCK = 2
"""Seconds by which times of change may be coarse."""

_THREADS = 16
_ATTEMPTS = 6
"""Attempts at reading a file that breaks off, each going on from where it was; about half a minute in all."""


class Mirror:
    """What lies in a store is written once and never changed, so that a local copy is right for as long as it exists.

    Records are fetched when the cache is opened (`refresh`), samples, indexes and shards when they are asked for
    (`bring`). A file is in the folder whole or not at all, its bytes those that were committed.
    """

    is_local = False

    def __init__(self, objects: Objects, local: LocalCache) -> None:
        """Make the folder; ask nothing of the store yet."""
        self._objects, self.local = objects, local
        self.name, self.root = objects.url, local.folder_of(objects.identity)
        self._sizes: dict[str, int] = {}
        _folders[str(self.root)] = self.name

    # -- reading ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Have the records as the store has them now; those of a cache that was made anew there are dropped."""
        self._sizes, began = {}, time.time()
        with self.local.lock("refresh", self.root.name):
            root = [found for found in self._objects.list(layout.ROOT_RECORD) if found.name == layout.ROOT_RECORD]
            self._require_state(root[0] if root else None)
            folders = (layout.PLAN, layout.COLUMNS, layout.DATASET, layout.COMMITS) if root else ()
            listed = [*root, *(found for folder in folders for found in self._objects.list(f"{folder}/"))]
            self._drop_lost({found.name for found in listed}, began)
            lacking = [found for found in listed if layout.is_record(found.name) and not self._has(found)]
            self._all(self._fetch_record, lacking)

    def bring(self, references: Iterable[Mapping[str, Any]]) -> None:
        """Have files that records name, each checked against its sha256; one that is there counts as used now."""
        lacking = [dict(reference) for reference in references if not self._use(reference)]
        shards = [reference for reference in lacking if _is_shard(reference["file"])]
        self._all(self._fetch_committed, [reference for reference in lacking if reference not in shards])
        for reference in shards:
            self._fetch_committed(reference)

    def size(self, file: str) -> int | None:
        """As of the first time that a file of its folder was asked for since the last refresh."""
        folder = file.split("/")[0]
        if folder not in self._sizes:
            self._sizes[folder] = 0
            self._sizes |= {found.name: found.size for found in self._objects.list(f"{folder}/")}
        return self._sizes.get(file)

    def names(self) -> list[str]:
        """The first ones; all of a bucket may be millions."""
        names: dict[str, None] = {}
        for found in self._objects.list(""):
            names[found.name.split("/")[0]] = None
            if len(names) > 3:
                break
        return list(names)

    def has(self, file: str) -> bool:
        """Asked of the store."""
        return any(found.name == file for found in self._objects.list(file))

    def read(self, file: str, most: int) -> bytes | None:
        """From the store."""
        sizes = [found.size for found in self._objects.list(file) if found.name == file]
        return b"".join(self._objects.read(file)) if sizes and sizes[0] <= most else None

    def _require_state(self, root: StoredObject | None) -> None:
        state = f"{root.size} {root.tag}" if root else ""
        path = self.root / _STATE
        if not path.is_file() or path.read_text("utf-8") != state:
            clear(self.root)
            self._write(path, state.encode())

    def _drop_lost(self, listed: set[str], began: float) -> None:
        """Remove records that the store has no more; one that was written since the listing began may be there."""
        for folder in (layout.PLAN, layout.COLUMNS, layout.DATASET, layout.COMMITS):
            for path in (self.root / folder).rglob("*"):
                name = path.relative_to(self.root).as_posix()
                if name not in listed and path.is_file() and path.stat().st_mtime < began - _CLOCK:
                    path.unlink(missing_ok=True)

    def _has(self, found: StoredObject) -> bool:
        path = self.root / found.name
        return path.is_file() and path.stat().st_size == found.size

    def _use(self, reference: Mapping[str, Any]) -> bool:
        """Whether a file is there; it is then the last one to make way for others."""
        path = self.root / str(reference["file"])
        try:
            if path.stat().st_size == reference["bytes"]:
                os.utime(path)
                return True
        except FileNotFoundError:
            pass
        return False

    def _fetch_record(self, found: StoredObject) -> None:
        if found.size > MAX_BYTES:
            raise DamageError(f"{self.name}/{found.name} has {found.size:,} bytes, more than any record of kcache")
        self._fetch(found.name, found.size, self.root / found.name)

    def _fetch_committed(self, reference: Mapping[str, Any]) -> None:
        file, nbytes, sha256 = str(reference["file"]), int(reference["bytes"]), str(reference["sha256"])
        path = self.root / file
        if not _is_shard(file):
            self._fetch(file, nbytes, path, sha256)
            return
        self.local.folder_of(self._objects.identity)  # marked anew where somebody deleted it meanwhile
        with self.local.lock(self.root.name, file):
            if not self._use(reference):  # another process may have fetched it meanwhile
                with self.local.room(path, nbytes) as temporary:
                    self._download(file, nbytes, temporary, sha256)

    def _fetch(self, file: str, nbytes: int, path: Path, sha256: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = durable.temporary_in(path.parent)
        try:
            self._download(file, nbytes, temporary, sha256)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _download(self, file: str, nbytes: int, to: Path, sha256: str | None) -> None:
        """Fill ``to``, going on where the store breaks off. DamageError where it is not what was committed."""
        hashed, done = hashlib.sha256(), 0
        try:
            with open(to, "r+b" if to.exists() else "xb") as out:
                for attempt in range(_ATTEMPTS):
                    try:
                        for piece in self._objects.read(file, done):
                            done += len(piece)
                            if done > nbytes:
                                break
                            out.write(piece)
                            hashed.update(piece)
                        break
                    except ConnectionError as error:
                        if attempt + 1 == _ATTEMPTS:
                            raise CacheError(
                                f"{self.name}/{file} broke off after {done:,} of {nbytes:,} bytes, {_ATTEMPTS} times"
                                f" ({error}); run the same command again"
                            ) from error
                        time.sleep(min(10.0, 0.1 * 3**attempt))
        except FileNotFoundError:
            raise DamageError(f"{self.name}/{file} is missing; run 'kcache verify {self.name}'") from None
        except OSError as error:
            raise self._full(error) from error
        if done != nbytes or (sha256 is not None and hashed.hexdigest() != sha256):
            what = f"has {done:,} bytes or more and not {nbytes:,}" if done != nbytes else "does not match its sha256"
            raise DamageError(f"{self.name}/{file} {what}; run 'kcache verify {self.name} --deep'")

    def _full(self, error: OSError) -> Exception:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return CacheError(
                f"the disk of the local cache {self.local.folder} is full; free some space, name another folder with"
                " --local-cache, or give a smaller --local-cache-size"
            )
        return error

    def _all(self, fetch: Any, items: list[Any]) -> None:
        if len(items) < 2:
            for item in items:
                fetch(item)
            return
        with ThreadPoolExecutor(_THREADS, "kcache-fetch") as pool:
            for _ in pool.map(fetch, items):
                pass

    # -- writing ------------------------------------------------------------------------------------------------------

    def put_if_absent(self, file: str, data: bytes) -> bool:
        """Make an object unless there is one. One with the same bytes counts as made by this call.

        It may be: an answer that was lost on its way back is asked for again.
        """
        durable.failpoint("put")
        if not self._objects.put(file, data, if_absent=True):
            there = b"".join(self._objects.read(file))
            self._keep(file, there)
            return there == data
        self._keep(file, data)
        return True

    def put_content(self, file: str, data: bytes) -> None:
        """Make a content-named object; one with other bytes, which no writer of kcache left, is replaced."""
        if not self.put_if_absent(file, data):
            self.replace(file, data)

    def replace(self, file: str, data: bytes) -> None:
        """Make an object hold ``data``, in place of whatever was there."""
        durable.failpoint("put")
        self._objects.put(file, data, if_absent=False)
        self._keep(file, data)

    def require_writable(self) -> None:
        """UsageError for a store that kcache only reads."""
        self._objects.require_writable()

    def require_put_if_absent(self, file: str) -> None:
        """CacheError where the store makes an object that exists: then two writers could overwrite each other."""
        data = b"".join(self._objects.read(file))
        if self._objects.put(file, data, if_absent=True):
            raise CacheError(
                f"{self.name}: this store ignores conditional writes (If-None-Match), on which commits rest; encode"
                " into a local folder and copy that there"
            )

    def _keep(self, file: str, data: bytes) -> None:
        """Have the local copy of what was written; shards are fetched if they are ever read."""
        self._sizes[file] = len(data)
        if not _is_shard(file):
            path = self.root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, data)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = durable.temporary_in(path.parent)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


_folders: dict[str, str] = {}


def folders() -> dict[str, str]:
    """The folders that this process has filled, and of what each is a copy."""
    return dict(_folders)


def _is_shard(file: str) -> bool:
    """Whether a file is one of the large ones, that make way for others."""
    return Path(file).suffix[1:] in layout.CONTAINERS and not file.startswith(f"{layout.COLUMNS}/")
