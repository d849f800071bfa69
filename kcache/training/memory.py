"""Less memory for the same update: activations computed again in the backward pass, and attention of xformers."""

import importlib.util
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from kcache.devices import default_device
from kcache.shards import UsageError

from .config import PriorConfig, TrainConfig


def check_memory_options(config: TrainConfig) -> None:
    """UsageError where the stage, this installation or this machine has no xformers. Needs no model."""
    if config.enable_xformers_memory_efficient_attention:
        _require_xformers(isinstance(config, PriorConfig))


def apply_memory_options(model: Any, config: TrainConfig) -> None:
    """What ``--gradient-checkpointing`` and ``--enable-xformers-memory-efficient-attention`` ask for.

    Before or after a LoRA is put into ``model``. UsageError where the model, this installation or this machine cannot.
    """
    from diffusers import PriorTransformer

    is_prior = isinstance(model, PriorTransformer)
    if config.enable_xformers_memory_efficient_attention:
        _require_xformers(is_prior)
        model.enable_xformers_memory_efficient_attention()
    if config.gradient_checkpointing:
        _checkpoint_blocks(model.transformer_blocks) if is_prior else model.enable_gradient_checkpointing()


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
