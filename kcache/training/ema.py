"""A moving average of the trained weights, kept by diffusers as the reference keeps it (`--use-ema`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kcache.shards import KcacheError

from .sharding import cut, joined, local

PART = 2**26
"""Numbers that are averaged in one call, which holds as many differences besides."""


class Ema:
    """The average of some parameters over the updates, newer ones counting more.

    After update n the average keeps (n / (n + 9)) of itself, and never more than ``decay``; the first update replaces
    it. It lies where the parameters lie, and of those in bf16 too it is in fp32, since what it takes in at a time is
    less than bf16 can add. Under FSDP each process has its part.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        from diffusers.training_utils import EMAModel

        self._parameters = list(parameters)
        self._average: Any = EMAModel(self._local(), decay=decay, foreach=True)
        if any(parameter.dtype == torch.bfloat16 for parameter in self._parameters):
            self._average.to(dtype=torch.float32)
        self._parts = _parts([parameter.numel() for parameter in self._parameters])

    def step(self) -> None:
        """Take in the weights after an update, part by part. Nothing is read from the device."""
        parameters, averages, updates = self._local(), self._average.shadow_params, self._average.optimization_step
        for some in self._parts:
            self._average.shadow_params, self._average.optimization_step = averages[some], updates
            self._average.step(parameters[some])
        self._average.shadow_params = averages

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the parameters are the average; afterwards to the bit what they were. Not to be nested."""
        parameters = self._local()
        self._average.store(parameters)
        self._average.copy_to(parameters)
        try:
            yield
        finally:
            self._average.restore(parameters)

    def state_dict(self) -> dict[str, Any]:
        """The averages, in the order of the parameters, and how many updates they have seen."""
        averages = joined(self._average.shadow_params, self._parameters)
        return {"updates": self._average.optimization_step, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with this run's decay. KcacheError where it is of other parameters."""
        saved, have = [[tuple(p.shape) for p in ps] for ps in (state["averages"], self._parameters)]
        if saved != have:
            raise KcacheError(
                f"the checkpoint's average is of {len(saved):,} parameters and this run trains {len(have):,}, or their"
                " shapes differ; give the options that say what is trained as they were"
            )
        mine = [local(cut(a, p)) for a, p in zip(state["averages"], self._parameters, strict=True)]
        self._average.load_state_dict({"optimization_step": state["updates"], "shadow_params": mine})
        self._average.shadow_params = [
            average.to(parameter.device, _dtype_for(parameter))
            for average, parameter in zip(self._average.shadow_params, self._parameters, strict=True)
        ]

    def _local(self) -> list[nn.Parameter]:
        """The parts of the parameters that this process holds, which FSDP may have moved since they were asked for."""
        return [local(parameter) for parameter in self._parameters]


def _dtype_for(parameter: nn.Parameter) -> torch.dtype:
    """What the average of a parameter is kept in."""
    return torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Neighbouring tensors that have up to `PART` numbers together, or one that has more."""
    parts, first, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > first and total + size > PART:
            parts.append(slice(first, number))
            first, total = number, 0
        total += size
    return [*parts, slice(first, len(sizes))]
