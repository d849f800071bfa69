"""Rows of text tables: ``.jsonl``, ``.csv`` and ``.tsv``, one row in memory at a time."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

from .rows import BadRowError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Tables whose cells are all text."""

SUFFIXES = (".jsonl", *DELIMITERS)


Cells = dict[str, Any]

NOT_UTF_8 = "it is not UTF-8 text; save the file as UTF-8"
_NO_BYTE_OF_TEXT = re.compile("[\udc80-\udcff]")


def rows(path: Path) -> Iterator[tuple[int, Cells | BadRowError]]:
    """``(line, cells)`` for every row, and what is wrong with a row that has none.

    KcacheError for a header that is no header of this kind of table.
    """
    return _delimited(path, DELIMITERS[path.suffix]) if path.suffix in DELIMITERS else _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[int, Cells | BadRowError]]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield number, _json_row(line)


def _json_row(line: str) -> Cells | BadRowError:
    if _is_not_utf_8(line):
        return BadRowError(NOT_UTF_8)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRowError(f"it is not JSON: {error}")
    return value if isinstance(value, dict) else BadRowError("it is no JSON object with file_name and a caption")


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, Cells | BadRowError]]:
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    _require_header(path, _header(path, reader), delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.reader.line_num, BadRowError(f"it is not CSV: {error}")
        else:
            yield reader.reader.line_num, _delimited_row(row, delimiter)


def _delimited_row(row: dict[Any, Any], delimiter: str) -> Cells | BadRowError:
    if None in row:
        mark = "comma" if delimiter == "," else "tab"
        return BadRowError(
            f"it has {len(row[None]):,} more cells than the header;"
            f" put a caption that contains a {mark} in double quotes"
        )
    return BadRowError(NOT_UTF_8) if any(_is_not_utf_8(cell) for cell in row.values() if cell) else row


def _header(path: Path, reader: "csv.DictReader[str]") -> list[str]:
    """The names of the columns; none where the file is empty."""
    try:
        return list(reader.fieldnames or ())
    except csv.Error as error:
        raise KcacheError(f"{path}:1 is not CSV: {error}; its first line must name the columns") from None


def _require_header(path: Path, names: list[str], delimiter: str) -> None:
    """KcacheError for a header in another encoding, or whose names are separated by something else."""
    if any(_is_not_utf_8(name) or "\0" in name for name in names):
        raise KcacheError(f"the first line of {path} is not UTF-8 text; save the table as UTF-8")
    others = [mark for mark in (*DELIMITERS.values(), ";") if mark != delimiter and mark in "".join(names)]
    if len(names) == 1 and others:
        spelled = {",": "commas", "\t": "tabs", ";": "semicolons"}
        raise KcacheError(
            f"the first line of {path} is one cell, {names[0]!r}: it is separated by {spelled[others[0]]}, and a"
            f" {path.suffix} file has {spelled[delimiter]}; save it with {spelled[delimiter]}"
        )


def _lines(path: Path) -> Iterator[str]:
    """The lines with their ends; only ``\\n`` ends one, so that no character of a caption does.

    A byte that is not UTF-8 becomes half of a surrogate pair, so that the lines around it can be read.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")


def _is_not_utf_8(text: str) -> bool:
    return _NO_BYTE_OF_TEXT.search(text) is not None
