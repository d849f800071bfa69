"""The cache on disk: format, writer, reader, sample order, verification. numpy and h5py; no torch."""

from .cache import Cache
from .columns import Column, Field
from .commits import Commit
from .dataset_options import dataset_options, keep_dataset_options
from .errors import CacheError, DamageError, KcacheError, UsageError
from .length_order import LengthOrder
from .order import BatchOrder, MixedOrder, Stream, Windows, permutation
from .reader import ColumnReader, Rows, read_null
from .rewrite import read_rows
from .snapshot import Snapshot
from .summary import ColumnSummary, Summary, cut_captions, summarize
from .verify import Fault, Verification, verify

__all__ = [
    "BatchOrder",
    "Cache",
    "CacheError",
    "Column",
    "ColumnReader",
    "ColumnSummary",
    "Commit",
    "DamageError",
    "Fault",
    "Field",
    "KcacheError",
    "LengthOrder",
    "MixedOrder",
    "Rows",
    "Snapshot",
    "Stream",
    "Summary",
    "UsageError",
    "Verification",
    "Windows",
    "cut_captions",
    "dataset_options",
    "keep_dataset_options",
    "permutation",
    "read_null",
    "read_rows",
    "summarize",
    "verify",
]
