"""`--low-memory` and the parts that it is made of: what it stands for, and which options do not go together."""

from typing import Any

from kcache.shards import UsageError

from .config import DecoderConfig, TrainConfig
from .optimizers import is_one_by_one, optimizer_name
from .precision import held_in_bf16

FULL = {
    "weights_dtype": "bf16",
    "optimizer": "adamw8bit",
    "update_in_backward": True,
    "max_grad_norm": 0.0,
    "gradient_checkpointing": True,
}
"""What ``--low-memory`` stands for where the whole component is trained."""
LORA = {"base_dtype": "bf16", "gradient_checkpointing": True}
"""What it stands for where a LoRA is trained, which has few gradients and states."""

_DTYPES = ("fp32", "bf16")
_LOOK_AT_ALL = ("prodigy", "schedulefree")
"""Optimizers that look at all parameters at once."""


def with_low_memory(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a command, None where not given, with what ``--low-memory`` stands for where nothing else was said."""
    preset = LORA if options.get("lora") else FULL
    given = {name for name, value in options.items() if value is not None}
    if options.get("use_8bit_adam"):
        given.add("optimizer")
    return options | {name: value for name, value in preset.items() if name not in given}


def check_low_memory(config: TrainConfig) -> None:
    """UsageError where parts of ``--low-memory`` do not go with one another or with what else is asked for."""
    for name in ("weights_dtype", "base_dtype"):
        if getattr(config, name) not in _DTYPES:
            raise UsageError(f"--{name.replace('_', '-')} '{getattr(config, name)}' is none of {', '.join(_DTYPES)}")
    if config.lora and config.weights_dtype == "bf16":
        raise UsageError(
            "--weights-dtype bf16 is for training the whole; the adapters of a LoRA stay in fp32, and --base-dtype"
            " bf16 holds what lies beside them in bf16"
        )
    _refuse_optimizers(config)
    if config.update_in_backward:
        _refuse_what_needs_all_gradients(config, config.gradient_accumulation_steps)
    if config.mixed_precision == "fp16":
        refuse_fp16(config)


def refuse_fp16(config: TrainConfig) -> None:
    """UsageError where an option does not go with fp16, which the launcher may have chosen."""
    if config.update_in_backward:
        raise UsageError(
            "in fp16 all gradients are looked at before an update, and --update-in-backward keeps none; give"
            " --mixed-precision bf16 or no"
        )
    if held_in_bf16(config):
        option = "--base-dtype" if config.lora else "--weights-dtype"
        raise UsageError(f"{option} bf16 and --mixed-precision fp16 contradict each other; give bf16 or no")


def refuse_processes(config: TrainConfig, processes: int) -> None:
    """UsageError where an option does not go with several processes, which sum gradients after backward."""
    if config.update_in_backward and processes > 1:
        raise UsageError(
            f"--update-in-backward is for one process, and this run has {processes}, which add up their gradients when"
            " all are there; leave it out (--low-memory has it: give the other options that it stands for)"
        )


def refuse_accumulation(config: TrainConfig, accumulation: int) -> None:
    """UsageError where a run that goes on with fewer processes would accumulate, to keep the samples of an update."""
    if config.update_in_backward:
        _refuse_what_needs_all_gradients(config, accumulation)


def refuse_sharding(config: TrainConfig) -> None:
    """UsageError where an option does not go with FSDP."""
    given = {
        "--weights-dtype bf16": config.weights_dtype == "bf16",
        "--base-dtype bf16": config.base_dtype == "bf16",
        "--update-in-backward": config.update_in_backward,
        "--offload-optimizer": config.offload_optimizer,
        "--channels-last": isinstance(config, DecoderConfig) and config.channels_last,
    }
    if asked := [option for option, is_given in given.items() if is_given]:
        raise UsageError(
            f"{asked[0]} does not work with weights sharded by FSDP, which cuts them as it finds them;"
            " leave it out, or train without FSDP"
        )


def _refuse_optimizers(config: TrainConfig) -> None:
    name = optimizer_name(config)
    if is_one_by_one(config) and name in _LOOK_AT_ALL:
        one_by_one = "--weights-dtype bf16, --update-in-backward and --offload-optimizer"
        raise UsageError(
            f"--optimizer {name} looks at all weights at once, and {one_by_one} update one after the other; give"
            " adamw, adamw8bit, adafactor or sgd"
        )
    if config.offload_optimizer and "is_paged=true" in config.optimizer_args:
        raise UsageError("--offload-optimizer and is_paged=true both move states out of the GPU; give one of them")


def _refuse_what_needs_all_gradients(config: TrainConfig, accumulation: int) -> None:
    """UsageError for clipping by a norm of all gradients, and for gradients that are summed over batches."""
    remedy = "leave --update-in-backward out (--low-memory has it)"
    if config.max_grad_norm:
        raise UsageError(
            f"--update-in-backward keeps no gradients that --max-grad-norm {config.max_grad_norm:g} could look at"
            f" together; give --max-grad-norm 0, or {remedy}"
        )
    if accumulation > 1:
        raise UsageError(
            f"--update-in-backward keeps no gradients that could be summed over {accumulation} batches; give"
            f" --gradient-accumulation-steps 1 and a larger --train-batch-size, or {remedy}"
        )
