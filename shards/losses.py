"""Commits and column records that are gone, although what stands beside them says that they were made."""

from . import layout
from .cache import Cache
from .errors import DamageError


def require_nothing_lost(cache: Cache) -> None:
    """DamageError where the record of a column is gone, or the samples of a shard that has features.

    Who went on would take that for work never done, and show, copy or keep less than there is.
    """
    for name, edition in lost_records(cache).items():
        raise _lost(cache, layout.column(layout.stem(name, edition)), RECORD_IS_LOST)
    for shard, generation in lost_samples(cache).items():
        raise _lost(cache, layout.commit(layout.SAMPLES, shard, generation), SAMPLES_ARE_LOST)


RECORD_IS_LOST = "though shards of its column were committed"
SAMPLES_ARE_LOST = "though features of its shard were committed, and they always are after their samples"
"""What tells that a file is lost and not just not made yet."""


def lost_records(cache: Cache) -> dict[str, int]:
    """The feature columns whose latest edition has commits and no record, with that edition: records come first."""
    begun = cache.begun_editions()  # before the records: another process may be making one
    records = cache.editions()
    return {
        name: edition
        for name, edition in begun.items()
        if name != layout.SAMPLES and edition > records.get(name, 0) and cache.commits_of(layout.stem(name, edition))
    }


def lost_samples(cache: Cache) -> dict[int, int]:
    """The shards that have features and no samples, each with the highest generation of its features."""
    lost = _without_samples(cache)
    if lost and not cache.storage.is_local:
        cache.storage.refresh()  # the list that was had may have been made while another process committed both
        lost = {shard: n for shard, n in _without_samples(cache).items() if shard in lost}
    return lost


def _without_samples(cache: Cache) -> dict[int, int]:
    features: dict[int, int] = {}
    for stem in cache.begun_stems():  # features before samples: another process may be committing both
        if stem != layout.SAMPLES:
            for shard, generation in cache.commits_of(stem).items():
                features[shard] = max(generation, features.get(shard, 0))
    samples = cache.commits(layout.SAMPLES)
    return {shard: generation for shard, generation in sorted(features.items()) if shard not in samples}


def _lost(cache: Cache, file: str, why: str) -> DamageError:
    return DamageError(f"{cache.name}/{file} is missing, {why}; to bring it back, {cache.how_to_repair}")
