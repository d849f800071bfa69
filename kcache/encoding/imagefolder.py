"""A folder of pictures: ``metadata.jsonl`` or ``metadata.csv``, or a text file beside each picture."""

import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from kcache.fingerprints import file_sha256
from kcache.shards.errors import KcacheError

from .dataset import DatasetOptions, Sample, Stat, captions_of

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "tga", "avif", "heic", "heif", "jp2"),
    )
)
METADATA = ("metadata.jsonl", "metadata.csv")


class ImageFolder:
    """Pictures under ``root``; a sample's id is its path relative to it, with ``/``."""

    def __init__(self, root: Path, options: DatasetOptions) -> None:
        """List the pictures and read their captions; no picture is opened."""
        self.root = root
        pictures, metadata = _walk(root)
        rows = dict(_metadata_rows(root, metadata, (options.caption_column or "text"))) if metadata else {}
        # A row's file is a picture whatever its name ends with.
        pictures |= {name: None for name in rows if name not in pictures and (root / name).is_file()}
        found = [self._sample(name, rows, bool(metadata)) for name in pictures]
        lost = [
            Sample(name, captions, "the file does not exist") for name, captions in rows.items() if name not in pictures
        ]
        self.samples = sorted([*found, *lost], key=lambda sample: sample.id)

    def read(self, sample_id: str) -> bytes:
        """The bytes of one picture."""
        return self._file(sample_id).read_bytes()

    def sha256(self, sample_id: str) -> str:
        """sha256 of one picture's bytes."""
        return file_sha256(self._file(sample_id))

    def stat(self, sample_id: str) -> Stat | None:
        """Size and time of change of one picture, or None when it is not there."""
        try:
            stat = (self.root / sample_id).stat()
        except OSError:
            return None
        return stat.st_size, stat.st_mtime_ns

    def _file(self, sample_id: str) -> Path:
        """The path of a picture; OSError for one that is no file: to open a pipe would wait for ever."""
        path = self.root / sample_id
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return path

    def _sample(self, name: str, rows: dict[str, tuple[str, ...]], has_metadata: bool) -> Sample:
        if name in rows:
            captions, fault = rows[name], None if rows[name] else "its metadata row has no caption"
        elif has_metadata:
            captions, fault = (), "it has no row in the metadata"
        else:
            captions, fault = _sidecar(self.root / name)
        return Sample(name, captions, fault)


def _walk(root: Path) -> tuple[dict[str, None], list[Path]]:
    """The relative names of all pictures (in a dict, for its fast ``in``), and the metadata files."""
    pictures: dict[str, None] = {}
    metadata = []
    entered = {root.resolve()}
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = _not_entered(Path(folder), folders, entered)
        for name in sorted(files):
            if name in METADATA:
                metadata.append(Path(folder, name))
            elif os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                pictures[_relative(root, Path(folder, name))] = None
    return pictures, metadata


def _not_entered(folder: Path, names: list[str], entered: set[Path]) -> list[str]:
    """The folders to go on into: links too, after the real folders beside them, and none for a second time."""
    fresh = []
    for name in sorted(names, key=lambda name: ((folder / name).is_symlink(), name)):
        target = (folder / name).resolve()
        if not name.startswith(".") and target not in entered:
            entered.add(target)
            fresh.append(name)
    return fresh


def _relative(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise KcacheError(f"the name of {name!r} in {root} is not valid UTF-8; rename the file") from None
    return name


def _sidecar(picture: Path) -> tuple[tuple[str, ...], str | None]:
    """The caption beside a picture: ``a.png.txt`` if there is one, else ``a.txt``."""
    for path in (picture.with_name(picture.name + ".txt"), picture.with_suffix(".txt")):
        if path.is_file():
            try:
                return (path.read_text("utf-8-sig").strip(),), None
            except UnicodeDecodeError:
                return (), f"its caption file {path.name} is not UTF-8 text"
    return (), "it has no caption: neither metadata.jsonl, metadata.csv nor a .txt file beside it"


def _metadata_rows(root: Path, files: list[Path], column: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """``(id, captions)`` of every row; KcacheError naming the file and line of the first one that is wrong."""
    seen: dict[str, str] = {}
    for path in files:
        for line, row in _rows(path):
            place = f"{path}:{line}"
            name = _id(root, path.parent, row, place)
            if name in seen:
                raise KcacheError(
                    f"{place} names '{name}', as {seen[name]} did; give it one row, with a list of captions"
                )
            seen[name] = place
            yield name, _captions(row, column, place)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KcacheError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,}") from None
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                if None in row:
                    raise KcacheError(
                        f"{path}:{reader.line_num} has {len(row[None]):,} more cells than the header;"
                        " put a caption that contains a comma in double quotes"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise KcacheError(f"{path}:{reader.line_num} is not CSV: {error}") from None
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise KcacheError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise KcacheError(f"{path}:{number} is not a JSON object with file_name and a caption")
            yield number, value


def _id(root: Path, folder: Path, row: dict[str, Any], place: str) -> str:
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        have = ", ".join(repr(str(key)) for key in row) or "nothing"
        raise KcacheError(f"{place} has no file_name (it has: {have}); name the picture relative to the metadata file")
    pure = PurePosixPath(file_name)
    if pure.is_absolute() or ".." in pure.parts:
        raise KcacheError(f"{place} names '{file_name}', which lies outside of its folder")
    return _relative(root, folder / pure)


def _captions(row: dict[str, Any], column: str, place: str) -> tuple[str, ...]:
    if column not in row:
        have = ", ".join(repr(str(key)) for key in row if key != "file_name") or "none"
        raise KcacheError(f"{place} has no column '{column}' (it has: {have}); choose one with --caption-column")
    return captions_of(row[column], f"{place}: column '{column}'")
