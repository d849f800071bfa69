"""What a run measures and draws on the way, which of its points is the best, and when no better one is to come."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kcache.checkpoints import Checkpoint

from .assembly import in_use
from .checkpointing import TrainState
from .config import DecoderConfig, PriorConfig
from .held_out import HeldOut
from .loop import Loop
from .metrics import Metrics
from .mixture import Mixture
from .prior_scores import PriorScores
from .sampling import sampling_scheduler
from .sharding import called_alone
from .stages import Stage


@dataclass
class Validating:
    """The parts of a validation; those that were not asked for are None."""

    loop: Loop
    metrics: Metrics
    held_out: HeldOut | None
    scores: PriorScores | None
    drawer: Any | None
    patience: int | None
    """Validations without a better loss after which training ends."""
    keep_best: Callable[[int, float], None]
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
                    with called_alone(self.loop.objective, model):
                        values |= self.scores.measure(self.loop.accelerator, model, batch_size)
                self.metrics.log(values, step)
                state = self._compare(replace(state, step=step), found.loss)
            if self.drawer is not None and self.loop.accelerator.is_main_process:
                self.metrics.pictures("validation", self.drawer.draw(model, step), step)
        self.loop.accelerator.wait_for_everyone()
        return state

    def is_over(self, state: TrainState) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and state.worse >= self.patience

    def _compare(self, state: TrainState, loss: float) -> TrainState:
        if state.best_loss is not None and loss >= state.best_loss:
            return replace(state, worse=state.worse + 1)
        self.keep_best(state.step, loss)
        return replace(state, best_loss=loss, best_step=state.step, worse=0)


def make_validating(
    config: PriorConfig | DecoderConfig,
    loop: Loop,
    stage: Stage,
    mixture: Mixture,
    metrics: Metrics,
    keep_best: Callable[[int, float], None],
) -> Validating:
    """What ``--validation-split`` and ``--validation-prompts`` ask for. Loads what that needs."""
    held_out = scores = None
    if len(mixture.held_out):
        held_out = HeldOut(stage, mixture.samples, mixture.held_out[: config.validation_samples])
        if isinstance(config, PriorConfig):
            checkpoint = Checkpoint(config.pretrained_prior_model_name_or_path, config.revision, None, config.cache_dir)
            scores = PriorScores(held_out, sampling_scheduler(checkpoint))
    return Validating(loop, metrics, held_out, scores, None, config.early_stopping, keep_best)
