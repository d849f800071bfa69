"""The loop's parts put together, as new or as a checkpoint left them, and what a checkpoint keeps of them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from kcache.shards import KcacheError

from .checkpointing import TrainState, load_tensors
from .config import TrainConfig
from .ema import Ema
from .loop import Geometry, Loop, Objective
from .one_by_one import OneByOne
from .optimizers import make_optimizer, optimizer_state, restore_optimizer, weights_for_use
from .schedules import make_schedule
from .sharding import whole
from .stages import Stage


def make_loop(
    config: TrainConfig,
    accelerator: Any,
    stage: Stage,
    geometry: Geometry,
    max_steps: int,
    state: TrainState,
    resumed: Path | None,
) -> Loop:
    """The loop of a run in ``state``: optimizer, average and gradient scaler as new, or as ``resumed`` left them."""
    trained = [p for p in stage.model.parameters() if p.requires_grad]
    optimizer = made = make_optimizer(config, trained, accelerator.device, state.seed, state.step)
    # FSDP alone gets no autocast from accelerate: see `engine`.
    autocast = accelerator.autocast if accelerator.is_fsdp2 else nullcontext
    objective, optimizer = accelerator.prepare(Objective(stage, config.snr_gamma, autocast).train(), optimizer)
    trained = [p for p in objective.parameters() if p.requires_grad]
    ema = Ema(trained, config.ema_decay) if config.use_ema else None
    if resumed:
        _restore(resumed, config, optimizer, ema, accelerator.scaler)
    return Loop(
        accelerator=accelerator,
        objective=objective,
        optimizer=optimizer,
        schedule=make_schedule(config, optimizer, max_steps, state.step),
        geometry=geometry,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.logging_steps,
        has_dropout=any(isinstance(m, nn.Dropout) and m.p > 0 for m in stage.model.modules()),
        seed=state.seed,
        ema=ema,
        in_backward=made if config.update_in_backward and isinstance(made, OneByOne) else None,
    )


def tensors_of(loop: Loop, config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights and the state, whole; all processes must ask for it together."""
    tensors = {"optimizer": optimizer_state(loop.optimizer, config)}
    if loop.ema is not None:
        tensors["ema"] = loop.ema.state_dict()
    if loop.accelerator.scaler is not None:
        tensors["scaler"] = loop.accelerator.scaler.state_dict()
    whole_tensors: dict[str, Any] = whole(tensors, keep=loop.accelerator.is_main_process)
    return whole_tensors


def _restore(checkpoint: Path, config: TrainConfig, optimizer: Any, ema: Ema | None, scaler: Any) -> None:
    tensors = load_tensors(checkpoint)
    if (ema is not None) != ("ema" in tensors):
        have, remedy = ("without", "leave it out") if ema else ("with", "add it")
        raise KcacheError(f"{checkpoint} was made {have} --use-ema; {remedy} to go on from it")
    restore_optimizer(optimizer, tensors["optimizer"], config)
    if ema is not None:
        ema.load_state_dict(tensors["ema"])
    if scaler is not None and "scaler" in tensors:
        scaler.load_state_dict(tensors["scaler"])


@contextmanager
def in_use(loop: Loop) -> Iterator[None]:
    """Within it the model has the weights that are the result: averaged ones where there are any."""
    with weights_for_use(loop.optimizer):
        if loop.ema is None:
            yield
            return
        with loop.ema.applied():
            yield
