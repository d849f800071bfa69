"""How many shards of a cache in a store are shuffled at a time, so that those in use fit into the local cache."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kcache.progress import logger
from kcache.shards import Snapshot
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
        logger.info(
            "%s has %s bytes and the local cache holds %s: samples are shuffled within %s of %s shards at a time; a"
            " larger --local-cache-size shuffles more",
            snapshots[i].cache.name,
            f"{int(of_cache.sum()):,}",
            f"{local.size:,}",
            f"{sizes[i]:,}",
            f"{len(of_cache):,}",
        )
    return sizes


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
