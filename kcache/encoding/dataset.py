"""What is to be encoded: samples with stable ids, and where the bytes of their images come from."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from kcache.shards.errors import UsageError

Stat = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with one or more captions and a stable id.

    ``fault`` says why it cannot be encoded, if it cannot; ``captionless``: for want of a caption, and of nothing else.
    """

    id: str
    captions: tuple[str, ...]
    fault: str | None = None
    captionless: bool = False


class Dataset(Protocol):
    """Samples in a fixed order, and the bytes of their images. May be read by several threads."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples in a fixed order, the one in which the source is best read: rows as they lie, files by id."""

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image file; OSError when it cannot be read."""

    def sha256(self, sample_id: str) -> str:
        """sha256 (hex) of what `read` returns; OSError when it cannot be read."""

    def stat(self, sample_id: str) -> Stat | None:
        """What tells without reading that an image is unchanged, or None where only its bytes tell."""


@runtime_checkable
class StreamedDataset(Protocol):
    """A source that can be read from its beginning to its end and in no other way; nobody knows how long it is."""

    def windows(self, size: int) -> Iterator[Dataset]:
        """The next ``size`` samples at a time, with their images in memory; the last window may hold fewer."""


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a dataset. None: as the kind of source has it by itself."""

    image_column: str | None = None
    caption_column: str | None = None
    id_column: str | None = None
    where: str | None = None
    streaming: bool = False
    config_name: str | None = None
    split: str = "train"
    cache_dir: str | None = None
    remembered: frozenset[str] = frozenset()
    """Which of these nobody gave: they are as an earlier run into the cache had them."""

    def refuse(self, source: str, *names: str) -> None:
        """UsageError for the first of these options that was given: ``source`` would have to ignore it."""
        for name in names:
            if getattr(self, name) != getattr(DatasetOptions, name):
                remedy = "leave it out"
                if name in self.remembered:
                    remedy = f"it is as an earlier run into the cache had it; take it back with {_undo(name)}"
                raise UsageError(f"--{flag_of(name)} has no meaning for {source}; {remedy}")


def flag_of(name: str) -> str:
    """What one of the `DatasetOptions` is called on the command line."""
    return {"config_name": "dataset-config-name"}.get(name, name.replace("_", "-"))


def _undo(name: str) -> str:
    return {"split": "--split train", "streaming": "--no-streaming"}.get(name, f"--{flag_of(name)} ''")


def stat_of(path: str | Path) -> Stat | None:
    """Size and time of change of a file, or None when it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def why_no_file(path: str | Path) -> str | None:
    """Why there is no picture to be read at a path; None where there is a regular file."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return "the file does not exist"
    if stat.S_ISDIR(mode):
        return "it is a folder, not a file"
    return None if stat.S_ISREG(mode) else "it is not a regular file"


def why_no_path(name: str) -> str | None:
    """Why a name is not that of a file on this machine; None where it may be one."""
    if not _ADDRESS.match(name):
        return None
    return (
        f"'{name}' is an address, and kcache downloads no pictures; fetch them first with img2dataset"
        " (output_format webdataset), and encode its tars"
    )
