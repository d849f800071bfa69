"""The loss on fixed draws: the same samples, noise and timesteps at any point of a run, so that two points compare."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kcache.shards import Stream

from .draws import PROBE
from .feeder import Feeder
from .samples import Positions, Samples
from .sharding import evaluating
from .sources import MicroBatch, Source
from .stages import Stage

SEED = 0
"""Of its own, so that two runs with different seeds compare too."""


def probe_loss(
    objective: Any, stage: Stage, samples: Samples, positions: Positions, count: int, batch_size: int, device: Any
) -> float:
    """Mean loss over ``count`` of the samples at ``positions`` with fixed draws, whatever the batch size.

    Of several views the first stands for each sample, and no condition is dropped, so that a run with mirrored pictures
    compares with one without. Changes nothing.
    """
    source = stage.make_source(samples, SEED, training=False)
    some = positions[Stream(len(positions), SEED).take(0, count)]
    total = torch.zeros((), device=device)
    with evaluating(objective), Feeder(source, _micro_batches(source, some, batch_size), batch_size, device) as feeder:
        for batch in feeder:
            total += objective(batch).detach() * len(batch["timesteps"])
    return float(total / count)


def _micro_batches(source: Source, positions: Positions, batch_size: int) -> Iterator[MicroBatch]:
    """The samples at ``positions``, group by group. A sample's draws belong to its place among all of them."""
    for group in source.groups:
        slots = np.flatnonzero(np.isin(positions, group))
        for start in range(0, len(slots), batch_size):
            some = slots[start : start + batch_size]
            yield MicroBatch(PROBE, some.tolist(), positions[some].tolist())
