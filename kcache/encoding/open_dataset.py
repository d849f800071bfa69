"""From the name of a dataset to its samples: a folder of pictures, a saved table, or one on the hub."""

from collections.abc import Sequence
from pathlib import Path

from kcache.progress import logger
from kcache.shards.errors import KcacheError, UsageError

from . import tables
from .dataset import Dataset, DatasetOptions, Sample
from .imagefolder import ImageFolder


def open_dataset(name_or_path: str, options: DatasetOptions, scans: object = None) -> Dataset:
    """The samples of a folder, a saved ``datasets`` folder or a dataset on the hub, ordered by id."""
    path = Path(name_or_path)
    if not name_or_path.strip():
        raise UsageError("the dataset's name is empty; name a folder of pictures, or a dataset on the hub")
    if path.is_file():
        raise KcacheError(
            f"dataset {path} is a file; name a folder of pictures, a saved 'datasets' folder or a hub dataset"
        )
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        dataset: Dataset = tables.open_saved(path, options) if saved else ImageFolder(path, options)
    elif path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise KcacheError(f"dataset {name_or_path} does not exist; name a folder of pictures, or a dataset on the hub")
    else:
        logger.info("there is no folder %s here: asking the hub for a dataset of that name", name_or_path)
        dataset = tables.open_hub(name_or_path, options)
    if not dataset.samples:
        raise KcacheError(f"dataset {name_or_path} is empty: it has no picture that kcache can see; name another")
    _refuse_repeated(name_or_path, dataset.samples)
    return dataset


def _refuse_repeated(name: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise KcacheError(f"dataset {name} names '{sample.id}' twice; give it one row, with a list of captions")
        seen.add(sample.id)
