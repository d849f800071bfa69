"""Metadata files that carry their own checksum: JSON records and JSON lines."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CacheError, DamageError
from .files import read_plain

Record = dict[str, Any]
MAX_BYTES = 256 * 2**20
"""A larger metadata file is neither written nor read."""
_PIECE = 1 << 16
"""Numbers that are spelled at once."""


def digest(value: object) -> str:
    """sha256 (hex) of a JSON value in its one canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def digest_of_numbers(lists: Sequence[npt.NDArray[np.int64]]) -> str:
    """`digest` of lists of whole numbers, a piece at a time: ten million of them are too many for one text."""
    hashed = hashlib.sha256(b"[")
    for number, values in enumerate(lists):
        hashed.update(b",[" if number else b"[")
        for start in range(0, len(values), _PIECE):
            text = json.dumps(values[start : start + _PIECE].tolist(), separators=(",", ":"))
            hashed.update(f"{',' if start else ''}{text[1:-1]}".encode("ascii"))
        hashed.update(b"]")
    hashed.update(b"]")
    return hashed.hexdigest()


def dump_record(record: Record) -> bytes:
    """One JSON object as the bytes of its file, with ``checksum`` as its last key."""
    whole = {**record, "checksum": digest(record)}
    return _bounded((json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode())


def load_record(path: Path) -> Record:
    """The record in ``path``; DamageError unless its bytes are exactly those that were written."""
    data = read_plain(path, MAX_BYTES)
    try:
        whole = json.loads(data)
        record = {key: value for key, value in whole.items() if key != "checksum"}
        intact = dump_record(record) == data
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} is not a kcache record ({error}); run 'kcache verify' on its cache") from None
    if not intact:
        raise DamageError(f"{path} does not match its own checksum; run 'kcache verify' on its cache")
    return record


def dump_lines(lines: Iterable[object], **place: int) -> bytes:
    """JSON values, one a line, and a last line that holds their number and checksum, and the ``place`` of the file."""
    return _bounded(sealed(_body(lines), **place))


def load_lines(path: Path, **place: int) -> list[Any]:
    """The values in ``path`` without the seal; DamageError where a byte differs from what was written.

    A file that says no place is taken for that of its name: older ones say none.
    """
    return parse_lines(read_plain(path, MAX_BYTES), path, **place)


def parse_lines(data: bytes, path: Path, **place: int) -> list[Any]:
    """What `load_lines` makes of the bytes of ``path``."""
    try:
        body = unsealed(data, **place)
        lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
        intact = _body(lines) == body
    except (ValueError, RecursionError):
        lines, intact = [], False
    if not intact:
        raise DamageError(f"{path} does not match its own checksum; run 'kcache verify' on its cache")
    return lines


def sealed(body: bytes, **place: int) -> bytes:
    """Lines of text with a last line that holds their number and checksum."""
    seal = {"lines": body.count(b"\n"), "checksum": hashlib.sha256(body).hexdigest(), **place}
    return body + (json.dumps(seal) + "\n").encode()


def unsealed(data: bytes, **place: int) -> bytes:
    """The inverse of `sealed`; ValueError where a byte differs from what was sealed."""
    body = data[: data[:-1].rfind(b"\n") + 1]
    if data != sealed(body, **place) and data != sealed(body):
        raise ValueError("it does not match its own checksum")
    return body


def integer(record: Record, name: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """A whole number of a record; ValueError where it is another kind of value, or one that cannot be."""
    value = record[name]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"its {name} is not a number from {least:,} to {most:,}")
    return value


def string(record: Record, name: str) -> str:
    """A text of a record; ValueError where it is another kind of value."""
    value = record[name]
    if type(value) is not str:
        raise ValueError(f"its {name} is no text")
    return value


def mapping(record: Record, name: str) -> Record:
    """A record within a record; ValueError where it is another kind of value."""
    value = record[name]
    if type(value) is not dict:
        raise ValueError(f"its {name} is no record")
    return value


def _body(lines: Iterable[object]) -> bytes:
    texts = (json.dumps(line, ensure_ascii=False, separators=(", ", ": ")) for line in lines)
    return "".join(text + "\n" for text in texts).encode()


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise CacheError(
            f"a metadata file would have {len(data):,} bytes, more than the {MAX_BYTES:,} that are read; encode into"
            " another folder with a smaller --shard-size"
        )
    return data
