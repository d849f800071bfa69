"""``--compile``: the prior's blocks compiled by torch while they learn, and run as they are when they are measured."""

from collections.abc import Callable
from typing import Any

import torch

from kcache.compiler import BACKEND, require_compiler
from kcache.devices import default_device

from .config import TrainConfig


def check_compile(config: TrainConfig) -> None:
    """UsageError where this machine lacks what torch compiles with. Needs no model."""
    if wants_compile(config):
        require_compiler(default_device())


def wants_compile(config: TrainConfig) -> bool:
    """Whether ``--compile`` was given, which the prior alone has."""
    return bool(getattr(config, "compile", False))


def compile_blocks(model: Any) -> None:
    """Let every block of a `PriorTransformer` run compiled in training.

    Block by block and not the whole objective: the blocks are alike, so that one is compiled for all of them, and each
    stays a node of its own of the backward pass, so that gradients are ready one after the other (for DDP, FSDP and
    updates within the backward pass). The first length of a batch is compiled for itself, the second for any that may
    follow. Parameters and their names stay. Call it when a LoRA is in the model and before blocks are checkpointed.
    """
    for block in model.transformer_blocks:
        block.forward = _when_learning(block, torch.compile(block.forward, backend=BACKEND))


def _when_learning(block: Any, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled`` in training, else the block's own forward: validation has batches of many other shapes."""
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if block.training and torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward
