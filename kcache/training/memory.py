"""Less memory or time for the same update: activations computed again, attention of xformers, channels last."""

import importlib.util
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from kcache.devices import default_device
from kcache.shards import UsageError

from .config import DecoderConfig, PriorConfig, TrainConfig


def check_memory_options(config: TrainConfig) -> None:
    """UsageError where the stage, this installation or this machine has no xformers. Needs no model."""
    if config.enable_xformers_memory_efficient_attention:
        _require_xformers(isinstance(config, PriorConfig))


def apply_memory_options(model: Any, config: TrainConfig) -> None:
    """What ``--gradient-checkpointing``, ``--channels-last`` and xformers' option ask for.

    Before or after a LoRA is put into ``model``. UsageError where the model, this installation or this machine cannot.
    """
    from diffusers import PriorTransformer

    is_prior = isinstance(model, PriorTransformer)
    if config.enable_xformers_memory_efficient_attention:
        _require_xformers(is_prior)
        model.enable_xformers_memory_efficient_attention()
    if config.gradient_checkpointing:
        _checkpoint_blocks(model.transformer_blocks) if is_prior else model.enable_gradient_checkpointing()
    if isinstance(config, DecoderConfig) and config.channels_last:
        _lay_channels_last(model)


def _lay_channels_last(model: Any) -> None:
    """Convolutions' weights, and so all pictures that they see, in memory with the channels of a pixel side by side.

    What is saved has the usual layout, which safetensors asks for.
    """
    model.to(memory_format=torch.channels_last)
    model.register_state_dict_post_hook(
        lambda _model, state, _prefix, _local: state.update({n: t.cpu().contiguous() for n, t in state.items()})
    )


def _checkpoint_blocks(blocks: Iterable[Any]) -> None:
    """Keep only the input of each block for the backward pass, which runs the block again (Chen et al. 2016).

    diffusers has this for the UNet alone. Here each block gets another forward; its parameters and their names stay.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _require_xformers(is_prior: bool) -> None:
    option = "--enable-xformers-memory-efficient-attention"
    if is_prior:
        raise UsageError(f"{option} is for the decoder, as in the reference; leave it out: the prior has torch's own")
    device = default_device()
    if device.type != "cuda":
        raise UsageError(f"{option} needs a CUDA device: xformers has no such kernels for {device.type}; leave it out")
    if importlib.util.find_spec("xformers") is None:
        raise UsageError(f"{option} needs a package that is not installed; run: pip install 'kcache[xformers]'")
