"""Files of a cache opened for reading: plain ones only, no larger than was said, with the bytes that were said."""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DamageError

_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
"""A pipe that takes the place of a file between two calls is opened without waiting for its other end."""


def open_plain(path: Path) -> int:
    """A descriptor of a plain file. DamageError where it is missing, or a link, folder, pipe or device."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise DamageError(f"{path} is {_kind(path)}: {PLAIN_ONLY}")
        return os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(f"{path} is missing; run 'kcache verify' on its cache") from None


def _seek_and_read(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """What ``os.preadv`` does for one buffer, in two calls: Windows and older macOS do not have it."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    with io.FileIO(descriptor, closefd=False) as file:
        return file.readinto(buffers[0])


read_at: Callable[[int, Sequence[memoryview], int], int] = getattr(os, "preadv", _seek_and_read)
"""Fill a buffer from a place in a file; returns how many bytes there were."""


def read_plain(path: Path, most: int) -> bytes:
    """The bytes of a plain file. DamageError, before any memory is taken, where it has more than ``most``."""
    with open(open_plain(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DamageError(f"{path} has {size:,} bytes, which is more than {most:,}; run 'kcache verify'")
        try:
            return file.read(size)
        except OSError as error:  # a bad sector
            raise DamageError(f"{path} cannot be read ({error.strerror}); run 'kcache verify' on its cache") from None


def read_committed(root: Path, reference: Mapping[str, Any]) -> bytes:
    """The bytes of a file that a record names with its size and sha256. DamageError where they are others."""
    path = root / str(reference["file"])
    data = read_plain(path, int(reference["bytes"]))
    if hashlib.sha256(data).hexdigest() != reference["sha256"]:
        raise DamageError(f"{path} does not match its sha256; run 'kcache verify {root}'")
    return data


def refuse_links(*folders: Path) -> None:
    """DamageError where a folder has a link among its entries: through one, a cache would reach what is not its own."""
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise DamageError(f"{entry.path} is a link: {PLAIN_ONLY}")


PLAIN_ONLY = (
    "a cache has plain files and folders only; copy it with what its links lead to ('cp -rL', from the hub"
    " 'hf download --local-dir')"
)


def _kind(path: Path) -> str:
    return "a link" if path.is_symlink() else "a folder" if path.is_dir() else "no plain file (a pipe or a device)"
