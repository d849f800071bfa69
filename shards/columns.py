"""What one column holds: its fields, and the fingerprint of everything that shaped their values."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import layout
from .commits import reference
from .errors import CacheError
from .records import Record, digest, integer, mapping, string

DTYPES = ("float16", "float32", "int32")
"""What a field may be stored as (numpy has no bf16)."""

MAX_DIMENSIONS = 8
_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Field:
    """One array of every sample. A first dimension of None differs from sample to sample."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        inner = self.shape[1:] if self.shape else ()
        sizes = [n for n in self.shape if n is not None]
        right = all(type(n) is int and 0 < n < 2**31 for n in sizes) and None not in inner
        if self.dtype not in DTYPES or not right or len(self.shape) > MAX_DIMENSIONS or self.row_bytes >= 2**32:
            raise CacheError(
                f"field '{self.name}' has dtype {self.dtype} and shape {self.shape}; kcache knows {DTYPES}, and arrays"
                f" of up to {MAX_DIMENSIONS} dimensions and 4 GB"
            )
        if not _FIELD_NAME.fullmatch(self.name):
            raise CacheError(f"a field is called {self.name!r}; names are of lower-case letters, digits and '_'")

    @property
    def is_ragged(self) -> bool:
        """Whether samples differ in their first dimension."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample, or of one step along the ragged dimension."""
        sizes = [n for n in self.shape if n is not None]
        return np.dtype(self.dtype).itemsize * math.prod(sizes)

    def shape_of(self, nbytes: int) -> tuple[int, ...]:
        """The shape of a stored array of ``nbytes`` bytes."""
        return tuple(nbytes // self.row_bytes if n is None else n for n in self.shape)


@dataclass(frozen=True)
class Column:
    """A kind of feature, as written once to ``columns/NAME.json``.

    ``reads`` names the part of a sample that the features are made from, ``image`` or ``captions``. ``encoder`` (class,
    configuration, sha256 of the weights) and ``preprocessing`` are JSON values. ``null`` names the file of the null
    features with its digests, or is None for a column that has none. ``notes`` (where the weights came from, versions)
    is for people and stands outside the fingerprint. ``edition`` counts how often the column was made anew by another
    encoder; each edition has files of its own, so that two encoders never mix.
    """

    name: str
    reads: str
    fields: tuple[Field, ...]
    encoder: Record
    preprocessing: Record
    encode_dtype: str
    null: Record | None = None
    notes: Record = field(default_factory=dict)
    edition: int = 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that shapes the stored values."""
        return digest(
            {
                "fields": [asdict(f) for f in self.fields],
                "encoder": self.encoder,
                "preprocessing": self.preprocessing,
                "encode_dtype": self.encode_dtype,
            }
        )

    @property
    def stem(self) -> str:
        """What the files of this edition are named after."""
        return layout.stem(self.name, self.edition)

    def input_key(self, source: object) -> str:
        """The key of one row: what it was made from (a JSON value), with the fingerprint. Equal key, equal features."""
        return digest([self.fingerprint, source])

    def key_of(self, row: Mapping[str, Any]) -> str | None:
        """The key that a row of the samples column has here, or None where it has no features (set aside, removed)."""
        if "set_aside" in row or "removed" in row:
            return None
        return self.input_key(row["sha256"] if self.reads == "image" else row["captions"])

    def to_record(self) -> Record:
        """The content of ``columns/NAME.json``."""
        return {**asdict(self), "fields": [asdict(f) for f in self.fields], "fingerprint": self.fingerprint}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Column":
        """The inverse of `to_record`; CacheError where the record's fingerprint is not that of its content."""
        record = {"null": None, "notes": {}, "edition": 1, **record}
        try:
            column = cls(
                name=string(record, "name"),
                reads=string(record, "reads"),
                fields=tuple(Field(string(f, "name"), string(f, "dtype"), tuple(f["shape"])) for f in record["fields"]),
                encoder=mapping(record, "encoder"),
                preprocessing=mapping(record, "preprocessing"),
                encode_dtype=string(record, "encode_dtype"),
                null=_null(mapping(record, "null")) if record["null"] is not None else None,
                notes=mapping(record, "notes"),
                edition=integer(record, "edition", least=1),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(
                f"the record of column {record.get('name')!r:.80} is not one that kcache wrote: {error}"
            ) from None
        names = {f.name for f in column.fields}
        if column.reads not in ("image", "captions") or not names or len(names) != len(column.fields):
            raise CacheError(f"the record of column '{column.name}' has fields or a source that kcache never writes")
        if column.fingerprint != record.get("fingerprint"):
            raise CacheError(f"the record of column '{column.name}' has another fingerprint than its content")
        return column


def _null(record: Record) -> Record:
    return {**reference(record), "index": reference(mapping(record, "index"))}


def differences(existing: Column, wanted: Column) -> list[str]:
    """How a column that is wanted differs from the one that exists, each in a few words."""
    found = []
    if existing.encoder.get("weights") != wanted.encoder.get("weights"):
        found.append("encoder weights differ")
    for part in ("encoder", "preprocessing"):
        old, new = getattr(existing, part), getattr(wanted, part)
        keys = sorted({*old, *new} - {"weights"})
        found += [f"{k} is {old.get(k)!r}, not {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
    if existing.encode_dtype != wanted.encode_dtype:
        found.append(f"encode dtype is {existing.encode_dtype}, not {wanted.encode_dtype}")
    stored = _store_dtype(existing), _store_dtype(wanted)
    if stored[0] != stored[1]:
        found.append("store dtype is {}, not {}".format(*stored))
    elif existing.fields != wanted.fields:
        old_fields, new_fields = ([f"{f.name} {f.dtype} {list(f.shape)}" for f in c.fields] for c in (existing, wanted))
        found.append(f"fields are {old_fields}, not {new_fields}")
    return found


def _store_dtype(column: Column) -> str:
    """What its features are stored in, as options say it."""
    names = {"float16": "fp16", "float32": "fp32"}
    return next((names[field.dtype] for field in column.fields if field.dtype in names), "")
