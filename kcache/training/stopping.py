"""How a run is stopped: a signal to any process lets all of them finish the same update and write a checkpoint."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kcache.progress import logger

ECHO = 3.0
"""Seconds in which a second signal counts as the first, where a launcher passes on what its processes got as well."""

INTERVAL = 2.0
"""Seconds, about, after which processes ask each other anew whether to stop."""
MOST = 100
"""Updates after which they ask at the latest."""


@contextmanager
def finish_step_on_signal(echo: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Within it the first SIGINT or SIGTERM sets the flag that the yielded function returns; a second interrupts.

    One that comes within ``echo`` seconds of the first is the same: SLURM signals the launcher and the processes, and
    the launcher signals them once more.
    """
    first: float | None = None

    def ask(number: int, frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            logger.warning("finishing the update and writing a checkpoint; a second signal would abandon both")
        elif now - first >= echo:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals go elsewhere
        yield lambda: False
        return
    try:
        yield lambda: first is not None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopTogether:
    """Whether to stop after an update, the same in all processes: each may have been asked to, or none."""

    def __init__(self, accelerator: Any, asked: Callable[[], bool], first_step: int) -> None:
        """``asked`` says whether this process was; training goes on from ``first_step``."""
        self._accelerator, self._asked = accelerator, asked
        self._last, self._next, self._since = first_step, first_step + 1, time.perf_counter()

    def __call__(self, step: int) -> bool:
        """After update ``step``. Processes wait for each other only when they ask, which is every `INTERVAL` or so."""
        if self._accelerator.num_processes == 1:
            return self._asked()
        if step < self._next:
            return False
        now = time.perf_counter()
        pace = (now - self._since) / (step - self._last)
        mine = torch.tensor([float(self._asked()), pace], device=self._accelerator.device)
        asked, paces = self._accelerator.reduce(mine, "sum").tolist()
        seconds = paces / self._accelerator.num_processes  # the same number in all, and so is what follows from it
        self._last, self._since = step, now
        self._next = step + min(MOST, max(1, int(INTERVAL / max(seconds, 1e-6))))
        return bool(asked)
