"""A disk under the calls that shards/durable.py makes: it notes each of them, and fails or dies where it is told."""

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from kcache.shards import durable

DEAD_PROCESS = 2**22 + 1
"""More than any process number of Linux: temp files of a process that went on in the test's own are given this one."""


class Call(NamedTuple):
    """One call: what it does to ``path``, and with ``data`` or to which other path. Paths are relative to the disk."""

    kind: str
    path: str
    data: bytes = b""
    target: str = ""


class Disk:
    """Everything that is done below ``root`` between `mount` and the end of the patch, in the order it was done.

    ``act`` is called with the number of each call and the call before it is made; what it raises is what the call
    raises. A number that it returns is how many bytes of a write are written (a short write). No fsync reaches the
    real disk, whose page cache is all that matters here.
    """

    def __init__(self, root: Path, act: Callable[[int, Call], int | None] = lambda number, call: None) -> None:
        self.root, self.act, self.calls, self.count = root, act, list[Call](), 0
        self._lock, self._opened = threading.RLock(), dict[int, str]()

    def mount(self, patch: pytest.MonkeyPatch) -> "Disk":
        """Stand between kcache and the file system until ``patch`` is undone."""
        for name in ("link", "rename", "replace"):
            patch.setattr(os, name, self._two_paths(name, getattr(os, name)))
        for name in ("unlink", "mkdir", "rmdir"):
            patch.setattr(os, name, self._one_path(name, getattr(os, name)))
        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "open", self._open_folder(os.open))
        patch.setattr(durable, "open", self._open_file, raising=False)
        patch.setattr(durable, "put_if_absent", self._noting(durable.put_if_absent))
        patch.setattr(durable, "_flushed", set())  # as in a process that begins
        return self

    def _inside(self, path: Any) -> str | None:
        """A path relative to the root; None for all others."""
        text, root = os.fspath(path), f"{self.root}/"
        return text.removeprefix(root) if isinstance(text, str) and text.startswith(root) else None

    def _do(self, call: Call) -> int | None:
        """Note a call that is about to be made. The lock is held, so calls are noted in the order they are made."""
        answer = self._ask(call)
        self.calls.append(call)
        return answer

    def _ask(self, call: Call) -> int | None:
        self.count += 1
        return self.act(self.count - 1, call)

    def _two_paths(self, kind: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **more: Any) -> None:
            inside = self._inside(target)
            if inside is None:
                return real(source, target, **more)
            with self._lock:
                if kind == "link" and os.path.lexists(target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
                self._do(Call("link" if kind == "link" else "rename", str(self._inside(source)), target=inside))
                return real(source, target, **more)

        return call

    def _one_path(self, kind: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *more: Any, **named: Any) -> None:
            inside = self._inside(path)
            if inside is None or os.path.lexists(path) == (kind == "mkdir"):  # a call that is bound to fail
                return real(path, *more, **named)
            with self._lock:
                self._do(Call(kind, inside))
                return real(path, *more, **named)

        return call

    def _open_folder(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, *more: Any, **named: Any) -> int:
            descriptor = real(path, *more, **named)
            if (inside := self._inside(path)) is not None or os.fspath(path) == str(self.root):
                self._opened[descriptor] = inside or ""
            else:
                self._opened.pop(descriptor, None)
            return descriptor

        return call

    def _open_file(self, path: Any, mode: str) -> IO[bytes]:
        if self._inside(path) is None or mode != "xb":
            return builtins.open(path, mode)
        with self._lock:
            self._do(Call("create", str(self._inside(path))))
            raw = _File(self, str(path))
            self._opened[raw.fileno()] = str(self._inside(path))
        return io.BufferedWriter(raw)

    def write(self, path: str, data: Any, real: Callable[[Any], int]) -> int:
        """Write to an open file: all of ``data``, or as much as `act` says."""
        with self._lock:
            whole = bytes(data)
            most = self._ask(Call("write", str(self._inside(path)), whole))
            written = whole if most is None else whole[:most]
            self.calls.append(Call("write", str(self._inside(path)), written))
            return real(written)

    def _fsync(self, descriptor: int) -> None:
        path = self._opened.get(descriptor)
        if path is not None:
            with self._lock:
                kind = "fsync folder" if (self.root / path).is_dir() else "fsync"
                try:
                    self._do(Call(kind, path))
                except OSError:
                    self.calls.append(Call(f"failed {kind}", path))
                    raise

    def _noting(self, real: Callable[[Path, bytes], bool]) -> Callable[[Path, bytes], bool]:
        """Note what kcache takes for safe from now on: the name of every file for which `put_if_absent` returned."""

        def put_if_absent(path: Path, data: bytes) -> bool:
            made = real(path, data)
            with self._lock:
                if (inside := self._inside(path)) is not None:
                    self.calls.append(Call("promised", inside, path.read_bytes()))
            return made

        return put_if_absent


class _File(io.FileIO):
    """A new file whose writes go by the disk. What buffers above it handles short writes, as it does for real."""

    def __init__(self, disk: Disk, path: str) -> None:
        super().__init__(path, "xb")
        self._disk, self._path = disk, path

    def write(self, data: Any) -> int:
        return self._disk.write(self._path, data, super().write)


class Killed(BaseException):
    """What every call of a process raises that is to do nothing any more."""


def end_process(folder: Path) -> None:
    """Let what this process knows be forgotten, and the temp files that it lost be those of one that has ended."""
    durable._flushed.clear()
    for path in folder.rglob(f"{durable.TEMPORARY}*"):
        path.rename(path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{DEAD_PROCESS}-")))
