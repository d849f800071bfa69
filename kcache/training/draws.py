"""Every random number of training, keyed by (seed, update, slot in the global batch, draw and its number)."""

from typing import Any

import numpy as np
import numpy.typing as npt

NOISE, TIMESTEP, CAPTION, VIEW, DROPOUT = range(5)
"""The draws. A new one goes at the end: the numbers are part of what makes a run repeatable."""

PROBE, HELD_OUT = 2**48, 2**49
"""The updates to which the fixed draws of `probe` and `held_out` belong; no training comes that far."""


class Draws:
    """Random numbers that depend on their key alone: not on rank, accumulation, device or what was drawn before.

    The generator is Philox4x64 (Salmon et al. 2011), which is a function of a key and a counter. Not for two threads.
    """

    def __init__(self, seed: int) -> None:
        """``seed`` is 0 to 2**63 - 1."""
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._seed = seed

    def normal(self, step: int, slot: int, draw: int, out: npt.NDArray[np.float32], number: int = 0) -> None:
        """Fill ``out`` with standard normal numbers; ``number`` tells several of one sample apart."""
        self._seek(step, slot, draw, number)
        self._generator.standard_normal(dtype=np.float32, out=out)

    def integer(self, step: int, slot: int, draw: int, high: int, number: int = 0) -> int:
        """A whole number from 0 to ``high - 1``, all equally likely; ``number`` as in `normal`."""
        self._seek(step, slot, draw, number)
        return int(self._generator.integers(high))

    def chance(self, step: int, slot: int, draw: int, probability: float) -> bool:
        """True with this probability."""
        self._seek(step, slot, draw, 0)
        return bool(self._generator.random() < probability)

    def _seek(self, step: int, slot: int, draw: int, number: int) -> None:
        # The lowest word of the counter advances with the numbers drawn; the others hold the key, so no two draws meet.
        # Tuples and not arrays: this is called several times for each sample, and takes a tenth of the time.
        state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": (0, slot, step, number), "key": (self._seed, draw)},
            "buffer": (0, 0, 0, 0),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._bits.state = state
