"""A model of two layers, and updates that depend on their number alone, for tests of what a checkpoint must hold."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kcache.training.config import PriorConfig

WIDTH = 64
"""A weight has 4,096 numbers, from where on 8-bit optimizers keep their states in 8 bits."""


def options(**given: Any) -> PriorConfig:
    """The options of a run; a schedule that changes the rate at once."""
    return PriorConfig(cache="cache", output_dir="out", **{"lr_warmup_steps": 2, **given})


def make_model() -> nn.Module:
    """The same weights every time; no bias of the second layer is other than zero."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    nn.init.zeros_(model[2].bias)
    return model


def set_gradients(model: nn.Module, step: int) -> None:
    """The gradients of a loss on the samples of update ``step``."""
    samples = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(step))
    model.zero_grad()
    (model(samples) - samples.flip(1)).square().mean().backward()


def train(model: nn.Module, optimizer: Any, first: int, stop: int, after: Callable[[], None] = lambda: None) -> None:
    """Updates ``first`` to ``stop``, each followed by ``after``."""
    for step in range(first, stop):
        set_gradients(model, step)
        optimizer.step()
        after()


def weights(model: nn.Module) -> list[torch.Tensor]:
    """A copy of the weights."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Whether they agree to the bit."""
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def from_disk(kept: Any) -> Any:
    """What is read of a file that ``kept`` was written to, with tensors and plain values alone allowed."""
    file = io.BytesIO()
    torch.save(kept, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
