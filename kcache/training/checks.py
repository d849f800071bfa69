"""Options that contradict one another, or ask for nothing: refused before a cache or a model is opened."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from kcache.shards import UsageError

from .chosen import check_selection
from .compiling import check_compile
from .config import DecoderConfig, PriorConfig, TrainConfig
from .low_memory import check_low_memory
from .memory import check_memory_options
from .optimizers import optimizer_arguments
from .schedules import check_schedule
from .trackers import log_with, refuse_token

_NEED = (
    (("rank", "lora_alpha", "lora_dropout", "lora_targets", "use_dora"), ("lora",)),
    (("base_dtype",), ("lora",)),
    (("ema_decay",), ("use_ema",)),
    (("loss_weight",), ("mix",)),
    (("validation_samples", "early_stopping"), ("validation_split",)),
    (
        ("validation_epochs", "validation_steps", "validation_guidance_scale"),
        ("validation_split", "validation_prompts"),
    ),
    (("num_validation_images",), ("validation_prompts",)),
    (("tracker_project_name", "logging_dir"), ("report_to",)),
    (("hub_model_id", "hub_token", "hub_private_repo"), ("push_to_hub",)),
    (("accept_new_snapshot",), ("resume_from_checkpoint",)),
)
"""Options, and those of which one must be given for them to have an effect."""

_STANDS_FOR = {"validation_epochs": (5, 1), "num_validation_images": (1, 4)}
"""What an option means that is None by default, in the reference's full and LoRA scripts: to write it asks nothing."""

Check = Callable[[Any], None]


def check_config(config: PriorConfig | DecoderConfig) -> None:
    """UsageError for options that do not go together; KcacheError where one needs a package that is not installed.

    What is written out and is the default counts as not given.
    """
    for check in _CHECKS:
        check(config)


def _refuse_what_has_no_effect(config: TrainConfig) -> None:
    for options, needed in _NEED:
        given = [name for name in options if _is_given(config, name)]
        if given and not any(getattr(config, name) for name in needed):
            remedy = " or ".join(map(_spelled, needed))
            raise UsageError(
                f"{_shown(config, given[0])} has no effect without {remedy}; add it, or leave {_spelled(given[0])} out"
            )


def _refuse_contradictions(config: PriorConfig | DecoderConfig) -> None:
    if _is_given(config, "validation_epochs") and config.validation_steps is not None:
        raise UsageError(
            f"{_shown(config, 'validation_epochs')} and {_shown(config, 'validation_steps')} both say when to validate;"
            " give one of them"
        )
    if len(config.loss_weight) not in (0, len(config.mix)):
        raise UsageError(
            f"{len(config.loss_weight)} --loss-weight for {len(config.mix)} --mix; give one for each, in their order"
        )
    if isinstance(config, PriorConfig) and not config.trim_captions:
        for name in ("group_by_length", "pack_captions"):
            if getattr(config, name):
                raise UsageError(
                    f"{_spelled(name)} is there to leave padding out, and --no-trim-captions keeps all of it; give one"
                    " of them"
                )
    if isinstance(config, DecoderConfig) and config.buckets and config.random_crops:
        raise UsageError("a picture is cut to its bucket or at random; give --buckets or --random-crops, not both")


def _check_optimizer(config: TrainConfig) -> None:
    optimizer_arguments(config)


def _check_trackers(config: TrainConfig) -> None:
    refuse_token(log_with(config.report_to), config.hub_token)


_CHECKS: Sequence[Check] = (
    _refuse_what_has_no_effect,
    _refuse_contradictions,
    check_schedule,
    check_memory_options,
    check_compile,
    check_low_memory,
    check_selection,
    _check_trackers,
    _check_optimizer,  # last, as it imports packages
)


def _is_given(config: TrainConfig, name: str) -> bool:
    (default,) = (field.default for field in fields(config) if field.name == name)
    value = getattr(config, name)
    full, lora = _STANDS_FOR.get(name, (default, default))
    return value not in (default, lora if config.lora else full)


def _shown(config: TrainConfig, name: str) -> str:
    """An option as it was given: a flag or a secret without its value."""
    value = getattr(config, name)
    if value is True or name == "hub_token":
        return _spelled(name)
    return f"{_spelled(name)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"
