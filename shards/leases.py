"""Leases: who reads, writes or clears a cache just now, so that `kcache gc` leaves alone what they use."""

import itertools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import durable, layout
from .errors import CacheError
from .files import read_plain
from .records import MAX_BYTES

Pins = dict[str, list[list[int]]]
"""``[shard, generation]`` of every commit that is read, by the stem of its column."""

READER, WRITER, CLEARER = "reader", "writer", "gc"

FORGOTTEN = 24 * 3600.0
"""Seconds after which a lease of another machine counts no more, where it was not renewed."""

_RENEWAL = 600.0
"""Seconds between renewals."""

_CLOCK = 2
"""Seconds by which the time at which a process began may seem to move, as the machine's clock is set."""

_NAME = re.compile(r"(reader|writer|gc)-([0-9a-f]{8})-([0-9]{1,9})-([0-9]{1,12})-[0-9]+")
_counter = itertools.count()


@dataclass(frozen=True)
class Lease:
    """A small file whose name says what for, by which process of which machine, and when that process began."""

    path: Path
    kind: str
    host: str
    pid: int
    began: int

    @property
    def is_alive(self) -> bool:
        """Whether its process runs; of another machine, whether the lease was renewed within a day."""
        if self.host == durable.host():
            return abs(_began(self.pid) - self.began) <= _CLOCK
        try:
            return time.time() - self.path.stat().st_mtime < FORGOTTEN
        except FileNotFoundError:
            return False

    @property
    def pins(self) -> Pins | None:
        """What its reader reads; None: anything, for it is only about to say."""
        try:
            pins = json.loads(read_plain(self.path, MAX_BYTES))
            return {str(stem): [[int(shard), int(g)] for shard, g in commits] for stem, commits in pins.items()}
        except (CacheError, OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None

    def narrow(self, pins: Pins) -> None:
        """Say what is read, so that all else may go. Where that cannot be written nothing may."""
        temporary = self.path.with_name(f"{durable.TEMPORARY}{durable.host()}-{self.pid}-{next(_counter)}")
        try:
            temporary.write_text(json.dumps(pins, separators=(",", ":")))
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def release(self) -> None:
        """Give it back; in a forked child nothing happens, for the lease is its parent's."""
        if self.pid != os.getpid():
            return
        _held.discard(self.path)
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            pass  # Its process ends before long, and the lease with it.

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.host == durable.host() else " of another machine")


def leases(root: Path) -> list[Lease]:
    """All leases of the cache at ``root``, also those of processes that are no more."""
    folder = root / layout.LEASES
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    parsed = [(name, match) for name in names if (match := _NAME.fullmatch(name))]
    return [Lease(folder / name, match[1], match[2], int(match[3]), int(match[4])) for name, match in parsed]


def clear_dead_leases(root: Path) -> None:
    """Remove the leases of killed processes."""
    for lease in leases(root):
        if not lease.is_alive:
            lease.path.unlink(missing_ok=True)


def reader_lease(root: Path) -> Lease | None:
    """A lease that holds everything until it is narrowed: to be taken before anything is read.

    None on a disk that cannot be written to: nothing there may be cleared while it is read.
    """
    try:
        return _take(root, READER)
    except OSError:
        return None


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Hold a lease on everything."""
    lease = reader_lease(root)
    try:
        yield
    finally:
        if lease:
            lease.release()


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold a writer's lease: any number may, but not beside `clearing`. CacheError where the cache is being cleared."""
    clear_dead_leases(root)
    lease = _take(root, WRITER)
    try:
        # Taken first and looked for others then, as `clearing` does: of the two at least one sees the other.
        if clearers := _others(root, lease, CLEARER):
            raise CacheError(f"'kcache gc' is clearing {root} ({clearers[0]}); run the command again when it is done")
        yield
    finally:
        lease.release()


@contextmanager
def clearing(root: Path) -> Iterator[None]:
    """Hold the one lease under which files may be removed. CacheError where anybody writes or clears."""
    clear_dead_leases(root)
    lease = _take(root, CLEARER)
    try:
        if others := _others(root, lease, WRITER, CLEARER):
            what = "written to" if others[0].kind == WRITER else "cleared"
            raise CacheError(f"{root} is being {what} by {others[0]}; run 'kcache gc {root}' again when that is done")
        yield
    finally:
        lease.release()


def _others(root: Path, own: Lease, *kinds: str) -> list[Lease]:
    return [lease for lease in leases(root) if lease.kind in kinds and lease.path != own.path and lease.is_alive]


def _take(root: Path, kind: str) -> Lease:
    """Neither written nor named durably: what a power failure leaves of leases is nobody's."""
    began = _began(os.getpid())
    folder = root / layout.LEASES
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{durable.host()}-{os.getpid()}-{began}-{next(_counter)}"
    path.touch(exist_ok=False)
    _held.add(path)
    _keep_renewing()
    return Lease(path, kind, durable.host(), os.getpid(), began)


def _began(pid: int) -> int:
    """When a process of this machine began, in seconds; 0 where there is none."""
    if sys.platform == "linux":  # as psutil does it, whose import takes longer than opening a cache
        try:
            ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(_booted() + ticks / os.sysconf("SC_CLK_TCK"))
    import psutil

    try:
        return int(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0


def _booted() -> int:
    """When this Linux machine was started, in seconds."""
    lines = Path("/proc/stat").read_bytes().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(b"btime "))


# -- renewal: one thread of each process that holds any

_held: set[Path] = set()
_renewer: threading.Thread | None = None


def _keep_renewing() -> None:
    global _renewer
    if _renewer is None or not _renewer.is_alive():  # a forked child has none
        _renewer = threading.Thread(target=_renew_for_ever, name="kcache-leases", daemon=True)
        _renewer.start()


def _renew_for_ever() -> None:
    while True:
        time.sleep(_RENEWAL)
        renew()


def renew() -> None:
    """Let every lease of this process count for another day."""
    for path in list(_held):
        try:
            os.utime(path)
        except OSError:
            pass  # Released this moment, or somebody removed it.
