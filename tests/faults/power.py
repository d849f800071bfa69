"""What a disk holds after a power failure: contents and names that were flushed, and by chance some of the rest."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from disk import Call

Tree = dict[str, bytes | None]
"""The bytes of every file by path; None for a folder."""


@dataclass
class File:
    """A file's bytes as programs see them, and as the platter has them."""

    content: bytes = b""
    flushed: bytes = b""
    lost: bool = False
    """Whether an fsync failed: the system took its pages for clean, and nothing will write them any more."""


@dataclass
class PowerModel:
    """A file system that keeps what POSIX says it must, and forgets the rest when the power goes.

    A folder's names are on the disk once the folder was flushed, a file's bytes once the file was: in the manner of the
    fault-injection test of LevelDB. ``kept`` is what is on the disk for sure, ``now`` what programs see.
    """

    now: dict[str, File | None] = field(default_factory=dict)
    kept: dict[str, File | None] = field(default_factory=dict)
    pending: dict[str, list[dict[str, File | None]]] = field(default_factory=dict)
    """For each folder, the changes of its names since it was flushed; a file that is None here is gone."""
    promised: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "PowerModel":
        """A disk on which ``folder`` lies whole and flushed."""
        model = cls()
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            model.now[name] = None if path.is_dir() else File(path.read_bytes(), path.read_bytes())
        model.kept = dict(model.now)
        return model

    def apply(self, call: Call) -> None:
        """One call that was made."""
        match call.kind:
            case "create":
                self._change({call.path: File()})
            case "mkdir":
                self._change({call.path: None})
            case "unlink" | "rmdir":
                self._change({}, gone=call.path)
            case "link":
                self._change({call.target: self.now[call.path]})
            case "rename":
                self._change({call.target: self.now[call.path]}, gone=call.path)
            case "write":
                self._file(call.path).content += call.data
            case "fsync":
                file = self._file(call.path)
                file.flushed = file.flushed if file.lost else file.content
            case "failed fsync":
                self._file(call.path).lost = True
            case "fsync folder":
                for change in self.pending.pop(call.path, []):
                    _put(self.kept, change)
            case "failed fsync folder":
                self.pending.pop(call.path, None)  # taken for written, and never written
            case "promised":
                self.promised[call.path] = call.data

    def _file(self, path: str) -> File:
        file = self.now[path]
        assert file is not None
        return file

    def _change(self, made: dict[str, File | None], gone: str = "") -> None:
        change = {**made, **({gone: _GONE} if gone else {})}
        folder = str(Path(next(iter(change))).parent)
        self.pending.setdefault("" if folder == "." else folder, []).append(change)
        _put(self.now, change)

    def seen(self) -> Tree:
        """What programs see while the power is on."""
        return {name: file and file.content for name, file in sorted(self.now.items())}

    def after(self, kind: str = "forgotten", seed: int = 0) -> Tree:
        """What is there when the power is back.

        ``forgotten``: nothing but what was flushed. ``names``: every name, and of what was not flushed no byte.
        ``half``: every name, and half of what was not flushed. ``chance``: by ``seed`` some of the names, and some of
        the bytes of each file, or zeros in their place.
        """
        rng = random.Random(seed)
        names = dict(self.kept) if kind in ("forgotten", "chance") else dict(self.now)
        if kind == "chance":
            for change in (change for folder in sorted(self.pending) for change in self.pending[folder]):
                if rng.random() < 0.5:
                    _put(names, change)
        content = _CONTENTS[kind]
        reached = (name for name in sorted(names) if all(p in names for p in _parents(name)))
        return {name: (file := names[name]) and content(file, rng) for name in reached}


_GONE = File()


def _put(names: dict[str, File | None], change: dict[str, File | None]) -> None:
    for name, file in change.items():
        if file is _GONE:
            names.pop(name, None)
        else:
            names[name] = file


def _parents(name: str) -> Iterable[str]:
    return [parent.as_posix() for parent in Path(name).parents if parent.as_posix() != "."]


def _half(file: File, rng: random.Random) -> bytes:
    return file.flushed + file.content[len(file.flushed) :][: (len(file.content) - len(file.flushed)) // 2]


def _some(file: File, rng: random.Random) -> bytes:
    unflushed = file.content[len(file.flushed) :]
    kept = unflushed[: rng.randint(0, len(unflushed))]
    return file.flushed + (kept if rng.random() < 0.7 else bytes(len(kept)))


_CONTENTS: dict[str, Callable[[File, random.Random], bytes]] = {
    "forgotten": lambda file, rng: file.flushed,
    "names": lambda file, rng: file.flushed,
    "half": _half,
    "chance": _some,
}


def lay_out(tree: Tree, folder: Path) -> Path:
    """Write a tree into a new folder."""
    folder.mkdir(parents=True)
    for name, data in tree.items():
        path = folder / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
    return folder
