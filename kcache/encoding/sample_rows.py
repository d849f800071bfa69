"""What the samples column says of one sample, and how the sample as it is now compares with that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kcache.shards.records import digest

from .dataset import Sample
from .memory import Memory

SamplesRow = dict[str, Any]
GONE = "gone"
"""The reason of a row whose sample the dataset has no more, or whose picture cannot be read any more."""


@dataclass(frozen=True)
class Compared:
    """A sample beside its row. ``row`` is what the samples column is to say; None: only the picture can tell."""

    row: SamplesRow | None
    reason: str | None = None
    """Why the row is not what it was; None where it is, or where there was none."""
    sha256: str | None = None
    """What the picture hashes to now, where that is known."""


def samples_key(row: Mapping[str, Any], decoding: object) -> str | None:
    """The key of a row of the samples column.

    A row that was set aside counts for what decodes pictures now (``decoding``) and is tried again when that changes.
    """
    if "removed" in row:
        return None
    return digest([row["captions"], row["sha256"], *([decoding] if "set_aside" in row else [])])


def aside(sample: Sample, reason: str, sha256: str | None = None, *, transient: bool = False) -> SamplesRow:
    """The row of a sample that has no features, and why; one that is ``transient`` is tried again by every run."""
    row: SamplesRow = {"id": sample.id, "captions": list(sample.captions), "sha256": sha256, "set_aside": reason}
    return row | ({"transient": True} if transient else {})


def gone(sample_id: str) -> SamplesRow:
    """The row of a sample that vanished between its planning and its encoding: it keeps its place."""
    return {"id": sample_id, "captions": [], "sha256": None, "set_aside": "it is gone"}


def compare(row: SamplesRow | None, key: str | None, sample: Sample, memory: Memory, decoding: object) -> Compared:
    """A sample of the dataset beside its row and the row's key (None and None: it is new)."""
    if row is None:
        return Compared(aside(sample, sample.fault) if sample.fault else None)
    sha256 = memory.sha256(sample.id)
    if sha256 is None and "set_aside" not in row and "removed" not in row:
        return Compared(row, GONE)  # What was encoded is not thrown away for a disk that is not there today.
    if sample.fault:
        same = (row.get("set_aside"), row["captions"]) == (sample.fault, list(sample.captions))
        return Compared(row if same else aside(sample, sample.fault), None if same else sample.fault)
    if "removed" in row:
        return Compared(None, "back after it was removed", sha256)
    now = {**row, "id": sample.id, "captions": list(sample.captions)}
    if "set_aside" in row:
        unchanged = key == samples_key({**now, "sha256": sha256}, decoding) and "transient" not in row
        return Compared(row) if unchanged else Compared(None, "set aside before, and tried again", sha256)
    edited = "caption edited" if row["captions"] != now["captions"] else None
    if sha256 == row["sha256"]:
        return Compared(now, edited, sha256)
    image = "image bytes differ"
    return Compared(None, f"{edited} and {image}" if edited else image, sha256)
