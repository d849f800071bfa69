"""What a run measures and draws on the way, which of its points is the best, and when no better one is to come."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kcache.progress import logger
from kcache.shards import Snapshot, read_null

from .artists import HeldOutPictures
from .assembly import in_use
from .checkpointing import TrainState
from .config import DecoderConfig, PriorConfig
from .draws import HELD_OUT
from .held_out import HeldOut
from .loop import Loop
from .metrics import Metrics
from .mixture import Mixture
from .prior_scores import PriorScores
from .sampling import sampling_scheduler
from .sharding import called_alone, is_sharded
from .sources import MicroBatch
from .stages import Stage, start_of
from .validation import Validator, make_validator

PICTURES = 8
"""Held-out samples that pictures are made of."""


@dataclass
class Validating:
    """The parts of a validation; those that were not asked for are None."""

    loop: Loop
    metrics: Metrics
    held_out: HeldOut | None
    scores: PriorScores | None
    drawer: Validator | None
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
            if self.drawer is not None:
                with self.loop.accelerator.autocast():
                    pictures = self.drawer.draw(model, step)
                self.metrics.pictures("validation", pictures, step)
        self.loop.accelerator.wait_for_everyone()
        return state

    def _compare(self, state: TrainState, loss: float) -> TrainState:
        if state.best_loss is not None and loss >= state.best_loss:
            return replace(state, worse=state.worse + 1)
        self.keep_best(state.step, loss)
        return replace(state, best_loss=loss, best_step=state.step, worse=0)


def is_over(state: TrainState, patience: int | None) -> bool:
    """Whether so many validations in a row were not better that training ends (`--early-stopping`)."""
    return patience is not None and state.worse >= patience


def make_validating(
    config: PriorConfig | DecoderConfig,
    loop: Loop,
    stage: Stage,
    mixture: Mixture,
    metrics: Metrics,
    keep_best: Callable[[int, float], None],
) -> Validating:
    """What ``--validation-split`` and ``--validation-prompts`` ask for. Loads what that needs, on all processes."""
    held_out = scores = drawer = pictures = None
    if len(mixture.held_out):
        held_out = HeldOut(stage, mixture.samples, mixture.held_out[: config.validation_samples])
        if isinstance(config, PriorConfig):
            scores = PriorScores(held_out, sampling_scheduler(start_of(config)))
        elif is_sharded(loop.objective):
            logger.info("no pictures of held-out samples are made: one process has no whole model to draw with")
        elif _has_movq(config):
            pictures = held_out_pictures(held_out)
    if pictures or config.validation_prompts:
        device = loop.accelerator.device
        null = null_image(mixture.samples.snapshots[0])
        drawer = make_validator(config, stage.name, Path(config.output_dir), device, null, pictures)
    return Validating(loop, metrics, held_out, scores, drawer, keep_best)


def held_out_pictures(held_out: HeldOut) -> HeldOutPictures:
    """The first `PICTURES` held-out samples: their latents, image embeddings and first captions."""
    source, positions = held_out.source, held_out.positions[:PICTURES].tolist()
    latents, embeds = [], []
    for position in positions:
        batch = source.fill(source.allocate(1, pin=False), MicroBatch(HELD_OUT, [0], [position]))
        latents.append(batch["latents"][0].float())
        embeds.append(batch["image_embeds"][0].float())
    source.close()
    captions = [held_out.samples.caption(position) for position in positions]
    return HeldOutPictures(latents, torch.stack(embeds), captions)


def null_image(snapshot: Snapshot) -> torch.Tensor:
    """The cached CLIP embedding of no picture (D,), in fp32."""
    columns = [pinned.column for pinned in snapshot.pinned.values()]
    column = next(one for one in columns if one.fields[0].name == "image_embeds")
    return torch.from_numpy(read_null(snapshot.cache, column)["image_embeds"].astype(np.float32))


def _has_movq(config: DecoderConfig) -> bool:
    if start_of(config).has("movq"):
        return True
    logger.warning("%s has no movq: no pictures of held-out samples are made", start_of(config).name_or_path)
    return False
