"""How long an encoder takes here, and a picture before it comes to one: measured on a batch and on some pictures."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

from PIL import Image

from kcache.progress import logger

from .dataset import Dataset, Sample
from .encoders import Awaited, Encoder, ImageEncoder
from .images import Decoding, hushed_pillow
from .pictures import prepare
from .text_column import TextColumn

LONGEST = 3.0
"""Seconds that one thing is measured for, about: a batch that takes longer is measured in part."""

PICTURES = 16
"""Pictures that are read to know how long that takes; the first is left out, for it begins with imports."""


class Timings:
    """What was measured in one run: each encoder and the pictures once, however often they are asked for."""

    def __init__(self, encoders: Mapping[str, Encoder], batch_size: int, decoding: Decoding, workers: int) -> None:
        """Measure nothing yet. ``workers`` threads read pictures."""
        self._encoders, self._batch_size, self._decoding = encoders, batch_size, decoding
        self._at_once = min(workers, os.cpu_count() or 1)
        self._each: dict[str, float] = {}
        self._reading: float | None = None
        self.loading = 0.0
        """Seconds that the models took to load, of the encoders that were timed."""

    def encoding(self, name: str) -> float:
        """Seconds for one input of a column's encoder, in a batch."""
        if name not in self._each:
            logger.info("timing the encoder of %s here", name)
            encoder = self._encoders[name]
            self.loading += _seconds(encoder.load)
            self._each[name] = _seconds_each(encoder, self._batch_size)
        return self._each[name]

    def reading(self, dataset: Dataset, samples: Sequence[Sample]) -> float:
        """Seconds to read, decode and resize one picture for all columns, shared among the threads that do."""
        if self._reading is None:
            self._reading = self._measured_reading(dataset, samples) / self._at_once
        return self._reading

    def _measured_reading(self, dataset: Dataset, samples: Sequence[Sample]) -> float:
        image = {n: cast(ImageEncoder, e) for n, e in self._encoders.items() if e.column.reads == "image"}
        taken: list[float] = []
        # From all over the dataset: the first ones may be of one kind.
        with hushed_pillow(self._decoding.max_pixels):
            for sample in samples[:: max(1, len(samples) // PICTURES)][:PICTURES]:
                taken.append(_seconds(partial(prepare, dataset, sample, image, self._decoding)))
                if sum(taken) > LONGEST:
                    break
        warm = taken[1:] or taken
        return sum(warm) / len(warm) if warm else 0.0


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _seconds_each(encoder: Encoder, batch_size: int) -> float:
    """Seconds for one input in a batch of the size that the encode will use, after a batch that is not counted.

    The first batch of a size is slower: kernels are chosen for it, and memory is found.
    """
    alone = _seconds_of(encoder, 1, batch_size)
    if alone < LONGEST:
        alone = _seconds_of(encoder, 1, batch_size)
    count = min(batch_size, int(LONGEST / alone))
    if count < 2:
        return alone
    _seconds_of(encoder, count, batch_size)
    return _seconds_of(encoder, count, batch_size) / count


def _seconds_of(encoder: Encoder, count: int, batch_size: int) -> float:
    inputs = list(_made_up(encoder, count))
    return _seconds(lambda: _wait_for(encoder.features(inputs, batch_size)))


def _wait_for(coming: Iterable[Awaited]) -> None:
    for wait in list(coming):
        wait()


def _made_up(encoder: Encoder, count: int) -> Iterator[object]:
    """Inputs of the usual size; captions differ, for equal ones are encoded once."""
    for number in range(count):
        if isinstance(encoder, TextColumn):
            yield [f"picture {number} of {count}"]
        else:
            yield cast(ImageEncoder, encoder).prepare(Image.new("RGB", (512, 512)), "0" * 64)
