"""Files that are whole or absent: temp file, fsync, link, fsync the folder."""

import errno
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

_counter = itertools.count()
TEMPORARY = ".tmp-"
"""How the names of files begin that are not whole yet."""

failpoint: Callable[[str], None] = lambda name: None  # noqa: E731  (tests replace it to kill the process here)
"""Called with the name of each step before it is taken."""


def put_if_absent(path: Path, data: bytes) -> bool:
    """Make ``path`` hold ``data`` unless it exists; True when this call made it.

    When it returns, the file and its name are on stable storage. An error (a full disk, a failed fsync) leaves no file.
    """
    make_folder(path.parent)
    temporary = _write_temporary(path.parent, data)
    try:
        failpoint("link")
        return _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, in place of whatever was there; a reader sees the old bytes or the new."""
    make_folder(path.parent)
    temporary = _write_temporary(path.parent, data)
    try:
        failpoint("replace")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def put_content(path: Path, data: bytes) -> None:
    """Make a content-named file: an existing one with the same bytes is kept, a damaged one replaced."""
    if not put_if_absent(path, data) and path.read_bytes() != data:
        replace(path, data)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each one's name on stable storage."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to stable storage (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    failpoint("fsync folder")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under ``folder`` that some other library wrote."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with open(Path(root, name), "rb+") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def clear_dead_temporaries(root: Path) -> int:
    """Remove the temp files that killed processes of this machine left under ``root``; returns how many."""
    mine = f"{TEMPORARY}{_host()}-"
    dead = [path for path in root.rglob(mine + "*") if not _is_alive(path.name.removeprefix(mine).split("-")[0])]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def _write_temporary(folder: Path, data: bytes) -> Path:
    temporary = folder / f"{TEMPORARY}{_host()}-{os.getpid()}-{next(_counter)}"
    try:
        failpoint("write")
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            failpoint("fsync")
            os.fsync(file.fileno())
    except OSError:
        # After a failed write or fsync the page cache may claim what the disk does not hold: never keep such a file.
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links (exFAT, some network shares): rename is atomic but not exclusive.
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
