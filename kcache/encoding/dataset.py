"""What is to be encoded: samples with stable ids, from a folder of pictures or a ``datasets`` table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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


@dataclass(frozen=True)
class DatasetOptions:
    """How to read a dataset."""

    image_column: str = "image"
    caption_column: str = "text"
    config_name: str | None = None
    split: str = "train"
    cache_dir: str | None = None


def open_dataset(name_or_path: str, options: DatasetOptions) -> Dataset:
    """The samples of a folder, a saved ``datasets`` folder or a dataset on the hub, ordered by id."""
    from . import imagefolder, tables

    path = Path(name_or_path)
    if path.is_file():
        raise KcacheError(
            f"dataset {path} is a file; name a folder of pictures, a saved 'datasets' folder or a hub dataset"
        )
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        dataset: Dataset = tables.open_saved(path, options) if saved else imagefolder.ImageFolder(path, options)
    elif path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise KcacheError(f"dataset {path} does not exist; name a folder of pictures, or a dataset on the hub")
    else:
        dataset = tables.open_hub(name_or_path, options)
    if not dataset.samples:
        raise KcacheError(f"dataset {name_or_path} is empty: it has no picture that kcache can see")
    _refuse_repeated(name_or_path, dataset.samples)
    return dataset


def _refuse_repeated(name: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise KcacheError(f"dataset {name} names '{sample.id}' twice; give it one row, with a list of captions")
        seen.add(sample.id)
