"""Rows of text tables: ``.jsonl``, ``.csv`` and ``.tsv``, one row in memory at a time."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcache.shards.errors import KcacheError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""Tables whose cells are all text."""

SUFFIXES = (".jsonl", *DELIMITERS)


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(FILE:LINE, row)`` for every row; KcacheError naming the file and line of the first one that is wrong."""
    return _delimited(path, DELIMITERS[path.suffix]) if path.suffix in DELIMITERS else _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise KcacheError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise KcacheError(f"{path}:{number} is not a JSON object with file_name and a caption")
        yield f"{path}:{number}", value


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise KcacheError(
                    f"{path}:{reader.line_num} has {len(row[None]):,} more cells than the header;"
                    f" put a caption that contains a {'comma' if delimiter == ',' else 'tab'} in double quotes"
                )
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise KcacheError(f"{path}:{reader.line_num} is not CSV: {error}") from None


def _lines(path: Path) -> Iterator[str]:
    """The lines with their ends; only ``\\n`` ends one, so that no character of a caption does."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise KcacheError(
                    f"{path} is not UTF-8 text: {error.reason} at byte {error.start:,} of line {number:,}"
                ) from None
