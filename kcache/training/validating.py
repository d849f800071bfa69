"""What a run measures and draws on the way, which of its points is the best, and when no better one is to come."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kcache.progress import logger

from .assembly import in_use
from .checkpointing import TrainState
from .held_out import HeldOut
from .loop import Loop
from .metrics import Metrics
from .prior_scores import PriorScores
from .validation import Validator


@dataclass
class Validating:
    """The parts of a validation; those that were not asked for are None."""

    loop: Loop
    metrics: Metrics
    held_out: HeldOut | None
    scores: PriorScores | None
    drawer: Validator | None
    patience: int | None
    """Validations without a better loss after which training ends."""
    keep_best: Callable[[int], None]
    """Saves the weights as they are now in use, as the best."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.held_out is not None or self.drawer is not None

    def run(self, step: int, state: TrainState) -> TrainState:
        """Measure and draw with the weights that would be the result now; returns what is known of the best."""
        batch_size = self.loop.geometry.batch_size
        model = self.loop.accelerator.unwrap_model(self.loop.objective).model
        with in_use(self.loop), torch.no_grad():
            if self.held_out is not None:
                found = self.held_out.loss(self.loop.accelerator, self.loop.objective, batch_size)
                values: dict[str, Any] = found.metrics()
                if self.scores is not None:
                    values |= self.scores.measure(self.loop.accelerator, model, batch_size)
                self.metrics.log(values, step)
                state = self._compare(step, found.loss, state)
            if self.drawer is not None and self.loop.accelerator.is_main_process:
                self.metrics.pictures("validation", self.drawer.draw(model, step), step)
        self.loop.accelerator.wait_for_everyone()
        return state

    def is_over(self, state: TrainState) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and state.worse >= self.patience

    def _compare(self, step: int, loss: float, state: TrainState) -> TrainState:
        if not math.isfinite(loss) or (state.best_loss is not None and loss >= state.best_loss):
            return replace(state, worse=state.worse + 1)
        logger.debug("update %d has the best loss so far, %.6f", step, loss)
        self.keep_best(step)
        return replace(state, best_loss=loss, best_step=step, worse=0)


def best_folder(output_dir: Path) -> Path:
    """Where the weights of the best validation lie."""
    return output_dir / "best"
