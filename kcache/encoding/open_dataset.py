"""From the name of a dataset to its samples: pictures, tars or tables on this disk, or a dataset on the hub."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kcache.progress import logger
from kcache.shards.errors import KcacheError, UsageError

from . import row_files, saved_tables
from .dataset import Dataset, DatasetOptions, Sample, StreamedDataset
from .file_patterns import Files, files_of_folder, files_of_pattern, is_pattern
from .imagefolder import ImageFolder
from .memory import Scans
from .parquet import open_parquet
from .path_table import PathTable, PlacedRow
from .tars import TarDataset
from .walk import as_id, is_cache

SUFFIXES = (".tar", ".parquet", *row_files.SUFFIXES)
"""How the names of files end that are datasets themselves."""


def open_dataset(name_or_path: str, options: DatasetOptions, scans: Scans) -> Dataset | StreamedDataset:
    """The samples that a name stands for; docs/sources.md lists the kinds.

    KcacheError when there is nothing of that name, when it is empty or names a sample twice; UsageError for an option
    that has no meaning for its kind.
    """
    if not name_or_path.strip():
        raise UsageError("the dataset's name is empty; name a folder of pictures, or a dataset on the hub")
    dataset = _open(name_or_path, options, scans)
    if isinstance(dataset, StreamedDataset):
        return dataset
    if not dataset.samples:
        raise KcacheError(f"dataset {name_or_path} is empty: it has no picture that kcache can see; name another")
    _refuse_repeated(name_or_path, dataset.samples)
    return dataset


def _open(name: str, options: DatasetOptions, scans: Scans) -> Dataset | StreamedDataset:
    path = Path(name)
    if path.exists():
        options.refuse(f"dataset {name}, which lies on this machine", "streaming")
        return _open_folder(path, options, scans) if path.is_dir() else _open_files(name, _one(path), options, scans)
    if "://" in name:
        raise KcacheError(f"dataset {name} is an address; copy it to this machine first, or name a dataset on the hub")
    if is_pattern(name):
        options.refuse(f"dataset {name}, which lies on this machine", "streaming")
        return _open_files(name, files_of_pattern(name), options, scans)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix in SUFFIXES:
        raise KcacheError(f"dataset {name} does not exist; name a folder of pictures, or a dataset on the hub")
    logger.info("there is no folder %s here: asking the hub for a dataset of that name", name)
    return saved_tables.open_hub(name, options, scans)


def _open_folder(path: Path, options: DatasetOptions, scans: Scans) -> Dataset:
    if is_cache(path):
        raise KcacheError(f"dataset {path} is a cache of kcache; name the dataset that it was encoded from")
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return saved_tables.open_saved(path, options, scans)
    files = files_of_folder(path)
    if files is not None:
        return _open_files(str(path), files, options, scans)
    options.refuse(f"dataset {path}, a folder of pictures", "config_name", "split")
    return ImageFolder(path, options)


def _open_files(name: str, files: Files, options: DatasetOptions, scans: Scans) -> Dataset:
    if files.paths[0].name.endswith((".tar", ".tar.gz", ".tgz")):
        return TarDataset(name, files.root, files.paths, options, scans)
    if files.suffix == ".parquet":
        return open_parquet(name, files, options, scans)
    if files.suffix in row_files.SUFFIXES:
        options.refuse(f"dataset {name}, a text table", "config_name", "split")
        return PathTable(name, _rows(files), options, text_cells=files.suffix in row_files.DELIMITERS)
    what = "is a file" if len(files.paths) == 1 else "names files"
    raise KcacheError(
        f"dataset {name} {what}; name a folder of pictures, a file of a kind that holds a dataset"
        f" ({', '.join(SUFFIXES)}), a folder that 'datasets' saved, or a hub dataset"
    )


def _one(path: Path) -> Files:
    return Files(path.parent, [path])


def _rows(files: Files) -> Iterator[PlacedRow]:
    for path in files.paths:
        table, _ = as_id(path.relative_to(files.root).as_posix())
        for line, row in row_files.rows(path):
            yield path.parent, f"{table}:{line}", row


def _refuse_repeated(name: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise KcacheError(f"dataset {name} names '{sample.id}' twice; give it one row, with a list of captions")
        seen.add(sample.id)
