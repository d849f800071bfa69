"""How the dataset of a cache is read, where not by the defaults: a record for each change, of which the last counts."""

import os

from . import layout
from .cache import Cache
from .errors import DamageError
from .records import Record, dump_record, load_record


def dataset_options(cache: Cache, number: int | None = None) -> Record:
    """How the last encode, or the record of this number, has the dataset read; nothing where that is the default."""
    number = number or max(dataset_records(cache), default=0)
    if not number:
        return {}
    path = cache.root / layout.dataset(number)
    record = load_record(path)
    if record.pop("number", number) != number:
        raise DamageError(f"{path} is another record than its own; run 'kcache verify {cache.name}'")
    return record


def keep_dataset_options(cache: Cache, options: Record) -> None:
    """Note how the dataset is read from now on, unless that is as it was."""
    while dataset_options(cache) != options:
        number = max(dataset_records(cache), default=0) + 1
        if cache.storage.put_if_absent(layout.dataset(number), dump_record({**options, "number": number})):
            return


def dataset_records(cache: Cache) -> list[int]:
    """The numbers of all records of how the dataset was read."""
    folder = cache.root / layout.DATASET
    numbers = (layout.parse_number(name) for name in (os.listdir(folder) if folder.is_dir() else ()))
    return sorted(number for number in numbers if number is not None)
