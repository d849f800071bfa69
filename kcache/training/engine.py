"""How the processes of a run work together: started by accelerate, as one, under DDP or FSDP; the rest is refused."""

import os
from pathlib import Path
from typing import Any

from kcache.devices import default_device
from kcache.shards import KcacheError, UsageError

from .config import DecoderConfig, PriorConfig
from .low_memory import refuse_fp16, refuse_processes, refuse_sharding
from .optimizers import optimizer_name
from .trackers import log_with

SHARDED_OPTIMIZERS = ("adamw", "sgd")
"""Those whose state is cut as the parameters are: every other one keeps something that is not."""


def make_accelerator(config: PriorConfig | DecoderConfig) -> Any:
    """What accelerate makes of the launcher's environment. Errors where a run would not be what was asked for."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    _refuse_other_engines()
    folder = Path(config.output_dir)
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        mixed_precision=config.mixed_precision,
        log_with=log_with(config.report_to) or None,  # none with an empty list is warned of
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / config.logging_dir)),
        cpu=default_device().type == "cpu",  # without it accelerate sees one process where torchrun started several
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise KcacheError(
            f"the launcher started {started} processes and accelerate sees {accelerator.num_processes};"
            " start them with torchrun or accelerate launch, as 'accelerate config' set it up"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise KcacheError(
            f"fp16 needs a GPU and this is {accelerator.device.type}, where accelerate would train in fp32 without"
            " a word; give --mixed-precision bf16 or no"
        )
    if accelerator.mixed_precision == "fp16":
        refuse_fp16(config)
    refuse_processes(config, accelerator.num_processes)
    if _asked_for("FSDP"):
        check_fsdp(accelerator, config)
    return accelerator


def require_agreement(accelerator: Any, seen: dict[str, str]) -> None:
    """KcacheError where a process sees something else than the main one: two machines need one storage."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    first, *others = gather_object([seen])
    for rank, other in enumerate(others, 1):
        for what, value in first.items():
            if other[what] != value:
                raise KcacheError(
                    f"process {rank} has {what} {other[what]} and process 0 has {value}; put CACHE and --output-dir"
                    " where all machines see the same files, and start when nothing writes to them"
                )


def check_fsdp(accelerator: Any, config: PriorConfig | DecoderConfig) -> None:
    """Refuse what does not work with sharded weights, and let autocast decide what is computed in which precision."""
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    if accelerator.distributed_type != "FSDP":
        raise KcacheError(
            f"accelerate has no FSDP for {accelerator.num_processes} process(es) on {accelerator.device.type}; choose"
            " another configuration, such as distributed_type: MULTI_GPU, or leave FSDP to GPUs"
        )
    if not accelerator.is_fsdp2:
        raise KcacheError("kcache trains under the second FSDP only; put fsdp_version: 2 under fsdp_config")
    if accelerator.mixed_precision == "fp16":
        raise KcacheError("fp16 under FSDP is not supported; give --mixed-precision bf16 or no")
    if (name := optimizer_name(config)) not in SHARDED_OPTIMIZERS:
        raise UsageError(
            f"--optimizer {name} does not work with weights sharded by FSDP; give one of"
            f" {', '.join(SHARDED_OPTIMIZERS)}, or train without FSDP"
        )
    refuse_sharding(config)
    if config.validation_prompts:
        raise UsageError(
            "--validation-prompts draws in one process, which has no whole model under FSDP; leave it out, and see"
            " --validation-split, or 'kcache generate' with a checkpoint"
        )
    if accelerator.state.fsdp_plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        raise KcacheError(
            "the second FSDP cannot cut these models by size; put fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP under"
            " fsdp_config, which needs no class to be named"
        )
    # accelerate would have all inputs, noise and targets among them, cast to it; autocast is what DDP has.
    accelerator.state.fsdp_plugin.mixed_precision_policy = None


def _asked_for(engine: str) -> bool:
    """Whether ``accelerate launch`` was configured for an engine."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def _refuse_other_engines() -> None:
    for engine, name in {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.items():
        if _asked_for(engine):
            raise KcacheError(
                f"kcache does not train under {name}; choose FSDP (fsdp_version: 2), or plain data parallelism, in"
                " 'accelerate config'"
            )
