"""The loss on fixed draws: the same samples, noise and timesteps at any point of a run, so that two points compare."""

from collections.abc import Iterator
from typing import Any

import torch

from kcache.shards import Snapshot, Stream

from .draws import PROBE
from .feeder import Feeder
from .sources import MicroBatch
from .stages import Stage

SEED = 0
"""Of its own, so that two runs with different seeds compare too."""


def probe_loss(objective: Any, stage: Stage, snapshot: Snapshot, samples: int, batch_size: int, device: Any) -> float:
    """Mean loss over ``samples`` samples (rounded up to whole batches) with fixed draws; changes nothing."""
    stream, batches = Stream(len(snapshot), SEED), -(-samples // batch_size)

    def micro_batches() -> Iterator[MicroBatch]:
        for i in range(batches):
            positions = stream.take(i * batch_size, batch_size)
            yield MicroBatch(PROBE + i, range(batch_size), positions.tolist())

    total, source = torch.zeros((), device=device), stage.make_source(snapshot, SEED)
    objective.eval()
    with torch.no_grad(), Feeder(source, micro_batches(), batch_size, device) as feeder:
        for batch in feeder:
            total += objective(batch).detach()
    objective.train()
    return float(total / batches)
