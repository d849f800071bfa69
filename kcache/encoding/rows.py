"""What the options make of the rows of one source: which are kept, what identifies each, and its captions."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from kcache.progress import logger
from kcache.shards.errors import KcacheError
from kcache.where import Where

from .dataset import DatasetOptions, Sample

Row = Mapping[str, Any]

_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,17})?")


class BadRowError(Exception):
    """Why one row of a source cannot be used, where the others can."""


class RowReader:
    """Applies ``--where``, ``--id-column`` and ``--caption-column`` to rows, and counts them.

    ``fields`` are the names that every row has; None where each row brings its own (JSON), so that only the end tells
    that a name was wrong. A ``place`` names a row.
    """

    def __init__(
        self, source: str, options: DatasetOptions, *, caption_column: str = "text", fields: Collection[str] | None
    ) -> None:
        self.source, self._options = source, options
        self.caption_column = options.caption_column or caption_column
        self.id_column = options.id_column
        self._where = Where(options.where) if options.where is not None else None
        self._seen_fields: set[str] = set()
        self._ids: set[str] = set()
        self._usable = self._seen = self._kept = 0
        self._place = ""
        self._first_bad: str | None = None
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
            raise KcacheError(
                f"{self.source} has no column '{column}' (it has: {named(fields)}); choose one with {option}"
            )

    def note_fields(self, fields: Iterable[str]) -> None:
        """Remember names that some row has, for `finish`."""
        self._seen_fields.update(fields)

    def placed(self, place: str, make: Callable[[], Sample | None], *, is_row: bool = True) -> Iterator[Sample]:
        """The sample that ``make`` gives, if any; one that is set aside under its place where it raises BadRowError.

        A picture may have no row (``is_row``), and then says nothing of whether the rows are usable.
        """
        self._place = place
        self._usable += is_row
        try:
            sample = make()
        except BadRowError as error:
            self._note_bad(error)
            sample = Sample(place, (), str(error))
        else:
            self._seen += 1
            self._kept += sample is not None
        if sample is not None:
            yield sample

    def _note_bad(self, error: BadRowError) -> None:
        self._usable -= 1
        self._first_bad = self._first_bad or f"{self._place}: {error}"

    def keeps(self, row: Row, place: str, *, text_cells: bool = False) -> bool:
        """Whether ``--where`` keeps a row. In ``text_cells`` (csv) what reads as a number is one, and '' is None.

        Several captions are to ``--where`` one text of as many lines: ``"cat" in text`` looks into each. BadRowError
        where the condition has no answer.
        """
        if self._where is None:
            return True
        values = {name: _typed(row.get(name)) if text_cells else row.get(name) for name in self._where.names}
        captions = values.get(self.caption_column)
        if isinstance(captions, list | tuple) and all(isinstance(caption, str) for caption in captions):
            values[self.caption_column] = "\n".join(captions) if captions else None
        try:
            return self._where.keeps(values, place)
        except KcacheError as error:
            raise BadRowError(str(error)) from None

    def id(self, row: Row) -> str:
        """What ``--id-column`` says: text or a whole number. BadRowError when it is missing, empty or there already."""
        value = row.get(str(self.id_column))
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            have = "nothing" if value is None else repr(value)
            raise BadRowError(
                f"it has {have} in column '{self.id_column}', which is to be its id;"
                " give every row a text or whole number of its own there, or choose another --id-column"
            )
        return self.claim(as_text(str(value), f"column '{self.id_column}'"))

    def claim(self, sample_id: str) -> str:
        """The id itself, which no later row can have then. BadRowError where a row before has it."""
        if sample_id in self._ids:
            raise BadRowError(f"it is '{sample_id}', as a row before it is; give that one a list of captions")
        self._ids.add(sample_id)
        return sample_id

    def sample(self, sample_id: str, row: Row, fault: str | None = None) -> Sample:
        """The sample of a row. ``fault`` says why its picture cannot be had, if it cannot."""
        try:
            captions, no_caption = captions_of(row, self.caption_column), None
        except BadRowError as error:
            self._note_bad(error)
            captions, no_caption = (), str(error)
        if not captions and not no_caption:
            no_caption = f"it has no caption: its '{self.caption_column}' is empty"
        return Sample(sample_id, captions, fault or no_caption, captionless=fault is None and no_caption is not None)

    def require_usable(self) -> None:
        """KcacheError where no row so far can be used: that is a wrong option or file, and no row that is wrong."""
        if self._first_bad and not self._usable:
            raise KcacheError(f"{self.source} has no row that can be used; the first is {self._first_bad}")

    def finish(self, **columns: str | None) -> None:
        """After the last row: refuse names that no row has, and rows of which none is usable; say what is kept.

        ``columns`` are further ones to be found: ``image_column="photo"``.
        """
        if not self._seen and not self._first_bad:
            return
        chosen = {"caption_column": self.caption_column, "id_column": self.id_column, **columns}
        for option, column in chosen.items():
            if column is not None and self._seen_fields:
                self.require(f"--{option.replace('_', '-')}", column, sorted(self._seen_fields))
        self.require_usable()
        if self._where is None:
            return
        self._where.check(self._seen_fields, self.source)
        if not self._kept:
            raise KcacheError(
                f"--where '{self._where.expression}' keeps 0 of the {self._seen:,} samples of {self.source};"
                " look at their metadata, and loosen it"
            )
        logger.info("--where keeps %s of %s samples", f"{self._kept:,}", f"{self._seen:,}")


def captions_of(row: Row, column: str) -> tuple[str, ...]:
    """The caption or list of captions in one cell as a tuple; none for null. BadRowError for anything else."""
    if column not in row:
        raise BadRowError(f"it has no '{column}' (it has: {named(row)})")
    value = row[column]
    captions = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise BadRowError(f"its '{column}' is neither a caption nor a list of captions: {value!r}")
    return tuple(as_text(caption, f"'{column}'") for caption in captions)


def as_text(value: str, what: str) -> str:
    """The text itself. BadRowError for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"its {what} has half of a surrogate pair, which is no character: {value!r}") from None
    return value


def named(row: Iterable[object]) -> str:
    """The names of a row's cells, as messages list them."""
    return ", ".join(repr(str(key)) for key in row) or "nothing"


def _typed(cell: Any) -> Any:
    """A csv cell as ``--where`` compares it. '007' stays text: what would not be written so again is no number."""
    if not isinstance(cell, str) or not (number := _NUMBER.fullmatch(cell)):
        return cell or None
    return float(cell) if number[2] else int(cell)
