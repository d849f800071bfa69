"""A table that names picture files: ``.csv``, ``.tsv``, ``.jsonl``, or ``.parquet`` with a column of paths."""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from kcache.fingerprints import file_sha256

from .dataset import DatasetOptions, Sample, Stat, stat_of, why_no_file, why_no_path
from .row_files import Cells
from .rows import BadRowError, RowReader, as_text

IMAGE_COLUMNS = ("image", "file_name")
"""Where an image is looked for without ``--image-column``: the first of these that there is."""

PlacedRow = tuple[Path, str, Cells | BadRowError]
"""The folder that a row's paths are relative to, what the row is called, and its cells or what is wrong with it."""


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
            self.samples += self._reader.placed(place, partial(self._sample, folder, place, row))
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

    def _sample(self, folder: Path, place: str, row: Cells | BadRowError) -> Sample | None:
        if isinstance(row, BadRowError):
            raise row
        self._reader.note_fields(row)
        if not self._reader.keeps(row, place, text_cells=self._text_cells):
            return None
        path = self._path(row)
        sample_id = self._reader.id(row) if self._reader.id_column else self._reader.claim(path)
        file = os.path.join(folder, path)
        fault = why_no_file(file)
        if fault is None:
            self._files[sample_id] = (file, stat_of(file))
        return self._reader.sample(sample_id, row, fault)

    def _path(self, row: Cells) -> str:
        """The path in the image column as it is written."""
        self._column = self._column or image_column(row, self._reader)
        value = row.get(self._column)
        if value is None or value == "":
            raise BadRowError("it names no image")
        if not isinstance(value, str):
            raise BadRowError(f"its '{self._column}' is no path but {value!r}")
        if fault := why_no_path(value):
            raise BadRowError(fault)
        return as_text(value, f"'{self._column}'")


def image_column(fields: Iterable[str], reader: RowReader) -> str:
    """The column that holds images where the user names none. KcacheError when there is none of that name."""
    known = list(fields)
    column = next((name for name in IMAGE_COLUMNS if name in known), IMAGE_COLUMNS[0])
    reader.require("--image-column", column, known)
    return column
