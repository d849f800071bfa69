"""Metadata files that carry their own checksum: JSON records and JSON lines."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import CacheError, DamageError

Record = dict[str, Any]
MAX_BYTES = 256 * 2**20
"""A larger metadata file is refused unread: nothing that kcache writes comes near it."""


def digest(value: object) -> str:
    """sha256 (hex) of a JSON value in its one canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def dump_record(record: Record) -> bytes:
    """One JSON object as the bytes of its file, with ``checksum`` as its last key."""
    sealed = {**record, "checksum": digest(record)}
    return (json.dumps(sealed, indent=1, ensure_ascii=False) + "\n").encode()


def load_record(path: Path) -> Record:
    """The record in ``path``; DamageError unless its bytes are exactly those that were written."""
    data = _read(path)
    try:
        sealed = json.loads(data)
        record = {key: value for key, value in sealed.items() if key != "checksum"}
        intact = dump_record(record) == data
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} is not a kcache record ({error}); run 'kcache verify' on its cache") from None
    if not intact:
        raise DamageError(f"{path} does not match its own checksum; run 'kcache verify' on its cache")
    return record


def dump_lines(lines: Iterable[object]) -> bytes:
    """JSON values, one a line, and a last line that holds their number and checksum."""
    texts = [json.dumps(line, ensure_ascii=False, separators=(", ", ": ")) for line in lines]
    body = "".join(text + "\n" for text in texts).encode()
    return body + _seal(body, len(texts))


def load_lines(path: Path) -> list[Any]:
    """The values in ``path`` without the seal; DamageError where a byte differs from what was written."""
    data = _read(path)
    body = data[: data[:-1].rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in body.split(b"\n")[:-1]]
        intact = data == body + _seal(body, len(lines))
    except (ValueError, RecursionError):
        lines, intact = [], False
    if not intact:
        raise DamageError(f"{path} does not match its own checksum; run 'kcache verify' on its cache")
    return lines


def _seal(body: bytes, lines: int) -> bytes:
    return (json.dumps({"lines": lines, "checksum": hashlib.sha256(body).hexdigest()}) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DamageError(f"{path} has {path.stat().st_size:,} bytes, more than any kcache record has")
        return path.read_bytes()
    except FileNotFoundError:
        raise CacheError(f"{path} does not exist; run 'kcache verify' on its cache") from None
