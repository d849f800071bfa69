"""A ring of reused buffers that a thread fills ahead of the step."""

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch

from .sources import Buffers, MicroBatch, Source

DEPTH = 3
"""Sets of buffers: one in the step, one ready, one being filled."""


class Feeder:
    """Iterates over micro-batches on ``device``, each valid until the next is asked for.

    On a GPU a set of buffers is free again when its copy to the device is done; on a CPU the batch is the buffers
    themselves, free when the next batch is asked for, which is after backward. Use as a context manager.
    """

    def __init__(self, source: Source, batches: Iterator[MicroBatch], batch_size: int, device: torch.device) -> None:
        """Begin to fill. ``batches`` is consumed in a thread."""
        self._source, self._batches, self._device = source, batches, device
        self._copies = device.type != "cpu"
        self._free: queue.SimpleQueue[tuple[Buffers, Any] | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[Buffers, Buffers] | BaseException | None] = queue.SimpleQueue()
        self._stopped = False
        for _ in range(DEPTH):
            self._free.put((source.allocate(batch_size, pin=device.type == "cuda"), None))
        self._thread = threading.Thread(target=self._fill, name="kcache-feeder", daemon=True)

    def __enter__(self) -> "Feeder":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True
        self._free.put(None)
        self._thread.join()
        self._source.close()

    def __iter__(self) -> Iterator[Buffers]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            buffers, batch = item
            copied = None
            if self._copies:
                batch = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
                copied = self._event()
            yield batch
            self._free.put((buffers, copied))

    def _fill(self) -> None:
        try:
            for micro_batch in self._batches:
                free = self._free.get()
                if free is None or self._stopped:
                    return
                buffers, copied = free
                if copied is not None:
                    copied.synchronize()
                self._ready.put((buffers, self._source.fill(buffers, micro_batch)))
            self._ready.put(None)
        except BaseException as error:  # It belongs to whoever waits for the batch, and is raised there.
            self._ready.put(error)

    def _event(self) -> Any:
        if self._device.type != "cuda":
            torch.mps.synchronize() if self._device.type == "mps" else None
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event
