"""Generating on a small GPU: the parts that work together are there at a time, the others in the machine's memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import send_to_device

from kcache.devices import free_memory

Parts = Sequence[Any]
"""Modules that are on the GPU together."""


@contextmanager
def taking_turns(groups: Sequence[Parts], device: torch.device) -> Iterator[None]:
    """Within it the parts of one group are on ``device``, those of which one was called last.

    All parts begin and end in the machine's memory. The stock pipelines see accelerate's hooks and make their tensors
    on ``device``. A ``forward`` that was put in the place of a part's own before goes on the device as well; one that
    is put there within runs wherever it likes.
    """
    room = Room(device)
    for parts in groups:
        for part in parts:
            add_hook_to_module(part, _Comes(room, parts))
    try:
        yield
    finally:
        room.clear()
        for parts in groups:
            for part in parts:
                remove_hook_from_module(part)


class Room:
    """A device on which one group is at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: Parts = ()

    def enter(self, parts: Parts) -> None:
        """Bring ``parts``, when those that are there have left."""
        if parts is not self._there:
            self.clear()
            self._there = parts
            for part in parts:
                part.to(self.device)

    def clear(self) -> None:
        """Send back those that are there."""
        for part in self._there:
            part.to("cpu")
        self._there = ()
        free_memory(self.device)


class _Comes(ModelHook):  # type: ignore[misc]  # accelerate has no types
    """Before a part is called its group enters the room."""

    def __init__(self, room: Room, parts: Parts) -> None:
        self._room, self._parts = room, parts
        self.execution_device = room.device  # where the pipelines make their tensors

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The arguments, on the device: one pipeline puts what it mixes where its first part is."""
        self._room.enter(self._parts)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
