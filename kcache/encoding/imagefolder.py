"""A folder of pictures: ``metadata.jsonl`` or ``metadata.csv``, or text files beside each picture."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from kcache.fingerprints import file_sha256
from kcache.shards.errors import KcacheError

from . import row_files
from .caption_files import caption_files, read_captions
from .dataset import DatasetOptions, Sample, Stat, stat_of
from .rows import RowReader
from .walk import Folder, as_id, walk


class ImageFolder:
    """Pictures under ``root``; a sample's id is its path relative to it, with ``/``, or its ``--id-column``."""

    def __init__(self, root: Path, options: DatasetOptions) -> None:
        """List the pictures and read their captions; no picture is opened."""
        self.root = root
        self._name_column = options.image_column or "file_name"
        self._names: dict[str, str] = {}  # with --id-column: the relative path of each id
        folders = list(walk(root))
        metadata = [path for folder in folders for path in folder.metadata]
        source = f"dataset {root}"
        if metadata:
            self._reader = RowReader(source, options, fields=None)
            samples = [*self._from_metadata(metadata, folders)]
        else:
            without = f"{source}, a folder of pictures without metadata.jsonl or metadata.csv"
            options.refuse(without, "image_column", "caption_column", "id_column")
            self._reader = RowReader(without, options, fields=("file_name", "text"))
            samples = [sample for folder in folders for sample in self._from_caption_files(folder)]
        self._reader.finish()
        self.samples = sorted(samples, key=lambda sample: sample.id)

    def read(self, sample_id: str) -> bytes:
        """The bytes of one picture."""
        return self._file(sample_id).read_bytes()

    def sha256(self, sample_id: str) -> str:
        """sha256 of one picture's bytes."""
        return file_sha256(self._file(sample_id))

    def stat(self, sample_id: str) -> Stat | None:
        """Size and time of change of one picture, or None when it is not there."""
        return stat_of(self._path(sample_id))

    def _path(self, sample_id: str) -> str:
        return os.path.join(self.root, self._names.get(sample_id, sample_id))

    def _file(self, sample_id: str) -> Path:
        """The path of a picture; OSError for one that is no file: to open a pipe would wait for ever."""
        path = Path(self._path(sample_id))
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return path

    def _from_caption_files(self, folder: Folder) -> Iterator[Sample]:
        pictures = folder.pictures
        texts = [name for name in folder.files if name.endswith(".txt")]
        for picture, names in caption_files(pictures, texts).items():
            captions, fault = read_captions(folder.path, names)
            name = as_id(folder.prefix + picture, self.root)
            row = {"file_name": name, "text": captions}
            if self._reader.keeps(row, f"'{name}'"):
                yield Sample(name, captions, fault)

    def _from_metadata(self, metadata: list[Path], folders: list[Folder]) -> Iterator[Sample]:
        """A sample for every row that is kept, and one for every picture without a row."""
        pictures = {as_id(folder.prefix + name, self.root) for folder in folders for name in folder.pictures}
        places: dict[str, str] = {}
        for path in metadata:
            prefix = path.parent.relative_to(self.root).as_posix()
            for place, row in row_files.rows(path):
                name = self._name(prefix, row, place)
                if name in places:
                    raise KcacheError(
                        f"{place} names '{name}', as {places[name]} did; give it one row, with a list of captions"
                    )
                places[name] = place
                self._reader.note_fields(row)
                if self._reader.keeps(row, place, text_cells=path.suffix in row_files.DELIMITERS):
                    # A row's file is a picture whatever its name ends with.
                    there = name in pictures or (self.root / name).is_file()
                    yield self._sample(name, row, place, there)
        for name in sorted(pictures.difference(places)):
            if self._reader.keeps({self._name_column: name}, f"'{name}'"):
                yield Sample(name, (), "it has no row in the metadata")

    def _sample(self, name: str, row: dict[str, Any], place: str, there: bool) -> Sample:
        # Where there is no caption column, the error lists the others: of these the name is none to choose.
        captions = self._reader.captions({key: row[key] for key in row if key != self._name_column}, place)
        sample_id = name
        if self._reader.id_column:
            sample_id = self._reader.id(row, place)
            self._names[sample_id] = name
        no_caption = None if captions else "its metadata row has no caption"
        return Sample(sample_id, captions, no_caption if there else "the file does not exist")

    def _name(self, prefix: str, row: dict[str, Any], place: str) -> str:
        """The relative path of the picture that a row names."""
        column = self._name_column
        name = row.get(column)
        if not isinstance(name, str) or not name:
            have = ", ".join(repr(str(key)) for key in row) or "nothing"
            raise KcacheError(
                f"{place} has no {column} (it has: {have}); name the picture relative to the metadata file"
            )
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise KcacheError(f"{place} names '{name}', which lies outside of its folder")
        return as_id(str(PurePosixPath(prefix, pure)), self.root)
