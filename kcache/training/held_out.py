"""The loss on held-out samples with fixed noise, by timestep band: two runs, or two points of one, compare."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

from .chosen import id_hash, planned_ids
from .draws import HELD_OUT
from .feeder import Feeder
from .samples import Positions, Samples
from .sharding import evaluating
from .sources import MicroBatch, Source
from .stages import Stage

Kind = TypeVar("Kind")

BANDS = 4
"""Equal parts of the timesteps: each sample is measured once in each."""
SEED = 0
"""Of its own, so that runs with different seeds compare too."""


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean over all bands, and the mean in each, by its first and last timestep."""

    loss: float
    bands: dict[tuple[int, int], float]

    def metrics(self) -> dict[str, float]:
        """As they stand in ``metrics.jsonl``."""
        named = {f"validation_loss_{low}_{high}": loss for (low, high), loss in self.bands.items()}
        return {"validation_loss": self.loss, **named}


class HeldOut:
    """Held-out samples and their draws, which belong to a sample's id and the band alone."""

    def __init__(self, stage: Stage, samples: Samples, positions: Positions) -> None:
        """``positions`` are of the first snapshot."""
        self.stage, self.samples, self.positions = stage, samples, positions
        self.source: Source = stage.make_source(samples, SEED, training=False)
        self._slots = [id_hash(name) for name in planned_ids(samples.snapshots[0], positions)]
        steps = stage.scheduler.config.num_train_timesteps
        edges = [band * steps // BANDS for band in range(BANDS + 1)]
        self.bands = [range(low, high) for low, high in pairwise(edges)]

    def loss(self, accelerator: Any, objective: Any, batch_size: int) -> HeldOutLoss:
        """The loss without any weighting, over all processes; changes nothing."""
        totals = torch.zeros(BANDS, device=accelerator.device)
        work = [
            (batch, band, 1)
            for band, timesteps in enumerate(self.bands)
            for _, batch in self.batches(batch_size, HELD_OUT + band, timesteps)
        ]
        mine = share(work, accelerator.process_index, accelerator.num_processes)
        batches = iter([batch for batch, _, _ in mine])
        with evaluating(objective), Feeder(self.source, batches, batch_size, accelerator.device) as feeder:
            for (_, band, counts), batch in zip(mine, feeder, strict=True):
                totals[band] += objective(batch).detach() * len(batch["timesteps"]) * counts
        means = (accelerator.reduce(totals, "sum") / len(self.positions)).tolist()
        ends = [(band[0], band[-1]) for band in self.bands]
        return HeldOutLoss(float(np.mean(means)), dict(zip(ends, means, strict=True)))

    def batches(
        self, batch_size: int, step: int, timesteps: range | None = None
    ) -> Iterator[tuple[Positions, MicroBatch]]:
        """All samples once, each batch of one shape; with each batch, which of `positions` are in it."""
        slots = np.array(self._slots, np.uint64)
        for group in self.source.groups:
            among = np.flatnonzero(np.isin(self.positions, group))
            for start in range(0, len(among), batch_size):
                some = among[start : start + batch_size]
                yield some, MicroBatch(step, slots[some].tolist(), self.positions[some].tolist(), timesteps)


def share(work: list[tuple[MicroBatch, Kind, int]], rank: int, processes: int) -> list[tuple[MicroBatch, Kind, int]]:
    """What one process measures: every process as many batches, for sharded models run on all at once.

    One that has fewer measures the first again, and counts it 0 times.
    """
    mine = work[rank::processes]
    missing = -(-len(work) // processes) - len(mine)
    batch, kind, _ = work[0]
    return mine + [(batch, kind, 0)] * missing
