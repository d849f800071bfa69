"""The files below a folder: pictures, caption files and metadata, through links and never in a circle."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kcache.shards import layout

PICTURES = frozenset(
    f".{name}"
    for name in (
        *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "tga", "avif", "heic", "heif", "jp2"),
    )
)
"""How the names of picture files end, in lower case."""

METADATA = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Folder:
    """What one folder holds itself. ``prefix`` leads from the root to it: ``""``, or a path that ends in ``/``."""

    path: str
    prefix: str
    files: list[str]

    @property
    def pictures(self) -> list[str]:
        """The names of its pictures."""
        return [name for name in self.files if is_picture(name)]

    @property
    def metadata(self) -> list[Path]:
        """Its metadata files."""
        return [Path(self.path, name) for name in self.files if name in METADATA]


def walk(root: Path) -> Iterator[Folder]:
    """Every folder below ``root`` and itself, each once; hidden ones are left out. Names in order."""
    entered = {root.resolve()}
    for path, folders, files in os.walk(root, followlinks=True):
        folders[:] = _not_entered(Path(path), folders, entered)
        relative = Path(path).relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        yield Folder(path, prefix, sorted(files))


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache of kcache."""
    return (folder / layout.ROOT_RECORD).is_file()


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture; a hidden file (``._a.jpg`` of macOS) is none."""
    return os.path.splitext(name)[1].lower() in PICTURES and not name.startswith(".")


NOT_UTF_8 = "its name is not UTF-8, which an id must be; rename it"


def as_id(name: str) -> tuple[str, str | None]:
    """The name and None; or the name with ``\\xe9`` for a byte that is not UTF-8, and why it cannot be encoded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), NOT_UTF_8
    return name, None


def _not_entered(folder: Path, names: list[str], entered: set[Path]) -> list[str]:
    """The folders to go on into: links too, after the real folders beside them, and none for a second time.

    None of them is a cache of kcache, whose shards are tars too.
    """
    fresh = []
    for name in sorted(names, key=lambda name: ((folder / name).is_symlink(), name)):
        target = (folder / name).resolve()
        if not name.startswith(".") and target not in entered and not is_cache(target):
            entered.add(target)
            fresh.append(name)
    return fresh
