"""A table that names picture files: ``.csv``, ``.tsv``, ``.jsonl``, or ``.parquet`` with a column of paths."""

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kcache.fingerprints import file_sha256
from kcache.shards.errors import KcacheError

from .dataset import DatasetOptions, Sample, Stat
from .rows import RowReader

IMAGE_COLUMNS = ("image", "file_name")
"""Where an image is looked for without ``--image-column``: the first of these that there is."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")

PlacedRow = tuple[Path, str, Mapping[str, Any]]
"""The folder that a row's paths are relative to, how errors name the row, and its cells."""


class PathTable:
    """Pictures that a table names, in its order. A sample's id is its path as written, or its ``--id-column``.

    Paths may be absolute and may have ``..``: that is what people have in such tables, and nothing is written there.
    """

    def __init__(
        self,
        name: str,
        rows: Iterable[PlacedRow],
        options: DatasetOptions,
        *,
        fields: list[str] | None = None,
        text_cells: bool = False,
    ) -> None:
        """Read the table, and the size and time of each file; no picture is opened."""
        self._reader = RowReader(f"dataset {name}", options, fields=fields)
        self._text_cells = text_cells
        self._column = options.image_column or (image_column(fields, self._reader) if fields else None)
        self._files: dict[str, tuple[str, Stat | None]] = {}
        self.samples: list[Sample] = []
        for folder, place, row in rows:
            if fields is None:
                self._reader.note_fields(row)
            if self._reader.keeps(row, place, text_cells=text_cells):
                self.samples.append(self._sample(folder, place, row))
        self._reader.finish(image_column=self._column)

    def read(self, sample_id: str) -> bytes:
        """The bytes of one picture."""
        return self._file(sample_id).read_bytes()

    def sha256(self, sample_id: str) -> str:
        """sha256 of one picture's bytes."""
        return file_sha256(self._file(sample_id))

    def stat(self, sample_id: str) -> Stat | None:
        """Size and time of change of one picture when the table was read, or None when it was not there."""
        return self._files.get(sample_id, ("", None))[1]

    def _file(self, sample_id: str) -> Path:
        path, known = self._files.get(sample_id, ("", None))
        if known is None:
            raise OSError("it is no file")
        return Path(path)

    def _sample(self, folder: Path, place: str, row: Mapping[str, Any]) -> Sample:
        captions = self._reader.captions(row, place)
        path = self._path(place, row)
        sample_id = self._reader.id(row, place) if self._reader.id_column else path or place
        fault = None if captions else f"{place} has no caption"
        if not path:
            return Sample(sample_id, captions, f"{place} names no image")
        file = os.path.join(folder, path)
        try:
            found = os.stat(file)
        except (OSError, ValueError):  # ValueError: a path with a NUL
            return Sample(sample_id, captions, "the file does not exist")
        if not stat.S_ISREG(found.st_mode):
            return Sample(sample_id, captions, "it is not a regular file")
        self._files[sample_id] = (file, (found.st_size, found.st_mtime_ns))
        return Sample(sample_id, captions, fault)

    def _path(self, place: str, row: Mapping[str, Any]) -> str | None:
        """The path in the image column as it is written; None where the cell is empty."""
        self._column = self._column or image_column(row, self._reader)
        value = row.get(self._column)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise KcacheError(
                f"{place}: column '{self._column}' is no path but {value!r}; choose one with --image-column"
            )
        if _URL.match(value):
            raise KcacheError(
                f"{place}: '{value}' is an address, and kcache downloads no pictures; fetch them first with img2dataset"
                " (output_format webdataset), and encode its tars"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise KcacheError(f"{place}: {value!r} has half of a surrogate pair; correct the path") from None
        return value


def image_column(fields: Iterable[str], reader: RowReader) -> str:
    """The column that holds images where the user names none. KcacheError when there is none of that name."""
    known = list(fields)
    column = next((name for name in IMAGE_COLUMNS if name in known), IMAGE_COLUMNS[0])
    reader.require("--image-column", column, known)
    return column
