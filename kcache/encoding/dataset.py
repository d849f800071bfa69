"""What is to be encoded: samples with stable ids, and where the bytes of their images come from."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kcache.shards.errors import KcacheError, UsageError

Stat = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with one or more captions and a stable id. ``fault`` says why it cannot be encoded, if it cannot."""

    id: str
    captions: tuple[str, ...]
    fault: str | None = None


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

    def refuse(self, source: str, *names: str) -> None:
        """UsageError for the first of these options that was given: ``source`` would have to ignore it."""
        for name in names:
            if getattr(self, name) != getattr(DatasetOptions, name):
                flag = {"config_name": "dataset-config-name"}.get(name, name.replace("_", "-"))
                raise UsageError(f"--{flag} has no meaning for {source}; leave it out")


def stat_of(path: str | Path) -> Stat | None:
    """Size and time of change of a file, or None when it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def captions_of(value: Any, place: str) -> tuple[str, ...]:
    """A caption or a list of captions as a tuple; empty for null. KcacheError for anything else."""
    captions = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise KcacheError(f"{place} is neither a caption nor a list of captions: {value!r}")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:
        raise KcacheError(
            f"{place} has half of a surrogate pair, which is no character: {value!r}; correct it"
        ) from None
    return captions
