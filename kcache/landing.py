"""Batches on their way to a device and back, which a GPU carries while it computes and the host goes on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def stacked(batch: Sequence[npt.NDArray[np.float32]], device: "torch.device") -> "torch.Tensor":
    """Arrays of one shape as one tensor on the host, in memory that this device can fetch from by itself."""
    import torch

    host = torch.empty((len(batch), *batch[0].shape), dtype=torch.float32, pin_memory=device.type == "cuda")
    np.stack(batch, out=host.numpy())
    return host


def send(host: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor of the host on the device; a GPU fetches it when it comes to it, and nobody waits for that."""
    if device.type != "cuda":
        return host.to(device)
    pinned = host if host.is_pinned() else host.pin_memory()  # from elsewhere a copy waits for all that was queued
    return pinned.to(device, non_blocking=True)


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

    def row(self, i: int) -> npt.NDArray[np.float32]:
        """Row ``i`` in fp32, waited for; from any thread."""
        if self._copied:
            self._copied.synchronize()
        return np.asarray(self._host[i].float().numpy())
