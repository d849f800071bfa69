"""What the options make of the rows of one source: which are kept, what identifies each, and its captions."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from kcache.progress import logger
from kcache.shards.errors import KcacheError
from kcache.where import Where

from .dataset import DatasetOptions, captions_of

Row = Mapping[str, Any]

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?")


class RowReader:
    """Applies ``--where``, ``--id-column`` and ``--caption-column`` to rows, and counts them.

    ``fields`` are the names that every row has; None where each row brings its own (JSON), so that only the end tells
    that a name was wrong. A ``place`` names a row in errors.
    """

    def __init__(
        self, source: str, options: DatasetOptions, *, caption_column: str = "text", fields: Collection[str] | None
    ) -> None:
        self.source, self._options = source, options
        self.caption_column = options.caption_column or caption_column
        self.id_column = options.id_column
        self._where = Where(options.where) if options.where is not None else None
        self._seen_fields: set[str] = set()
        self._seen_ids: set[str] = set()
        self._seen = self._kept = 0
        if fields is not None:
            self.check(fields)
            self._seen_fields.update(fields)

    @property
    def columns(self) -> list[str]:
        """The columns that a row must bring along: of its caption and id, and those that ``--where`` looks at."""
        wanted = [self.caption_column, self.id_column, *sorted(self._where.names if self._where else ())]
        return list(dict.fromkeys(name for name in wanted if name))

    def check(self, fields: Collection[str]) -> None:
        """KcacheError or UsageError for the first option that names a column which is not among ``fields``."""
        for option, column in (("--caption-column", self.caption_column), ("--id-column", self.id_column)):
            if column is not None:
                self.require(option, column, fields)
        if self._where:
            self._where.check(fields, self.source)

    def require(self, option: str, column: str, fields: Collection[str]) -> None:
        """KcacheError when ``column``, which ``option`` chose, is not among ``fields``."""
        if column not in fields:
            have = ", ".join(repr(name) for name in fields) or "none"
            raise KcacheError(f"{self.source} has no column '{column}' (it has: {have}); choose one with {option}")

    def note_fields(self, fields: Iterable[str]) -> None:
        """Remember names that some row has, for `finish`."""
        self._seen_fields.update(fields)

    def keeps(self, row: Row, place: str, *, text_cells: bool = False) -> bool:
        """Whether ``--where`` keeps a row. In ``text_cells`` (csv) what reads as a number is one, and '' is None.

        Several captions are to ``--where`` one text of as many lines: ``"cat" in text`` looks into each.
        """
        self._seen += 1
        if self._where is not None:
            values = {name: _typed(row.get(name)) if text_cells else row.get(name) for name in self._where.names}
            captions = values.get(self.caption_column)
            if isinstance(captions, list | tuple) and all(isinstance(caption, str) for caption in captions):
                values[self.caption_column] = "\n".join(captions) if captions else None
            if not self._where.keeps(values, place):
                return False
        self._kept += 1
        return True

    def id(self, row: Row, place: str) -> str:
        """What ``--id-column`` says: text or a whole number. KcacheError when it is missing, empty or there already."""
        value = row.get(str(self.id_column))
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            have = "nothing" if value is None else repr(value)
            raise KcacheError(
                f"{place} has {have} in column '{self.id_column}', which is to be its id;"
                " give every row a text or whole number of its own there, or choose another --id-column"
            )
        name = captions_of(str(value), f"{place}: column '{self.id_column}'")[0]
        if name in self._seen_ids:
            raise KcacheError(
                f"{place} has the id '{name}' in column '{self.id_column}', as a row before it has;"
                " give every row an id of its own, or choose another --id-column"
            )
        self._seen_ids.add(name)
        return name

    def captions(self, row: Row, place: str) -> tuple[str, ...]:
        """The captions of a row; none where it has null. KcacheError when it has no such column."""
        if self.caption_column not in row:
            have = ", ".join(repr(str(key)) for key in row) or "none"
            raise KcacheError(
                f"{place} has no column '{self.caption_column}' (it has: {have}); choose one with --caption-column"
            )
        return captions_of(row[self.caption_column], f"{place}: column '{self.caption_column}'")

    def finish(self, **columns: str | None) -> None:
        """After the last row: refuse names that no row has and a ``--where`` that keeps nothing; say what it keeps.

        ``columns`` are further ones to be found: ``image_column="photo"``.
        """
        if not self._seen:
            return
        for option, column in columns.items():
            if column is not None:
                self.require(f"--{option.replace('_', '-')}", column, sorted(self._seen_fields))
        if self._where is None:
            return
        self._where.check(self._seen_fields, self.source)
        if not self._kept:
            raise KcacheError(
                f"--where '{self._where.expression}' keeps 0 of the {self._seen:,} samples of {self.source};"
                " look at their metadata, and loosen it"
            )
        logger.info("--where keeps %s of %s samples", f"{self._kept:,}", f"{self._seen:,}")


def _typed(cell: Any) -> Any:
    """A csv cell as ``--where`` compares it. '007' stays text: what would not be written so again is no number."""
    if not isinstance(cell, str) or not (number := _NUMBER.fullmatch(cell)):
        return cell or None
    return float(cell) if number[2] else int(cell)
