"""A folder of pictures: ``metadata.jsonl`` or ``metadata.csv``, or text files beside each picture."""

import errno
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from kcache.fingerprints import file_sha256

from . import row_files
from .caption_files import caption_files, read_captions
from .dataset import DatasetOptions, Sample, Stat, stat_of, why_no_file, why_no_path
from .rows import BadRowError, RowReader, as_text, named
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
        texts = [name for name in folder.files if name.endswith(".txt")]
        for picture, names in caption_files(folder.pictures, texts).items():
            name, unnamed = as_id(folder.prefix + picture)
            make = partial(self._captioned, name, unnamed, folder.path, names)
            yield from self._reader.placed(name, make)

    def _captioned(self, name: str, unnamed: str | None, folder: str, texts: list[str]) -> Sample | None:
        captions, fault = read_captions(folder, texts)
        if not self._reader.keeps({"file_name": name, "text": captions}, f"'{name}'"):
            return None
        return Sample(name, captions, unnamed or fault, captionless=not unnamed and fault is not None)

    def _from_metadata(self, metadata: list[Path], folders: list[Folder]) -> Iterator[Sample]:
        """A sample for every row that is kept, and one for every picture without a row."""
        pictures = dict(as_id(folder.prefix + name) for folder in folders for name in folder.pictures)
        places: dict[str, str] = {}
        for path in metadata:
            table, text_cells = path.relative_to(self.root).as_posix(), path.suffix in row_files.DELIMITERS
            for line, row in row_files.rows(path):
                place, _ = as_id(f"{table}:{line}")
                yield from self._reader.placed(
                    place, partial(self._of_row, row, place, path.parent, pictures, places, text_cells=text_cells)
                )
        for name in sorted(pictures.keys() - places):
            yield from self._reader.placed(name, partial(self._without_row, name, pictures[name]), is_row=False)

    def _of_row(
        self,
        row: row_files.Cells | BadRowError,
        place: str,
        folder: Path,
        pictures: Mapping[str, str | None],
        places: dict[str, str],
        *,
        text_cells: bool,
    ) -> Sample | None:
        """The sample of one row; None where ``--where`` leaves it out. Notes in ``places`` which row has a picture."""
        if isinstance(row, BadRowError):
            raise row
        self._reader.note_fields(row)
        name = self._name(folder.relative_to(self.root).as_posix(), row)
        if name in places:
            raise BadRowError(f"it names '{name}', as {places[name]} did; give it one row, with a list of captions")
        places[name] = place
        if not self._reader.keeps(row, place, text_cells=text_cells):
            return None
        sample_id = name
        if self._reader.id_column:
            sample_id = self._reader.id(row)
            self._names[sample_id] = name
        # A row's file is a picture whatever its name ends with.
        return self._reader.sample(
            sample_id, row, pictures[name] if name in pictures else why_no_file(self.root / name)
        )

    def _without_row(self, name: str, unnamed: str | None) -> Sample | None:
        if not self._reader.keeps({self._name_column: name}, f"'{name}'"):
            return None
        return Sample(name, (), unnamed or "it has no row in the metadata", captionless=not unnamed)

    def _name(self, prefix: str, row: row_files.Cells) -> str:
        """The relative path of the picture that a row names."""
        column = self._name_column
        name = row.get(column)
        if not isinstance(name, str) or not name:
            raise BadRowError(f"it has no {column} (it has: {named(row)}); name the picture relative to this file")
        if fault := why_no_path(name):
            raise BadRowError(fault)
        pure = PurePosixPath(as_text(name, column))
        if pure.is_absolute() or ".." in pure.parts:
            raise BadRowError(f"it names '{name}', which lies outside of its folder")
        return as_id(str(PurePosixPath(prefix, pure)))[0]
