"""The one training loop."""

import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from .ema import Ema
from .mixture import Order
from .objectives import Batch
from .one_by_one import OneByOne
from .overflow import Watch
from .sharding import units, whole_number
from .sources import MicroBatch
from .stages import Stage

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Objective(nn.Module):
    """A model whose forward returns its loss: what accelerate prepares, so that wrappers see one forward."""

    def __init__(
        self,
        stage: Stage,
        snr_gamma: float | None,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """``autocast`` is given where accelerate does not put the forward into one itself."""
        super().__init__()
        self.model = stage.model
        self._loss, self._scheduler, self._snr_gamma = stage.loss, stage.scheduler, snr_gamma
        self._autocast = autocast
        self._no_split_modules = units(stage.model)  # where FSDP may cut, by the name that accelerate looks for

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch (a scalar); Min-SNR weighs it in training only, so that losses compare."""
        with self._autocast():
            return self._loss(self.model, batch, self._scheduler, self._snr_gamma if self.training else None)


@dataclass(frozen=True)
class Geometry:
    """How a global batch is cut: by accumulation step, then by process, then by slot on the device."""

    batch_size: int
    accumulation: int
    processes: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Samples in one update, over all processes and accumulation steps."""
        return self.batch_size * self.accumulation * self.processes

    def keeping(self, global_batch: int) -> "Geometry":
        """The same with accumulation adjusted, so that an update has as many samples as before; else unchanged."""
        accumulation, rest = divmod(global_batch, self.batch_size * self.processes)
        return replace(self, accumulation=accumulation) if accumulation and not rest else self

    def micro_batches(self, order: Order, first_step: int, stop_step: int) -> Iterator[MicroBatch]:
        """What this process reads for updates ``first_step`` to ``stop_step``: a pure function of the order.

        All processes and all accumulation steps of an update read samples of one group, and so of one shape.
        """
        for step in range(first_step, stop_step):
            positions = order.batch(step)
            for micro in range(self.accumulation):
                start = (micro * self.processes + self.rank) * self.batch_size
                slots = range(start, start + self.batch_size)
                yield MicroBatch(step, slots, positions[start : start + self.batch_size].tolist())


@dataclass(frozen=True)
class Progress:
    """What is known after an update that is logged: ``loss`` and rates since the one before.

    ``data_wait`` is the share of the time in which the step waited for its batch; ``peak_memory_bytes`` what was held
    at most so far; ``bad_step`` the first update since that went
    wrong, and ``what`` went wrong.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    data_wait: float
    peak_memory_bytes: int
    bad_step: int | None
    what: str

    def metrics(self) -> dict[str, Any]:
        """As they stand in ``metrics.jsonl``."""
        return {name: value for name, value in asdict(self).items() if name not in ("step", "bad_step", "what")}


@dataclass
class Loop:
    """Everything that the loop drives."""

    accelerator: Any
    objective: Any
    optimizer: Any
    schedule: Any
    geometry: Geometry
    max_grad_norm: float
    logging_steps: int
    has_dropout: bool
    seed: int
    ema: Ema | None = None
    in_backward: OneByOne | None = None
    """The optimizer where it updates in backward, and no gradient is left to be looked at."""

    def run(self, batches: Iterator[Batch], first_step: int, stop_step: int, after: "After") -> int:
        """Train from update ``first_step`` to ``stop_step`` or until `After.stop` says so; returns where it stopped."""
        accelerator, waiting = self.accelerator, Waiting(batches)
        parameters = [p for p in self.objective.parameters() if p.requires_grad]
        total, norm = torch.zeros((), device=accelerator.device), torch.zeros(())
        watch = Watch(accelerator.device, accelerator.scaler, accelerator.gather)
        logged, since = first_step, time.perf_counter()
        for step in range(first_step, stop_step):
            for micro in range(self.geometry.accumulation):
                self._seed_dropout(step, micro)
                with accelerator.accumulate(self.objective):
                    loss = self.objective(next(waiting))
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = self._limit_norm(parameters)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += loss.detach()
            self.schedule.step()
            if self.ema:
                self.ema.step()
            done = step + 1
            watch.saw(done, total, norm)
            if done % self.logging_steps == 0 or done == stop_step:  # the only point at which the CPU waits for the GPU
                updates, now = done - logged, time.perf_counter()
                mean = accelerator.reduce(total / (updates * self.geometry.accumulation), "mean").item()
                rate, waited = updates * self.geometry.global_batch / (now - since), waiting.taken() / (now - since)
                peak, lr = peak_memory(accelerator.device), self.schedule.get_last_lr()[0]
                bad = watch.first_bad()
                after.logged(Progress(done, mean, lr, float(norm), rate, waited, peak, bad, watch.what))
                total, logged, since = torch.zeros_like(total), done, time.perf_counter()
            paused = time.perf_counter()
            after.update(done)
            since += time.perf_counter() - paused  # what is saved and validated in between is no training
            if after.stop(done):
                return done
        return stop_step

    def _limit_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The norm of all gradients, which are scaled down to ``max_grad_norm`` where it is longer."""
        if self.in_backward:
            return self.in_backward.norm()
        return whole_number(self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm or math.inf))

    def _seed_dropout(self, step: int, micro: int) -> None:
        """Models of Kandinsky 2.2 have no dropout; where one does, its masks are keyed as every other draw is."""
        if self.has_dropout:
            torch.manual_seed(zlib.crc32(f"{self.seed} {step} {micro} {self.geometry.rank}".encode()))


class Waiting:
    """Batches, and how long was waited for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self._seconds = batches, 0.0

    def __next__(self) -> Batch:
        began = time.perf_counter()
        batch = next(self._batches)
        self._seconds += time.perf_counter() - began
        return batch

    def taken(self) -> float:
        """Seconds waited since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: by torch on a CUDA device, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    memory = psutil.Process().memory_info()
    if resource is None:
        return int(memory.peak_wset)  # Windows keeps count where psutil looks
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class After:
    """What happens after an update: none of it changes the weights."""

    update: Callable[[int], None]
    logged: Callable[[Progress], None]
    stop: Callable[[int], bool]
