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
    """Mean loss over ``samples`` samples with fixed draws, whatever the batch size; changes nothing."""
    positions = Stream(len(snapshot), SEED).take(0, samples).tolist()

    def micro_batches() -> Iterator[MicroBatch]:
        for start in range(0, samples, batch_size):
            slots = range(start, min(start + batch_size, samples))
            yield MicroBatch(PROBE, slots, positions[slots.start : slots.stop])

    total, source = torch.zeros((), device=device), stage.make_source(snapshot, SEED)
    objective.eval()
    with torch.no_grad(), Feeder(source, micro_batches(), batch_size, device) as feeder:
        for batch in feeder:
            total += objective(batch).detach() * len(batch["timesteps"])
    objective.train()
    return float(total / samples)
