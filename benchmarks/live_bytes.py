"""Counts the bytes of tensors that are alive while something is computed: of fake tensors, so that none is needed."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""What torch's allocator on CUDA rounds a tensor's bytes up to."""


class LiveBytes(TorchDispatchMode):
    """Within it, ``now`` is how many bytes the storages hold that were made or seen in it, and ``peak`` the most.

    Each storage counts once, whatever views there are of it, from the operation that returned it until the last tensor
    that has it is gone. What an operation needs inside itself (workspaces of cuDNN, say) is not seen.
    """

    counting = True
    """Whether what is made now counts; not so what stands for the memory of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._ids: dict[int, Any] = {}

    def saw(self, value: Any) -> None:
        """Count the tensors in a nested value, if they were not yet."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.saw(result)
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._ids:
            return
        nbytes = -(-storage.nbytes() // BLOCK) * BLOCK if LiveBytes.counting else 0
        self._ids[key] = weakref.finalize(storage, self._gone, key, nbytes)
        self._ids[key].atexit = False
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, nbytes: int) -> None:
        del self._ids[key]
        self.now -= nbytes
