"""How the dataset of a cache is read, where not by the defaults: a record for each change, of which the last counts."""

from . import durable, layout
from .cache import Cache
from .records import Record, dump_record, load_record


def dataset_options(cache: Cache) -> Record:
    """How the last encode was told to read its dataset; nothing where that was the default."""
    latest = _latest(cache)
    return load_record(cache.root / layout.dataset(latest)) if latest else {}


def keep_dataset_options(cache: Cache, options: Record) -> None:
    """Note how the dataset is read from now on, unless that is as it was."""
    while dataset_options(cache) != options:
        if durable.put_if_absent(cache.root / layout.dataset(_latest(cache) + 1), dump_record(options)):
            return


def _latest(cache: Cache) -> int:
    return max((int(p.stem) for p in (cache.root / layout.DATASET).glob("*.json") if p.stem.isdigit()), default=0)
