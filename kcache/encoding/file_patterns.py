"""From a file, a folder or a pattern such as ``data/{00000..00012}.tar`` or ``data/*.parquet`` to files."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kcache.shards.errors import KcacheError

from .walk import METADATA, is_cache, is_picture, walk

_MAGIC = "*?[{"


@dataclass(frozen=True)
class Files:
    """Some files of one kind, in order of their names, and the folder that their names are relative to."""

    root: Path
    paths: Sequence[Path]

    @property
    def suffix(self) -> str:
        """How all of their names end."""
        return self.paths[0].suffix.lower()


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files: it has ``*``, ``?``, ``[`` or ``{``."""
    return any(character in name for character in _MAGIC)


def files_of_pattern(pattern: str) -> Files:
    """The files that a pattern names. KcacheError when one of its alternatives names none, or they are mixed."""
    from braceexpand import braceexpand

    try:
        alternatives = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise KcacheError(f"the braces of dataset {pattern} do not match: {error}") from None
    fixed = [part for part in Path(pattern).parts if part]
    root = Path(*fixed[: next(number for number, part in enumerate(fixed) if is_pattern(part))])
    found: dict[str, None] = {}
    for alternative in alternatives:
        # A name with a bracket that exists is that name, and no pattern.
        names = [alternative] if os.path.exists(alternative) else glob.glob(alternative, recursive=True)
        if not names:
            which = "" if alternatives == [pattern] else f" for {alternative}, one of {len(alternatives):,}"
            raise KcacheError(f"dataset {pattern} names no file{which}; check the pattern and the current folder")
        found.update(dict.fromkeys(name for name in names if not _is_in_cache(Path(name), root)))
    if not found:
        raise KcacheError(f"dataset {pattern} names nothing but files of caches of kcache; name those of a dataset")
    paths = sorted(Path(name) for name in found)
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise KcacheError(f"dataset {pattern} names files of several kinds ({', '.join(suffixes)}); name one kind")
    return Files(root, paths)


def _is_in_cache(path: Path, root: Path) -> bool:
    """Whether a file below ``root`` lies in a cache of kcache, whose shards are tars too."""
    return any(is_cache(folder) for folder in path.parents if folder.is_relative_to(root) and folder != Path("."))


def files_of_folder(root: Path) -> Files | None:
    """The ``.tar`` or ``.parquet`` files of a folder without pictures, or None for any other folder.

    Where both lie there they are tars: beside each tar img2dataset writes a ``.parquet`` of its metadata.
    """
    tars: list[Path] = []
    tables: list[Path] = []
    for folder in walk(root):
        for name in folder.files:
            if is_picture(name) or name in METADATA:
                return None
            path = Path(folder.path, name)
            if name.endswith((".tar", ".tar.gz", ".tgz")):  # Compressed ones are refused with a sentence.
                tars.append(path)
            elif name.endswith(".parquet"):
                tables.append(path)
    paths = tars or tables
    return Files(root, sorted(paths)) if paths else None
