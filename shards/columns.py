"""What one column holds: its fields, and the fingerprint of everything that shaped their values."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .errors import CacheError
from .records import Record, digest

DTYPES = ("float16", "float32", "int32")
"""What a field may be stored as (numpy has no bf16)."""


@dataclass(frozen=True)
class Field:
    """One array of every sample. A first dimension of None differs from sample to sample."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        inner = self.shape[1:] if self.shape else ()
        sizes = [n for n in self.shape if n is not None]
        if self.dtype not in DTYPES or None in inner or not all(isinstance(n, int) and 0 < n < 2**31 for n in sizes):
            raise CacheError(
                f"field '{self.name}' has dtype {self.dtype} and shape {self.shape}; kcache knows {DTYPES}"
            )

    @property
    def is_ragged(self) -> bool:
        """Whether samples differ in their first dimension."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample, or of one step along the ragged dimension."""
        sizes = [n for n in self.shape if n is not None]
        return int(np.dtype(self.dtype).itemsize * np.prod(sizes, dtype=np.int64))

    def shape_of(self, nbytes: int) -> tuple[int, ...]:
        """The shape of a stored array of ``nbytes`` bytes."""
        return tuple(nbytes // self.row_bytes if n is None else n for n in self.shape)


@dataclass(frozen=True)
class Column:
    """A kind of feature, as written once to ``columns/NAME.json``.

    ``reads`` names the part of a sample that the features are made from, ``image`` or ``captions``. ``encoder`` (class,
    configuration, sha256 of the weights) and ``preprocessing`` are JSON values. ``null`` names the file of the null
    features with its digests, or is None for a column that has none. ``notes`` (where the weights came from, versions)
    is for people and stands outside the fingerprint.
    """

    name: str
    reads: str
    fields: tuple[Field, ...]
    encoder: Record
    preprocessing: Record
    encode_dtype: str
    null: Record | None = None
    notes: Record = field(default_factory=dict)

    @property
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

    def input_key(self, source: object) -> str:
        """The key of one row: what it was made from (a JSON value), with the fingerprint. Equal key, equal features."""
        return digest([self.fingerprint, source])

    def to_record(self) -> Record:
        """The content of ``columns/NAME.json``."""
        return {**asdict(self), "fields": [asdict(f) for f in self.fields], "fingerprint": self.fingerprint}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Column":
        """The inverse of `to_record`; CacheError where the record's fingerprint is not that of its content."""
        values = {key: value for key, value in record.items() if key != "fingerprint"}
        try:
            fields = tuple(Field(f["name"], f["dtype"], tuple(f["shape"])) for f in values.pop("fields"))
            column = cls(fields=fields, **values)
        except (KeyError, TypeError) as error:
            raise CacheError(
                f"the record of column {record.get('name')!r} is not one that kcache wrote: {error}"
            ) from None
        if column.fingerprint != record.get("fingerprint"):
            raise CacheError(f"the record of column '{column.name}' has another fingerprint than its content")
        return column
