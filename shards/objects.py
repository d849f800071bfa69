"""Object stores: what is asked of one, and which package opens which URL."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import UsageError

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)")
_ALMOST = re.compile(r"(s3|gs|az|abfs|hf|https?):/?[^/].*")


@dataclass(frozen=True)
class StoredObject:
    """One object by its name below a cache's URL. ``tag`` changes whenever it is written."""

    name: str
    size: int
    tag: str


class Objects(Protocol):
    """The objects below one URL. Names are relative to it."""

    url: str
    identity: str
    """What tells this place from all others: the URL, with the address of the service it was asked at."""

    def require_writable(self) -> None:
        """UsageError where objects cannot be made if they are absent, which is what commits rest on."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose name begins with ``prefix``, sorted by name."""

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from ``start`` on, in pieces. FileNotFoundError where there is none.

        ConnectionError where the store breaks off in the middle.
        """

    def put(self, name: str, data: bytes, *, if_absent: bool) -> bool:
        """Make an object, whole or not at all. False where ``if_absent`` and there is one: it is left as it is."""


def is_url(name: Path | str) -> bool:
    """Whether a cache is named by a URL and not by a folder. UsageError where it seems to be meant to."""
    if isinstance(name, str) and _ALMOST.fullmatch(name):
        scheme, rest = name.split(":", 1)
        raise UsageError(
            f"{name} looks like a URL that lacks a slash; write {scheme}://{rest.lstrip('/')}, or ./{name}"
        )
    return isinstance(name, str) and _URL.fullmatch(name) is not None


def open_objects(url: str) -> Objects:
    """The objects below a URL. UsageError where its package is not installed, or it names no place in a bucket."""
    match = _URL.fullmatch(url.rstrip("/") if not url.endswith("://") else url)
    if match is None:
        raise UsageError(f"{url} is no URL of an object store; give one such as s3://bucket/cache")
    if match[1] == "s3":
        from .s3 import S3Objects

        return S3Objects(match[0])
    from .fsspec_objects import FsspecObjects

    return FsspecObjects(match[0])
