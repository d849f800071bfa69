"""The order of samples and batches: a pure function of seed, place and sizes, the same on every machine and version."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_PHASE = 2**32  # the parts of a batch that the phases of `BatchOrder` are counted in


def mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of ``n`` rows in one epoch: rows sorted by a keyed hash of their number.

    Own code and not numpy's ``permutation``, whose stream may change between numpy versions; resume must not.
    """
    key = mix(np.array([seed, epoch], np.int64).astype(np.uint64) * _GAMMA + _GAMMA)
    key = mix(key[:1] ^ (key[1:] << np.uint64(1)))
    rows = np.arange(n, dtype=np.uint64)
    return np.argsort(mix(mix(rows * _GAMMA + key) ^ key), kind="stable")


@dataclass(frozen=True)
class Windows:
    """For samples that come from afar, shard by shard: which shard each position is of, and how many are open at once.

    An epoch takes the shards in an order of its own, ``size`` at a time, and shuffles the samples of these.
    """

    shards: npt.NDArray[np.int64]
    count: int
    """Shards in all, so that samples of one group take them in the same order as those of another."""
    size: int

    def arrange(self, order: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The positions of ``order``, window after window, and in each as they were in ``order``."""
        turn = np.empty(self.count, np.int64)
        turn[permutation(seed, epoch, self.count)] = np.arange(self.count) // self.size
        return order[np.argsort(turn[self.shards[order]], kind="stable")]


class Stream:
    """An endless stream of positions, epoch after epoch; nothing is dropped where an epoch ends inside a batch."""

    def __init__(self, n: int, seed: int, windows: Windows | None = None, window_seed: int = 0) -> None:
        """A stream over positions 0 to ``n - 1``; ``window_seed`` is that of the order of the shards in ``windows``."""
        if n < 1:
            raise ValueError(f"a stream needs at least one row, got {n}")
        self.n, self.seed = n, seed
        self._windows, self._window_seed = windows, window_seed
        self._last = (-1, np.zeros(0, np.int64))

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Positions ``start`` to ``start + count`` of the stream (shape ``(count,)``)."""
        pieces = []
        while count:
            epoch, begin = divmod(start, self.n)
            piece = self._epoch_order(epoch)[begin : begin + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _epoch_order(self, epoch: int) -> npt.NDArray[np.int64]:
        last, order = self._last  # read and written at once, as another thread may ask for another epoch
        if epoch != last:
            order = permutation(self.seed, epoch, self.n)
            if self._windows:
                order = self._windows.arrange(order, self._window_seed, epoch)
            self._last = (epoch, order)
        return order


class BatchOrder:
    """Global batches over groups of samples: each of one group, such as latents of one shape, and nothing is dropped.

    Batch j of a group of n samples is due when (j + u) / n batches per sample have passed, u being a phase between 0
    and 1 drawn from the seed; batches come in the order of their due times (of those due at once, by group). So at any
    time there is an x for which every group of n samples has given n * x batches, to within one, and in the long run
    every sample is seen as often as any other. Within a group, samples come from an endless `Stream` of its own. A
    group that is smaller than a batch repeats samples within it, and its turn comes so much more rarely.

    Any step may be asked for at any time: step 10**12 costs what step 0 does, one step for each group and the order of
    one epoch. Everything is counted in whole numbers, so that no machine rounds otherwise.
    """

    def __init__(
        self,
        groups: Sequence[npt.NDArray[np.int64]],
        global_batch: int,
        seed: int,
        windows: Sequence[Windows] | None = None,
    ) -> None:
        """``groups`` hold positions, none of them twice; ``seed`` is 0 to 2**63 - 1.

        ``windows`` of each group let all of them take the shards in the same order, so that they are at the same ones.
        """
        if global_batch < 1 or not groups or not all(len(group) for group in groups):
            raise ValueError(f"{len(groups)} groups in batches of {global_batch}: nothing may be empty")
        self.groups, self.global_batch = groups, global_batch
        self._streams = [
            Stream(len(group), _group_seed(seed, group), windows[number] if windows else None, seed)
            for number, group in enumerate(groups)
        ]
        self.phases = [_phase(stream.seed) for stream in self._streams]
        """The u of each group, in 1 / 2**32."""
        # Times are whole numbers of 1 / (_PHASE * common) batches per sample, in which all that is needed is whole:
        # 1 / _PHASE of a batch of n samples takes common / n of them. Python's integers have no largest.
        self._samples, self._common = sum(map(len, groups)), math.lcm(*map(len, groups))
        self._units = [self._common // len(group) for group in groups]

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The positions of global batch ``step``, all of one group (shape ``(global_batch,)``)."""
        given = self.given(step)
        group = min(range(len(given)), key=lambda group: self._due(group, given[group]))
        places = self._streams[group].take(given[group] * self.global_batch, self.global_batch)
        return self.groups[group][places]

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Samples ``start`` to ``start + count`` of an order that has one group (shape ``(count,)``)."""
        (group,), (stream,) = self.groups, self._streams
        return group[stream.take(start, count)]

    def given(self, step: int) -> list[int]:
        """How many of the batches before ``step`` each group has given."""
        # By time x a group has given floor(n * x - u) + 1 batches: more than n * x - u, and at most 1 more. So if x is
        # chosen to make the sum of all n * x - u + 1 equal to step, at most step are given by then, and fewer than one
        # for each group are still to come.
        phases = sum(self.phases) - len(self.phases) * _PHASE
        time = max(0, (step * _PHASE + phases) * self._common // self._samples)
        given = [(time // unit - phase) // _PHASE + 1 for unit, phase in zip(self._units, self.phases, strict=True)]
        turns = [(self._due(group, number), group) for group, number in enumerate(given)]
        heapq.heapify(turns)
        for _ in range(step - sum(given)):
            group = turns[0][1]
            given[group] += 1
            heapq.heapreplace(turns, (self._due(group, given[group]), group))
        return given

    def _due(self, group: int, number: int) -> int:
        """When batch ``number`` of a group is due."""
        return (number * _PHASE + self.phases[group]) * self._units[group]


def _group_seed(seed: int, group: npt.NDArray[np.int64]) -> int:
    """The seed of one group's stream: keyed by its first sample, which no other has, and by nothing of the others.

    Where all samples are one group it is ``seed`` itself, for mix(0) is 0: the order then is plain `Stream`'s.
    """
    return seed ^ int(mix(group[:1].astype(np.uint64))[0] >> np.uint64(1))


def _phase(seed: int) -> int:
    """The phase of the group whose stream has this seed, in 1 / _PHASE batches: odd, so that it is neither 0 nor 1."""
    return int(mix(np.array([seed], np.uint64) + _GAMMA)[0] >> np.uint64(32)) | 1


class MixedOrder:
    """Batches from several orders in fixed shares: of the first ``t`` turns an order has had its share, to within one.

    A turn is one sample, where ``whole_batches`` is false and every order has one group; else it is a whole batch, so
    that batches stay of one shape. Which order has turn t is a function of t alone: with one other order of share w it
    is the other's turn wherever floor(t * w) steps up (Bresenham's line), and among more than two the same is done
    again with the turns that are left. The first order has what the shares of the others leave.
    """

    def __init__(self, orders: Sequence[BatchOrder], shares: Sequence[Fraction], *, whole_batches: bool) -> None:
        """``shares`` are those of all orders but the first: each above 0, together below 1."""
        if len(orders) != len(shares) + 1 or not all(share > 0 for share in shares) or sum(shares) >= 1:
            raise ValueError(f"{len(orders)} orders cannot be mixed in shares of {[str(share) for share in shares]}")
        if not whole_batches and any(len(order.groups) > 1 for order in orders):
            raise ValueError("orders with several groups can only be mixed by whole batches")
        self._orders, self._whole, self.global_batch = orders, whole_batches, orders[0].global_batch
        # The last share first, each as a part of what those after it leave.
        self._shares, left = [], Fraction(1)
        for share in reversed(shares):
            self._shares.append(share / left)
            left -= share

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The positions of global batch ``step`` (shape ``(global_batch,)``)."""
        if self._whole:
            order, turn = self._whose(step)
            return self._orders[order].batch(turn)
        turns = [self._whose(t) for t in range(step * self.global_batch, (step + 1) * self.global_batch)]
        batch = np.empty(self.global_batch, np.int64)
        for order, stream in enumerate(self._orders):
            slots = [slot for slot, (whose, _) in enumerate(turns) if whose == order]
            if slots:
                batch[slots] = stream.take(turns[slots[0]][1], len(slots))
        return batch

    def _whose(self, turn: int) -> tuple[int, int]:
        """Which order has a turn, and how many it has had before."""
        for order, share in zip(range(len(self._orders) - 1, 0, -1), self._shares, strict=True):
            before, after = (t * share.numerator // share.denominator for t in (turn, turn + 1))
            if after > before:
                return order, before
            turn -= before
        return 0, turn
