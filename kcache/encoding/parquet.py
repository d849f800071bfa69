"""``.parquet`` files: rows a batch at a time, and images found by row without loading a file or a row group."""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

from .dataset import DatasetOptions, stat_of
from .file_patterns import Files
from .memory import Scans
from .path_table import PathTable, PlacedRow, image_column
from .rows import RowReader
from .saved_tables import cell_of
from .tables import Cell, Part, Table
from .walk import as_id

ROWS_AT_ONCE = 4096
"""Rows of captions and metadata that are read together."""

IMAGES_AT_ONCE = 32
"""Images that are read together. A row group may be the whole file, so it is never what is read at once."""

BATCHES_KEPT = 4
"""Batches of images in memory: the threads that prepare pictures ask for rows a little out of order."""


def open_parquet(name: str, files: Files, options: DatasetOptions, scans: Scans) -> Table | PathTable:
    """The samples of some parquet files with the same columns: of images, or of paths relative to each file."""
    options.refuse(f"dataset {name}, which is parquet files", "config_name", "split")
    opened = [_ParquetFile(path, as_id(path.relative_to(files.root).as_posix())[0]) for path in files.paths]
    fields = opened[0].fields
    reader = RowReader(f"dataset {name}", options, fields=fields)
    column = options.image_column or image_column(fields, reader)
    reader.require("--image-column", column, fields)
    kind = opened[0].kind(column)
    for file in opened:
        for needed in [column, *reader.columns]:
            if needed not in file.fields:
                raise KcacheError(
                    f"{file.path} has no column '{needed}', but {opened[0].path} has; name one kind of table"
                )
        if file.kind(column) != kind:
            raise KcacheError(f"column '{column}' of {file.path} is of another type than that of {opened[0].path}")
    if kind == "path":
        columns = list(dict.fromkeys([column, *reader.columns]))
        return PathTable(name, _placed_rows(opened, columns), options, fields=fields)
    rows = (row for file in opened for row in file.rows(reader.columns))
    return Table(ParquetImages(opened, column), rows, reader, options, scans)


class ParquetImages:
    """The image column of some parquet files. Reads forward; what was read last is kept."""

    def __init__(self, files: Sequence["_ParquetFile"], column: str) -> None:
        self._files, self._column = files, column
        self._lock = threading.Lock()
        self._cursor: _Cursor | None = None
        self.parts: list[Part] = []
        start = 0
        for file in files:
            key = [str(file.path.resolve()), column]
            stop = start + len(file)
            self.parts.append(Part(key, stat_of(file.path), start, stop, file.holds_all(column)))
            start = stop
        self._starts = [part.start for part in self.parts]

    def cell(self, row: int) -> Cell:
        """The image of one row; OSError where the file is damaged there."""
        number, row_in_file = self._find(row)
        file = self._files[number]
        group, row_in_group = file.group_of(row_in_file)
        with self._lock:
            cursor = self._cursor
            if cursor is None or cursor.at != (number, group) or cursor.is_behind(row_in_group):
                cursor = self._cursor = _Cursor((number, group), file, self._column)
            return cell_of(cursor.value(row_in_group), file.path.parent)

    def place(self, row: int) -> str:
        """Rows are numbered from 0 in each file."""
        number, row_in_file = self._find(row)
        return f"{self._files[number].name}, row {row_in_file}"

    def _find(self, row: int) -> tuple[int, int]:
        # The last part that begins there: one without rows may begin at the same row.
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]


class _Cursor:
    """A place in one row group of one file, from which batches of images are read forward."""

    def __init__(self, at: tuple[int, int], file: "_ParquetFile", column: str) -> None:
        self.at, self._path = at, file.path
        self._batches = file.batches(at[1], column)
        self._kept: deque[tuple[int, Any]] = deque(maxlen=BATCHES_KEPT)  # (first row, values)
        self._next = 0
        self._damage: str | None = None

    def is_behind(self, row: int) -> bool:
        """Whether a row was read and is not kept any more."""
        return bool(self._kept) and row < self._kept[0][0]

    def value(self, row: int) -> Any:
        """The cell of a row that `is_behind` is not true for."""
        while row >= self._next:
            self._advance()
        first, values = next(kept for kept in self._kept if kept[0] <= row < kept[0] + len(kept[1]))
        return values[row - first].as_py()

    def _advance(self) -> None:
        if self._damage is None:
            try:
                values = next(self._batches).column(0)
                self._kept.append((self._next, values))
                self._next += len(values)
                return
            except (OSError, ValueError, StopIteration) as error:  # Arrow's own errors are ValueErrors.
                self._damage = str(error).split("\n")[0] or "rows are missing"
        # The damage is kept, so that each row behind it does not read the row group again up to there.
        raise OSError(f"{self._path} is damaged: {self._damage}")


class _ParquetFile:
    """One file and its schema, opened anew for each use: there may be more of them than files may be open."""

    def __init__(self, path: Path, name: str) -> None:
        """Read the footer. KcacheError when it is no whole parquet file."""
        self.path, self.name = path, name
        try:
            with self._open() as file:
                self._schema, metadata = file.schema_arrow, file.metadata
                groups = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
                self._group_starts: list[int] = list(accumulate(groups, initial=0))
        except (OSError, ValueError) as error:
            cause = str(error).split("\n")[0].rstrip(". ")
            raise KcacheError(f"{path} is no whole parquet file ({cause}); copy it again") from None
        self.fields: list[str] = list(self._schema.names)

    def __len__(self) -> int:
        return self._group_starts[-1]

    def _open(self) -> Any:
        import pyarrow.parquet

        # Mapped, so that a batch costs the memory of its pages (each is unpacked whole) and not of its row group.
        return pyarrow.parquet.ParquetFile(self.path, memory_map=True, page_checksum_verification=True)

    def kind(self, column: str) -> str:
        """``"path"`` or ``"bytes"``. KcacheError for a column that can hold neither."""
        import pyarrow

        kind = self._schema.field(column).type
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if str(kind) in ("string", "large_string", "string_view"):
            return "path"
        is_image = pyarrow.types.is_struct(kind) and "bytes" in {field.name for field in kind}
        if is_image or str(kind) in ("binary", "large_binary", "binary_view"):
            return "bytes"
        raise KcacheError(
            f"column '{column}' of {self.path} holds no images but {kind}; choose another with --image-column"
        )

    def holds_all(self, column: str) -> bool:
        """Whether no image is a mere path: the column is of bytes, or its statistics count no row without them."""
        import pyarrow

        if not pyarrow.types.is_struct(self._schema.field(column).type):
            return True
        with self._open() as file:
            for group in range(file.metadata.num_row_groups):
                leaves = (file.metadata.row_group(group).column(leaf) for leaf in range(file.metadata.num_columns))
                leaf = next(leaf for leaf in leaves if leaf.path_in_schema == f"{column}.bytes")
                if not leaf.is_stats_set or not leaf.statistics.has_null_count or leaf.statistics.null_count:
                    return False
        return True

    def group_of(self, row: int) -> tuple[int, int]:
        """``(row group, row in it)`` of a row of the file."""
        group = bisect_right(self._group_starts, row) - 1
        return group, row - self._group_starts[group]

    def batches(self, group: int, column: str) -> Iterator[Any]:
        """The images of one row group, `IMAGES_AT_ONCE` rows at a time."""
        with self._open() as file:
            yield from file.iter_batches(IMAGES_AT_ONCE, row_groups=[group], columns=[column])

    def rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of the whole file with these columns. KcacheError where they are damaged."""
        try:
            with self._open() as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                    yield from batch.select(columns).to_pylist()
        except (OSError, ValueError) as error:
            raise KcacheError(f"{self.path} is damaged ({str(error).splitlines()[0]}); copy it again") from None


def _placed_rows(files: Sequence[_ParquetFile], columns: list[str]) -> Iterator[PlacedRow]:
    for file in files:
        for number, row in enumerate(file.rows(columns)):
            yield file.path.parent, f"{file.name}, row {number}", row
