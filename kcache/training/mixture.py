"""What a run reads and in which order: its caches, the samples chosen from each, and their shares."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from kcache.progress import logger
from kcache.shards import BatchOrder, Cache, KcacheError, LengthOrder, MixedOrder, Snapshot, UsageError, Windows
from kcache.shards.local_cache import LocalCache, local_cache_for
from kcache.shards.records import digest_of_numbers

from .chosen import choose, choose_mixed
from .config import TrainConfig
from .samples import Positions, Samples
from .sources import Source
from .windows import WindowSizes

Order = BatchOrder | MixedOrder | LengthOrder


def open_caches(config: TrainConfig) -> list[Cache]:
    """The cache of a run and those that are mixed in; UsageError where their shares leave nothing for the first."""
    shares = [share for _, share in config.mix]
    if sum(shares) >= 1:
        raise UsageError(
            f"--mix gives {sum(shares):g} of all samples to other caches and leaves none to {config.cache}; give shares"
            " that add up to less than 1"
        )
    local = local_cache_of(config)
    return [Cache(config.cache, local), *(Cache(root, local) for root, _ in config.mix)]


def local_cache_of(config: TrainConfig) -> LocalCache | None:
    """Where shards of caches in a store are kept; None where all are local folders."""
    names = [config.cache, *(root for root, _ in config.mix)]
    return local_cache_for(names, config.local_cache, config.local_cache_size)


def open_snapshots(caches: Sequence[Cache], columns: Sequence[str], *, partial: bool) -> list[Snapshot]:
    """Pin ``columns`` of each cache; KcacheError where one has no sample."""
    snapshots = []
    for cache in caches:
        snapshot = Snapshot(cache, columns, partial=partial)
        if len(snapshot) == 0:
            raise KcacheError(
                f"{cache.name} has no sample with {' and '.join(columns)};"
                f" 'kcache info {cache.name} --set-aside' says why"
            )
        snapshots.append(snapshot)
    return snapshots


class Mixture:
    """The samples of a run: of the first snapshot those chosen and held out, of the others their shares."""

    def __init__(
        self, config: TrainConfig, snapshots: Sequence[Snapshot], seed: int, windows: WindowSizes | None = None
    ) -> None:
        """``windows`` are the shards of each cache that are shuffled at a time (None: all of them)."""
        self.windows = windows or [None] * len(snapshots)
        self.samples = Samples(snapshots)
        first, *others = snapshots
        chosen = [choose(config, first, seed), *(choose_mixed(config, other) for other in others)]
        self.train = [self.samples.positions(part)[one.train] for part, one in enumerate(chosen)]
        """The positions to train on, of each snapshot."""
        self.held_out = chosen[0].held_out
        """The positions held out, all of the first snapshot, by the hash of their ids."""
        self.shares = [Fraction(str(share)) for _, share in config.mix]
        self._seed = seed

    @property
    def digest(self) -> str:
        """What names the samples that are trained on."""
        return digest_of_numbers(self.train)

    def epoch(self, source: Source) -> Fraction:
        """Samples that are trained on while the first cache is passed once, those of the others among them."""
        return len(source.of_samples(self.train[0])) / (1 - sum(self.shares, Fraction(0)))

    def order(self, source: Source, global_batch: int, seed: int) -> Order:
        """Global batches of the samples to train on, each of one shape, or of about one length."""
        order = self._mixed(source, global_batch, seed)
        if source.lengths is None:
            return order
        return LengthOrder(order, source.lengths, seed, int(self.epoch(source)))

    def _mixed(self, source: Source, global_batch: int, seed: int) -> BatchOrder | MixedOrder:
        orders = []
        for part, positions in enumerate(self.train):
            groups = _within(source.groups, source.of_samples(positions))
            orders.append(BatchOrder(groups, global_batch, seed, self._windows(part, source, groups)))
        if len(orders) == 1:
            return orders[0]
        several = len(source.groups) > 1
        if several:
            logger.info("caches are mixed update by update, since the latents of an update have one shape")
        return MixedOrder(orders, self.shares, whole_batches=several)

    def _windows(self, part: int, source: Source, groups: Sequence[Positions]) -> list[Windows] | None:
        """The windows of each group of one cache."""
        size, snapshot = self.windows[part], self.samples.snapshots[part]
        if size is None:
            return None
        first, shards = int(self.samples.positions(part)[0]), snapshot.rows[:, 0]
        return [Windows(shards[source.samples_of(group) - first], snapshot.cache.shard_count, size) for group in groups]


def _within(groups: Sequence[Positions], positions: Positions) -> list[Positions]:
    """What of each group is among ``positions``, for the groups that have any."""
    if len(groups) == 1:
        return [positions]
    return [some for group in groups if len(some := group[np.isin(group, positions)])]
