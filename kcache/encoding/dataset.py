"""What is to be encoded: samples with stable ids, and where the bytes of their images come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from kcache.shards.errors import KcacheError

Stat = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with one or more captions and a stable id. ``fault`` says why it cannot be encoded, if it cannot."""

    id: str
    captions: tuple[str, ...]
    fault: str | None = None


class Dataset(Protocol):
    """Samples in a fixed order, and the bytes of their images."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples, ordered by id."""

    def read(self, sample_id: str) -> bytes:
        """The bytes of one image file; OSError when it cannot be read."""

    def sha256(self, sample_id: str) -> str:
        """sha256 (hex) of what `read` returns; OSError when it cannot be read."""

    def stat(self, sample_id: str) -> Stat | None:
        """What tells without reading that an image is unchanged, or None where only its bytes tell."""


@runtime_checkable
class StreamedDataset(Protocol):
    def windows(self, size: int) -> Iterator[Dataset]: ...


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a dataset."""

    image_column: str | None = None
    caption_column: str | None = None
    id_column: str | None = None
    where: str | None = None
    streaming: bool = False
    config_name: str | None = None
    split: str = "train"
    cache_dir: str | None = None


def captions_of(value: Any, place: str) -> tuple[str, ...]:
    """A caption or a list of captions as a tuple; empty for null. KcacheError for anything else."""
    captions = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise KcacheError(f"{place} is neither a caption nor a list of captions: {value!r}")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:
        raise KcacheError(
            f"{place} has half of a surrogate pair, which is no character: {value!r}; correct the caption"
        ) from None
    return captions
