"""The learning rate of every update: the schedules of diffusers by name, and which options each of them has."""

import re
import warnings
from typing import Any

from kcache.progress import logger
from kcache.shards import UsageError

from .config import SCHEDULES, TrainConfig
from .optimizer_args import did_you_mean
from .optimizers import optimizer_name

_HAVE = {
    "lr_num_cycles": ("cosine", "cosine_with_restarts"),
    "lr_power": ("polynomial",),
    "lr_step_rules": ("piecewise_constant",),
}
"""The options that only some schedules have."""

_WITHOUT_WARM_UP = ("constant", "piecewise_constant")
_SCHEDULE_FREE = ("constant", "constant_with_warmup")
_LOWEST = 1e-7
"""Where diffusers' polynomial ends."""


def check_schedule(config: TrainConfig) -> None:
    """UsageError where the options of the schedule do not fit it or the optimizer. Needs no model."""
    name = config.lr_scheduler
    if name not in SCHEDULES:
        raise UsageError(f"--lr-scheduler '{name}' is none of {', '.join(SCHEDULES)}{did_you_mean(name, SCHEDULES)}")
    for option, schedules in _HAVE.items():
        if name not in schedules and getattr(config, option) != getattr(TrainConfig, option):
            spelled = option.replace("_", "-")
            raise UsageError(f"--{spelled} is for --lr-scheduler {' or '.join(schedules)}, not {name}; leave it out")
    if name == "cosine_with_restarts" and (config.lr_num_cycles or 1) % 1:
        raise UsageError(f"--lr-num-cycles {config.lr_num_cycles} of cosine_with_restarts is no whole number")
    if name == "polynomial" and config.learning_rate <= _LOWEST:
        raise UsageError(
            f"--lr-scheduler polynomial ends at {_LOWEST}, and --learning-rate {config.learning_rate} is not above it;"
            " raise it, or choose linear"
        )
    if name == "piecewise_constant":
        _check_rules(config.lr_step_rules)
    if optimizer_name(config) == "schedulefree" and name not in _SCHEDULE_FREE:
        raise UsageError(
            f"--optimizer schedulefree averages in place of a schedule, and --lr-scheduler {name} would lower the rate"
            f" as well; choose {' or '.join(_SCHEDULE_FREE)}"
        )


def make_schedule(config: TrainConfig, optimizer: Any, max_steps: int, step: int) -> Any:
    """The learning rates of updates ``step`` to ``max_steps``, each a function of its number alone.

    The loop steps it once per update, so it must not be prepared by accelerate: that steps it once per process; and
    the reference multiplies warm-up by accumulation, which doubles as a bug. Errors as in `check_schedule`.
    """
    from diffusers.optimization import get_cosine_schedule_with_warmup, get_scheduler

    check_schedule(config)
    _say_what_warm_up_does(config, max_steps)
    name, warm_up, cycles = config.lr_scheduler, config.lr_warmup_steps, config.lr_num_cycles
    optimizer = getattr(optimizer, "optimizer", optimizer)  # without what accelerate wrapped around it
    for group in optimizer.param_groups:
        group |= {"lr": config.learning_rate, "initial_lr": config.learning_rate}
    # Torch warns where the first update was skipped, which in fp16 is how the scaler finds its scale.
    warnings.filterwarnings("ignore", r"(?s)(Detected call of|Seems like) .*lr_scheduler", UserWarning)
    last = step - 1  # the schedule takes its first step by itself; -1: begin
    if name == "cosine":  # get_scheduler does not hand on its number of waves
        return get_cosine_schedule_with_warmup(optimizer, warm_up, max_steps, cycles or 0.5, last)
    return get_scheduler(
        name,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=warm_up,
        num_training_steps=max(max_steps, warm_up + 1),  # else polynomial divides by zero after the last update
        num_cycles=int(cycles or 1),
        power=config.lr_power,
        last_epoch=last,
    )


def _check_rules(rules: str | None) -> None:
    """UsageError unless ``rules`` are factors, each but the last with the update before which it holds."""
    example = "such as 1:10,0.1:20,0.01: as it is before update 10, a tenth before update 20, then a hundredth"
    if rules is None:
        raise UsageError(f"--lr-scheduler piecewise_constant needs --lr-step-rules, {example}")
    number = r"\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*"
    if not re.fullmatch(rf"(?:{number}:\s*\d+\s*,)*{number}", rules, re.ASCII):
        raise UsageError(f"--lr-step-rules '{rules}' is not FACTOR:UPDATE,...,FACTOR, {example}")
    updates = [int(update) for update in re.findall(r":\s*(\d+)", rules)]
    if any(late <= early for early, late in zip([0, *updates], updates, strict=False)):
        raise UsageError(f"--lr-step-rules '{rules}' has updates that do not ascend from 1; order them, {example}")


def _say_what_warm_up_does(config: TrainConfig, max_steps: int) -> None:
    """Warn of a warm-up that does nothing, or nothing but warm up. The reference says neither."""
    name, warm_up = config.lr_scheduler, config.lr_warmup_steps
    if name in _WITHOUT_WARM_UP:
        if warm_up not in (0, TrainConfig.lr_warmup_steps):
            logger.warning("--lr-warmup-steps %d has no effect: --lr-scheduler %s has no warm-up", warm_up, name)
    elif warm_up >= max_steps:
        logger.warning(
            "all of the %s updates are warm-up, and the rate never comes to --learning-rate %g:"
            " give --lr-warmup-steps less than %s",
            f"{max_steps:,}",
            config.learning_rate,
            f"{warm_up:,}",
        )
