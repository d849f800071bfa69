"""Files that are whole or absent: temp file, fsync, link, fsync the folder."""

import contextlib
import errno
import hashlib
import itertools
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from .errors import DamageError
from .files import read_plain

WINDOWS = os.name == "nt"
"""Whether folders cannot be flushed, and files that are open anywhere can be neither replaced nor removed."""

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
        made = _link(temporary, path)
    finally:
        _discard(temporary)
    try:
        sync_folder(path.parent)
    except OSError:
        # Nobody knows whether the name is on the disk, and a second fsync would claim so: the next run makes it anew.
        if made:
            _discard(path)
        raise
    return made


def replace(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, in place of whatever was there; a reader sees the old bytes or the new.

    PermissionError on Windows when another program holds the file open for more than a second.
    """
    make_folder(path.parent)
    temporary = _write_temporary(path.parent, data)
    try:
        failpoint("replace")
        _rename_over(temporary, path)
    except OSError:
        _discard(temporary)
        raise
    sync_folder(path.parent)


def put_content(path: Path, data: bytes) -> None:
    """Make a content-named file: an existing one with the same bytes is kept, a damaged one replaced."""
    if put_if_absent(path, data) or _holds(path, data):
        return
    try:
        replace(path, data)
    except OSError:
        _discard(path)  # What is there is damaged, or may be so again after a power failure.
        raise


def _holds(path: Path, data: bytes) -> bool:
    """Whether ``path`` is a plain file with these bytes. Through a link they would be another's; a pipe has none."""
    try:
        return read_plain(path, len(data)) == data
    except DamageError:
        return False


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, each one's name on stable storage.

    So is the name of one that exists: who made it may have been killed, or may not have come to flushing it yet.
    """
    folder = folder.absolute()
    if folder in _flushed and folder.is_dir():
        return
    if folder != folder.parent:
        make_folder(folder.parent)
        if folder.is_dir():
            _flush_found(folder.parent)
        else:
            _make_one_folder(folder)
    _flushed.add(folder)


def _make_one_folder(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    try:
        sync_folder(folder.parent)
    except OSError:
        with contextlib.suppress(OSError):  # It may not be empty: another process was quick.
            folder.rmdir()
        raise


_flushed: set[Path] = set()
"""Folders whose names this process has seen to, so that it does so once."""


def flush_names(root: Path) -> None:
    """Flush all names below ``root``: a process that was killed may have left some in memory alone."""
    for folder, _, _ in os.walk(root):
        _flush_found(Path(folder))


def _flush_found(folder: Path) -> None:
    """Flush the names in a folder that others made, if it can be flushed at all; no step, as it writes nothing new."""
    try:
        _fsync_folder(folder)
    except OSError as error:
        if error.errno not in _CANNOT_BE_FLUSHED:
            raise


_CANNOT_BE_FLUSHED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EROFS)
"""What a folder answers that is not ours to read, or that lies on a file system without fsync of folders."""


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to stable storage (Windows has no such call and needs none)."""
    failpoint("fsync folder")
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(folder)
        raise
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
    dead = [path for path in root.rglob(f"{TEMPORARY}{host()}-*") if not is_under_way(path)]
    for path in dead:
        _discard(path)
    return len(dead)


def is_under_way(temporary: Path) -> bool:
    """Whether a temp file's process may still be at it: it lives; of another machine, the file is not a day old."""
    whose, pid, _ = f"{temporary.name.removeprefix(TEMPORARY)}--".split("-", 2)
    return _is_alive(pid) if whose == host() else time.time() - temporary.stat().st_mtime < 24 * 3600


def remove(path: Path) -> bool:
    """Remove a file if it is there; False where Windows holds it back because a program has it open."""
    failpoint("remove")
    _discard(path)
    return not path.exists()


def temporary_in(folder: Path) -> Path:
    """A name for a file that is not whole yet; by it others see whose it is."""
    return folder / f"{TEMPORARY}{host()}-{os.getpid()}-{next(_counter)}"


def _write_temporary(folder: Path, data: bytes) -> Path:
    temporary = temporary_in(folder)
    try:
        failpoint("write")
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            failpoint("fsync")
            os.fsync(file.fileno())
    except OSError as error:
        # After a failed write or fsync the page cache may claim what the disk does not hold: never keep such a file.
        _discard(temporary)
        error.filename = str(temporary)
        raise
    return temporary


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _rename_if_absent(temporary, path)
    return True


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""What a file system without hard links (exFAT, some network shares) answers; EINVAL is what Windows makes of it."""


def _rename_if_absent(temporary: Path, path: Path) -> bool:
    """Atomic, but exclusive on Windows only: elsewhere a rename replaces what another process put there meanwhile."""
    if path.exists():
        return False
    try:
        os.rename(temporary, path)
    except FileExistsError:
        return False
    return True


def _rename_over(temporary: Path, path: Path) -> None:
    """Rename over ``path``. Windows refuses while any program holds it open, as virus scanners do for moments."""
    for seconds in _PATIENCE if WINDOWS else ():
        try:
            os.replace(temporary, path)
        except PermissionError:
            time.sleep(seconds)
        else:
            return
    os.replace(temporary, path)


_PATIENCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
"""Seconds to wait after each attempt: about one in all."""


def _discard(temporary: Path) -> None:
    """Remove a temp file if it is there. One that Windows holds back stays for `clear_dead_temporaries`."""
    try:
        temporary.unlink(missing_ok=True)
    except PermissionError:
        if not WINDOWS:
            raise


def host() -> str:
    """This machine in eight letters: whole names may be long, and differ only at their ends."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: str) -> bool:
    import psutil  # os.kill(pid, 0) would ask on POSIX, and interrupt the process on Windows

    return not pid.isdigit() or psutil.pid_exists(int(pid))
