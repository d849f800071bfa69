"""How many shards of a cache in a store are shuffled at a time, so that those in use fit into the local cache."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kcache.progress import logger
from kcache.shards import CacheError, Snapshot
from kcache.shards.local_cache import LocalCache

WindowSizes = list[int | None]
"""For each cache of a run the shards that its samples are drawn from at a time; None: all of them."""


def shard_bytes(snapshot: Snapshot) -> npt.NDArray[np.int64]:
    """Bytes of all pinned columns in each shard of the plan (shape ``(shards,)``)."""
    nbytes = np.zeros(snapshot.cache.shard_count, np.int64)
    for pinned in snapshot.pinned.values():
        for file in pinned.files:
            nbytes[file.shard] += file.bytes
    return nbytes


def window_sizes(snapshots: Sequence[Snapshot], local: LocalCache | None) -> WindowSizes:
    """All shards where those of all caches fit into ``local`` together, and the order is that of a local cache.

    Else each cache has its share of the room, half of it for the shards in use, half for those that come next.
    """
    sizes: WindowSizes = [None] * len(snapshots)
    remote = [i for i, snapshot in enumerate(snapshots) if not snapshot.cache.storage.is_local]
    nbytes = {i: shard_bytes(snapshots[i]) for i in remote}
    total = sum(int(of_cache.sum()) for of_cache in nbytes.values())
    if local is None or total <= local.size:
        return sizes
    for i, of_cache in nbytes.items():
        room = local.size * int(of_cache.sum()) // total
        sizes[i] = max(1, room // 2 // int(of_cache.max()))
        _require_room(snapshots[i], int(of_cache.max()), local)
    return sizes


def _require_room(snapshot: Snapshot, nbytes: int, local: LocalCache) -> None:
    """CacheError where not even the files of one shard fit: a batch reads all of them."""
    if nbytes > local.size:
        raise CacheError(
            f"the files of one shard of {snapshot.cache.name} have {nbytes:,} bytes, and the local cache"
            f" {local.folder} may have {local.size:,}; give a --local-cache-size of {4 * nbytes} or more"
        )


def tell_windows(sizes: WindowSizes, snapshots: Sequence[Snapshot], local: LocalCache | None) -> None:
    """Say what of each cache is shuffled at a time, where it is not all."""
    for size, snapshot in zip(sizes, snapshots, strict=False):
        if size is not None and local is not None:
            logger.info(
                "%s does not fit into the local cache, which holds %s bytes: samples are shuffled within %s of %s"
                " shards at a time; a larger --local-cache-size shuffles more in a new run",
                snapshot.cache.name,
                f"{local.size:,}",
                f"{size:,}",
                f"{snapshot.cache.shard_count:,}",
            )


def kept_sizes(saved: WindowSizes, fitting: WindowSizes) -> WindowSizes:
    """Those of the run that is gone on with, since they are part of its order; a warning where they do not fit."""
    for old, new in zip(saved, fitting, strict=False):
        if new is not None and (old is None or old > new):
            logger.warning(
                "the run draws from %s shards at a time, and %s would fit into the local cache: its order is kept, and"
                " shards are fetched again and again; give a larger --local-cache-size",
                "all" if old is None else f"{old:,}",
                f"{new:,}",
            )
    return saved
