"""Weights held in bf16: those that are trained (`--weights-dtype`), or those beside a LoRA (`--base-dtype`)."""

from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig

STATISTICS = ("clip_mean", "clip_std")
"""Of the prior: they scale the target, which is computed in fp32."""


def held_in_bf16(config: TrainConfig) -> bool:
    """Whether the model, or all of it but a LoRA, lies in bf16."""
    return "bf16" in (config.weights_dtype, config.base_dtype)


def apply_dtypes(model: nn.Module, config: TrainConfig) -> None:
    """Hold in bf16 what ``config`` says, and let the model compute in it. To be called when the weights are loaded.

    Of a LoRA the adapters stay in fp32. Inputs of the model, and of its parts where these are called by themselves, are
    cast by hooks, so that whoever calls them need not know.
    """
    if not held_in_bf16(config):
        return
    for name, parameter in model.named_parameters():
        if name not in STATISTICS and not (config.lora and parameter.requires_grad):
            parameter.data = parameter.data.to(torch.bfloat16)
    parts = [part for child in model.children() for part in (child.children() if _is_list(child) else [child])]
    for module in (model, *parts):
        module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _cast_inputs(_model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _in_bf16(args), _in_bf16(kwargs)


def _in_bf16(value: Any) -> Any:
    """Floating point tensors of a nested value in bf16; whatever else is in it, as it is."""
    if isinstance(value, Tensor):
        return value.to(torch.bfloat16) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _in_bf16(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_in_bf16, value))
    return value
