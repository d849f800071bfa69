"""Objects in any store that fsspec opens (gs://, az://, hf://, https://): they can be read, not written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .errors import CacheError, UsageError
from .objects import StoredObject

_PIECE = 1 << 20


class FsspecObjects:
    """The objects below one URL. Read-only: fsspec has no call that makes a file unless there is one."""

    def __init__(self, url: str) -> None:
        """UsageError for a protocol that fsspec does not know, or whose package is not installed."""
        self.url = self.identity = url
        self._made: tuple[int, Any, str] | None = None
        self._opened()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose name begins with ``prefix``, which ends with a slash or is a whole name, sorted."""
        filesystem, root = self._opened()
        with self._told():
            try:
                found = filesystem.find(f"{root}/{prefix.rstrip('/')}", detail=True)
            except FileNotFoundError:
                found = {}
        for path, told in sorted(found.items()):
            tags = (str(told[key]) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if key in told)
            yield StoredObject(path.removeprefix(f"{root}/"), int(told["size"] or 0), " ".join(tags))

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from ``start`` on, in pieces."""
        filesystem, root = self._opened()
        try:
            with filesystem.open(f"{root}/{name}", "rb") as file:
                file.seek(start)
                while piece := file.read(_PIECE):
                    yield piece
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ConnectionError(str(error)) from None

    def require_writable(self) -> NoReturn:
        """UsageError, always."""
        raise UsageError(
            f"{self.url} can only be read: kcache writes to local folders and to s3://; encode into a folder and copy"
            " it there"
        )

    def put(self, name: str, data: bytes, *, if_absent: bool) -> bool:
        """UsageError: see `require_writable`."""
        self.require_writable()

    def _opened(self) -> tuple[Any, str]:
        """The file system and the path in it, made anew in a forked process: some hold threads."""
        if self._made is None or self._made[0] != os.getpid():
            try:
                import fsspec

                with self._told():
                    filesystem, root = fsspec.core.url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                said = " ".join(str(error).split())
                raise UsageError(f"{self.url} cannot be opened ({said}); install what it names, or use s3://") from None
            self._made = (os.getpid(), filesystem, str(root).rstrip("/"))
        return self._made[1:]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ImportError, ValueError):
            raise
        except Exception as error:  # each package has classes of its own
            said = " ".join(str(error).split()).rstrip(".")
            raise CacheError(
                f"{self.url} cannot be reached ({said}); see that its address and credentials are right"
            ) from error
