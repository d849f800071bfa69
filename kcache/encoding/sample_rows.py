"""What the samples column says of one sample, and how the sample as it is now compares with that."""

from dataclasses import dataclass
from typing import Any

from kcache.shards.commits import samples_key

from .dataset import Sample
from .memory import Memory

SamplesRow = dict[str, Any]
UNREADABLE = "the file cannot be read"


@dataclass(frozen=True)
class Compared:
    """A sample beside its row. ``row`` is what the samples column is to say; None: only the picture can tell."""

    row: SamplesRow | None
    reason: str | None = None
    """Why the row is not what it was; None where it is, or where there was none."""
    sha256: str | None = None
    """What the picture hashes to now, where that is known."""
    gone: str | None = None
    """Why the sample cannot be encoded any more, where its features are kept all the same."""


def aside(sample: Sample, reason: str, sha256: str | None = None, *, transient: bool = False) -> SamplesRow:
    """The row of a sample that has no features, and why; one that is ``transient`` is tried again by every run."""
    row: SamplesRow = {"id": sample.id, "captions": list(sample.captions), "sha256": sha256, "set_aside": reason}
    return row | ({"transient": True} if transient else {})


def unknown(sample_id: str) -> SamplesRow:
    """The row of a sample that vanished between its planning and its encoding: it keeps its place."""
    return {"id": sample_id, "captions": [], "sha256": None, "set_aside": "it is gone"}


def has_features(row: SamplesRow | None) -> bool:
    """Whether the sample was encoded, and neither set aside nor removed since."""
    return row is not None and "set_aside" not in row and "removed" not in row


def vanished(row: SamplesRow | None, sample_id: str) -> Compared:
    """A sample that the dataset has no more: kept with its features; one that has none is forgotten."""
    if has_features(row):
        return Compared(row, gone="gone from the dataset")
    return Compared({**(row or unknown(sample_id)), "removed": True})


def pruned(row: SamplesRow, sample: Sample | None) -> SamplesRow:
    """What becomes of the row of a sample that is taken for gone, where such are taken out."""
    return aside(sample, sample.fault or UNREADABLE) if sample else {**row, "removed": True}


def compare(row: SamplesRow | None, key: str | None, sample: Sample, memory: Memory, decoding: object) -> Compared:
    """A sample of the dataset beside its row and the row's key (None and None: it is new)."""
    if row is None:
        return Compared(aside(sample, sample.fault) if sample.fault else None)
    if sample.fault:
        return _compare_faulty(row, sample, sample.fault)
    sha256 = memory.sha256(sample.id)
    if sha256 is None and has_features(row):
        return Compared(row, gone=UNREADABLE)  # It is not thrown away for a disk that is not there today.
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


def _compare_faulty(row: SamplesRow, sample: Sample, fault: str) -> Compared:
    """A sample that cannot be encoded as it is now. No picture is opened, for no bytes could change that."""
    if has_features(row):  # It is not thrown away for a metadata file that is not there today.
        return Compared(row, gone=f"lost its caption ({fault})" if sample.captionless else fault)
    same = "removed" not in row and (row["set_aside"], row["captions"]) == (fault, list(sample.captions))
    return Compared(row) if same else Compared(aside(sample, fault), fault)
