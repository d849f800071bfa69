"""From positions to batches: what a source is, and what those of both stages share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from .draws import NOISE, TIMESTEP, VIEW, Draws
from .samples import Positions, Samples

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
Buffers = dict[str, Tensor]
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class MicroBatch:
    """What one process reads for one forward: positions, and the keys of their draws.

    ``timesteps`` bounds those that are drawn (None: all that there are), for losses by band.
    """

    step: int
    slots: Sequence[int]
    positions: Sequence[int]
    timesteps: range | None = None


@dataclass(frozen=True)
class Reading:
    """How a source reads.

    ``timesteps`` is the number that noise is drawn from; ``dropout`` the probability that a condition is replaced by
    the null one; ``loss_weights`` what the samples of each snapshot count in the loss (None: all the same). ``draws``
    is how many times noise and a timestep are drawn for each sample: 1 gives tensors of B rows, K those of (B, K).
    """

    seed: int
    timesteps: int
    dropout: float = 0.0
    loss_weights: Sequence[float] | None = None
    check_crc: bool = True
    draws: int = 1

    def rows(self, batch_size: int) -> tuple[int, ...]:
        """The first dimensions of noise and timesteps."""
        return (batch_size,) if self.draws == 1 else (batch_size, self.draws)


class Source(Protocol):
    """Fills buffers with the samples and draws of a micro-batch. Not for two threads at once."""

    @property
    def groups(self) -> Sequence[Positions]:
        """The positions that fit into one batch, every position once: see `kcache.shards.BatchOrder`."""

    @property
    def lengths(self) -> Positions | None:
        """By what the samples of a batch are to be alike, for every position; None where that is not asked for."""

    def of_samples(self, chosen: Positions) -> Positions:
        """The positions at which the samples at positions ``chosen`` of `Samples` are read: one or more for each."""

    def samples_of(self, positions: Positions) -> Positions:
        """Which position of `Samples` each position of this source reads: the inverse of `of_samples`."""

    def sample_of(self, position: int) -> int:
        """The same of one position."""

    def allocate(self, batch_size: int, pin: bool) -> Buffers:
        """Buffers for the largest batch there can be; ``pin`` locks their pages for copies to a GPU."""

    def fill(self, buffers: Buffers, batch: MicroBatch) -> Buffers:
        """Read a micro-batch, of as many samples as ``buffers`` have or fewer, and return it as views of them."""

    def close(self) -> None:
        """Close the files that were read; the source may be used again."""


class Allocator(Protocol):
    """Makes buffers of zeros."""

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros."""


def allocator(pin: bool) -> Allocator:
    """What makes buffers; ``pin`` locks their pages."""
    return lambda shape, dtype: torch.zeros(shape, dtype=dtype, pin_memory=pin)


def drawn(views: Sequence[Drawn], draws: Draws, batch: MicroBatch) -> list[tuple[Drawn, Sequence[int]]]:
    """The view of each sample, all equally likely: every view that occurs, and the places in the batch that have it.

    Of one view nothing is drawn.
    """
    if len(views) == 1:
        return [(views[0], range(len(batch.slots)))]
    numbers = np.array([draws.integer(batch.step, slot, VIEW, len(views)) for slot in batch.slots])
    return [(views[view], np.flatnonzero(numbers == view).tolist()) for view in np.unique(numbers)]


def draw_noise(draws: Draws, buffers: Buffers, batch: MicroBatch, timesteps: int) -> None:
    """Fill ``noise`` and ``timesteps``, each draw's by its own key: of several the first is that of one alone."""
    noise, steps = buffers["noise"].numpy(), buffers["timesteps"].numpy()
    among, of_draws = batch.timesteps or range(timesteps), steps.shape[1:]
    for i, slot in enumerate(batch.slots):
        for number, place in enumerate(np.ndindex(of_draws)):
            draws.normal(batch.step, slot, NOISE, noise[i, *place], number)
            steps[i, *place] = among[draws.integer(batch.step, slot, TIMESTEP, len(among), number)]


def weigh(samples: Samples, loss_weights: Sequence[float], buffers: Buffers, positions: Positions) -> None:
    """Fill ``weights`` with what each sample counts in the loss."""
    parts = samples.part_of(positions)
    buffers["weights"].numpy()[:] = np.asarray(loss_weights, np.float32)[parts]


def rows_of(tensor: Tensor) -> list[memoryview]:
    """The bytes of each row of a contiguous tensor, to be written to."""
    view = tensor.view(-1).numpy().view(np.uint8).data
    size = len(view) // len(tensor)
    return [view[start : start + size] for start in range(0, len(view), size)]


def first(buffers: Buffers, count: int) -> Buffers:
    """The first ``count`` samples of buffers."""
    return {name: tensor[:count] for name, tensor in buffers.items()}


def beginning(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The first values of a contiguous tensor, as one of ``shape``."""
    return tensor.view(-1)[: math.prod(shape)].view(shape)
