"""Batches of samples of about one length: those of another order, sorted within windows, so that little is padded."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .order import permutation

WINDOW = 50
"""Batches that are sorted together: from there on more hardly save anything, and fewer mix the lengths better."""

_BATCHES = 0x4C454E475448
"""What the seed is changed by where it orders the batches of a window, so that no epoch's order is theirs."""


class Batches(Protocol):
    """An order of batches, each a function of its step."""

    global_batch: int

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The positions of global batch ``step``."""


class LengthOrder:
    """Window after window of another order, in batches of about one length.

    The samples of ``window`` batches are sorted by length, equal ones as they came, and cut into as many batches, which
    come in an order drawn from the seed. So after every window exactly the samples of the other order have been seen:
    nothing is dropped, none comes more often, and caches that are mixed have their shares. Within a batch the short
    ones come first, so that each part of an update is of about one length as well.

    Any step may be asked for at any time, and costs one window at most.
    """

    def __init__(
        self, order: Batches, lengths: npt.NDArray[np.integer], seed: int, epoch: int, window: int = WINDOW
    ) -> None:
        """``lengths`` are those of all positions. ``epoch`` is how many samples come before one comes again: no window
        is longer.
        """
        self._order, self._lengths, self._seed = order, lengths, seed
        self.global_batch = order.global_batch
        self.window = max(1, min(window, epoch // order.global_batch))
        self._now: tuple[int, Sequence[npt.NDArray[np.int64]]] = (-1, [])

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The positions of global batch ``step`` (shape ``(global_batch,)``)."""
        number, place = divmod(step, self.window)
        now = self._now
        if now[0] != number:
            now = self._now = number, self._cut(number)
        return now[1][place]

    def _cut(self, number: int) -> Sequence[npt.NDArray[np.int64]]:
        steps = range(number * self.window, (number + 1) * self.window)
        samples = np.concatenate([self._order.batch(step) for step in steps])
        sorted_samples = samples[np.argsort(self._lengths[samples], kind="stable")]
        batches = sorted_samples.reshape(self.window, self.global_batch)
        return [batches[place] for place in permutation(self._seed ^ _BATCHES, number, self.window)]
