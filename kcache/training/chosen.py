"""Which samples of a cache a run trains on, and which it holds out: a pure function of the cache, options and seed."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kcache.progress import logger
from kcache.shards import KcacheError, Snapshot, UsageError, permutation
from kcache.where import Where

from .config import TrainConfig
from .samples import Positions

FIELDS = ("id", "text", "captions", "width", "height", "sha256")
"""What ``--where`` can look at: what the samples column of a cache holds."""

_PIECE = 1 << 20
"""As many samples are placed at once."""
_SUBSET = -1
"""The epoch whose order picks the rows of ``--max-train-samples``; training begins at epoch 0."""


@dataclass(frozen=True)
class Chosen:
    """Positions in a snapshot, those to train on ascending, those held out by the hash of their id."""

    train: Positions
    held_out: Positions


def check_selection(config: TrainConfig) -> None:
    """UsageError for a ``--where`` that is none, or ``--sample-ids`` that cannot be read. Needs no cache."""
    if config.where is not None:
        Where(config.where).check(FIELDS, config.cache)
    if config.sample_ids is not None:
        _read_ids(config.sample_ids)


def choose(config: TrainConfig, snapshot: Snapshot, seed: int) -> Chosen:
    """The samples of the first cache. KcacheError where an option leaves none to train on."""
    keep = np.ones(len(snapshot), np.bool_)
    if config.where is not None:
        keep &= _where(config.where, snapshot)
    if config.sample_ids is not None:
        keep &= _listed(config.sample_ids, snapshot)
    chosen = _hold_out(config.validation_split, snapshot, np.flatnonzero(keep))
    if config.max_train_samples is not None and config.max_train_samples < len(chosen.train):
        some = permutation(seed, _SUBSET, len(chosen.train))[: config.max_train_samples]
        chosen = Chosen(np.sort(chosen.train[some]), chosen.held_out)
    if not len(chosen.train):
        raise KcacheError(
            f"{config.cache} has {len(snapshot):,} samples and none is left to train on; loosen --where, --sample-ids"
            " or --validation-split"
        )
    if config.validation_split and not len(chosen.held_out):
        raise KcacheError(
            f"--validation-split {config.validation_split:g} holds out none of {len(chosen.train):,} samples; choose a"
            " larger share"
        )
    return chosen


def choose_mixed(config: TrainConfig, snapshot: Snapshot) -> Chosen:
    """The samples of a further cache: all of them, but for those whose ids are held out."""
    chosen = _hold_out(config.validation_split, snapshot, np.arange(len(snapshot)))
    if not len(chosen.train):
        raise KcacheError(f"{snapshot.cache.name} has no sample to mix in; see 'kcache info {snapshot.cache.name}'")
    return chosen


def selection_record(config: TrainConfig) -> dict[str, Any]:
    """The options that choose samples, as JSON values: what resume compares."""
    listed = Path(config.sample_ids).read_bytes() if config.sample_ids is not None else None
    return {
        "where": config.where,
        "sample_ids": hashlib.sha256(listed).hexdigest() if listed is not None else None,
        "max_train_samples": config.max_train_samples,
        "validation_split": config.validation_split,
        "captions": getattr(config, "captions", "one"),
        "shares": [share for _, share in config.mix],
        # Only where it is given: checkpoints of before it was an option say nothing of it.
        **({"group_by_length": True} if getattr(config, "group_by_length", False) else {}),
    }


def id_hash(name: str) -> int:
    """64 bits of the sha256 of an id: what tells whether it is held out, and what keys its fixed draws."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def planned_ids(snapshot: Snapshot, positions: Positions) -> list[str]:
    """The ids under which samples were added: unlike the present ones they never change."""
    order = np.argsort(positions, kind="stable")
    names = [""] * len(positions)
    for at, name in zip(order.tolist(), _planned_ids(snapshot, positions[order]), strict=True):
        names[at] = name
    return names


def _planned_ids(snapshot: Snapshot, ascending: Positions) -> Iterator[str]:
    """The same one after the other, for ascending positions, so that those of one shard are in memory at a time."""
    for shard, rows in _by_shard(snapshot, ascending):
        ids = snapshot.cache.planned_ids(shard)
        yield from (ids[row] for row in rows)


def _by_shard(snapshot: Snapshot, ascending: Positions) -> Iterator[tuple[int, list[int]]]:
    """Each shard that some positions lie in, and their rows there; all the places may be too many for memory."""
    for start in range(0, len(ascending), _PIECE):
        places = snapshot.places(ascending[start : start + _PIECE])
        for some in np.split(places, np.flatnonzero(np.diff(places[:, 0])) + 1):
            yield int(some[0, 0]), some[:, 1].tolist()


def _hold_out(share: float, snapshot: Snapshot, positions: Positions) -> Chosen:
    """Hold out the samples whose hash lies below ``share``: a larger share holds out the same ones and more."""
    if not share:
        return Chosen(positions, np.zeros(0, np.int64))
    hashes = np.fromiter(map(id_hash, _planned_ids(snapshot, positions)), np.uint64, len(positions))
    held = hashes < np.uint64(int(share * 2**64))
    return Chosen(positions[~held], positions[held][np.argsort(hashes[held])])


def _where(expression: str, snapshot: Snapshot) -> Any:
    """Whether ``--where`` holds, for each position (shape ``(n,)``)."""
    where = Where(expression)
    where.check(FIELDS, snapshot.cache.name)
    each = (where.keeps(row, f"sample '{row['id']}'") for row in _rows(snapshot))
    kept = np.fromiter(each, np.bool_, len(snapshot))
    logger.info("--where keeps %s of %s samples", f"{kept.sum():,}", f"{len(kept):,}")
    return kept


def _listed(file: str, snapshot: Snapshot) -> Any:
    """Whether an id stands in a file, for each position (shape ``(n,)``)."""
    wanted, there = _read_ids(file), set[str]()
    kept = np.zeros(len(snapshot), np.bool_)
    for position, row in enumerate(_rows(snapshot)):
        if row["id"] in wanted:
            kept[position] = True
            there.add(row["id"])
    if lacking := sorted(wanted - there):
        logger.warning(
            "%s of the %s ids in %s have no features in %s, such as '%s'; they are left out",
            f"{len(lacking):,}",
            f"{len(wanted):,}",
            file,
            snapshot.cache.name,
            lacking[0],
        )
    return kept


def _read_ids(file: str) -> set[str]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--sample-ids {file} cannot be read ({error}); give a text file with one id in a line"
        ) from None
    return {line for line in lines if line}


def _rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """What the samples column says of each position, its captions also as one text of as many lines."""
    for shard, places in _by_shard(snapshot, np.arange(len(snapshot))):
        rows = snapshot.cache.samples(shard)
        yield from ({**rows[row], "text": "\n".join(rows[row]["captions"])} for row in places)
