"""The order of samples: a pure function of (seed, epoch, number of rows), the same on every machine and version."""

import numpy as np
import numpy.typing as npt

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


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


class Stream:
    """An endless stream of positions, epoch after epoch; nothing is dropped where an epoch ends inside a batch."""

    def __init__(self, n: int, seed: int) -> None:
        """A stream over positions 0 to ``n - 1``."""
        if n < 1:
            raise ValueError(f"a stream needs at least one row, got {n}")
        self.n, self.seed = n, seed
        self._epoch, self._order = -1, np.zeros(0, np.int64)

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
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self.seed, epoch, self.n)
        return self._order
