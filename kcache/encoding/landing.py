"""Batches on their way to a device and back, which a GPU carries while it computes and the host goes on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Awaited = Callable[[], npt.NDArray[np.float32]]
"""One row of a batch: to call it is to wait until it is on the host."""


def send(batch: Sequence[npt.NDArray[np.float32]], device: "torch.device", dtype: "torch.dtype") -> "torch.Tensor":
    """Arrays of one shape as one tensor on the device; a GPU fetches them from pinned memory when it comes to it."""
    import torch

    is_cuda = device.type == "cuda"
    host = torch.empty((len(batch), *batch[0].shape), dtype=torch.float32, pin_memory=is_cuda)
    np.stack(batch, out=host.numpy())
    return host.to(device, non_blocking=is_cuda).to(dtype)


class Landing:
    """A tensor that was given to be computed, and its copy on the host as soon as that is there."""

    def __init__(self, tensor: "torch.Tensor") -> None:
        """Have it copied; on CUDA this returns before the device has even computed it."""
        import torch

        self._copied: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu()

    def rows(self) -> list[Awaited]:
        """The rows in order, each to be waited for when it is wanted, from any thread."""
        return [partial(self._row, i) for i in range(len(self._host))]

    def _row(self, i: int) -> npt.NDArray[np.float32]:
        if self._copied:
            self._copied.synchronize()
        return np.asarray(self._host[i].float().numpy())
