"""A run that went wrong: no checkpoint holds a NaN, and the update, its samples and the last good state are named."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcache.shards import KcacheError

from .checkpointing import checkpoints
from .loop import Loop, Progress
from .mixture import Mixture, Order
from .sharding import all_finite
from .sources import Source

SHOWN = 8
"""Samples of an update that are named."""


@dataclass(frozen=True)
class Divergence:
    """What is needed to say what an update was made of."""

    loop: Loop
    order: Order
    source: Source
    mixture: Mixture
    output_dir: Path

    def refuse(self, now: Progress) -> None:
        """KcacheError where an update since the last that was logged went wrong."""
        if now.bad_step is not None:
            raise self._error(now.what, now.bad_step)

    def refuse_nan(self, model: Any, step: int) -> None:
        """KcacheError where a weight is not finite: losses are looked at when they are logged, which may be later.

        All processes must ask together, and all are told.
        """
        if not all_finite(model, self.loop.accelerator):
            raise self._error("a weight is no longer a finite number", step)

    def refuse_loss(self, loss: float, step: int) -> None:
        """KcacheError where a validation gives no finite loss."""
        if not loss - loss == 0:
            raise self._error(f"the held-out loss is {loss}", step)

    def _error(self, what: str, step: int) -> KcacheError:
        positions = self.order.batch(max(0, step - 1)).tolist()
        ids = [self.mixture.samples.id(self.source.sample_of(position)) for position in positions[:SHOWN]]
        more = f" and {len(positions) - SHOWN:,} more" if len(positions) > SHOWN else ""
        rate = self.loop.schedule.get_last_lr()[0]
        saved = checkpoints(self.output_dir)
        last = f"go on from {saved[-1]}, the last good one," if saved else "no checkpoint was written yet: begin anew"
        return KcacheError(
            f"{what} at update {step:,} (learning rate {rate:.2e}; samples {', '.join(ids)}{more}); {last} with a lower"
            " --learning-rate"
        )
