"""Watches for updates that went wrong, on the device, so that the loop need not wait for one to know of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LONGEST = 20
"""Updates that overflow in a row before it counts as one that does not recover.

Each halves the gradient scaler's factor, so that 20 take it from 65,536, where it begins, to 1/16. Some in a row are
normal in the beginning, and one in some thousand later on.
"""


class Watch:
    """One run's. With ``scaler`` (fp16) a gradient may overflow, and its update is skipped; a loss may not."""

    def __init__(
        self, device: torch.device, scaler: Any = None, gather: Callable[[Tensor], Tensor] = lambda seen: seen
    ) -> None:
        """``gather`` brings the processes' tensors of shape (1,) together, so that all of them agree."""
        self._scaler, self._gather = scaler, gather
        self._bad = torch.full((1,), _NEVER, device=device)
        self._overflows = torch.zeros(1, dtype=torch.int64, device=device)  # in a row, up to now
        self._last = 0
        self.what = ""
        """What went wrong at the update that `first_bad` named."""

    def saw(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Take note of an update's loss and gradient norm (scalars). Computes on the device and waits for nothing."""
        fine, finite = loss.detach().isfinite(), norm.detach().isfinite()
        if self._scaler is None:
            fine = fine & finite
        self._bad = torch.where(fine, self._bad, self._bad.clamp(max=step))
        self._overflows = torch.where(finite, 0, self._overflows + 1)
        self._last = step

    def first_bad(self) -> int | None:
        """The first update since the last call that went wrong in any process, or None; waits for the device.

        That is one whose loss is not finite, or whose gradient norm is not and no scaler skips it; or the first of
        `LONGEST` or more that overflowed in a row and have not stopped; or the last, where the factor fell below 1.
        """
        first = int(self._gather(self._bad).min())
        self._bad = torch.full_like(self._bad, _NEVER)
        if first != _NEVER:
            self.what = "the loss is not finite" if self._scaler else "the loss or its gradient is not finite"
            return first
        return self._first_of_many() if self._scaler else None

    def _first_of_many(self) -> int | None:
        overflows, scale = int(self._overflows), float(self._scaler.get_scale())  # the same in every process
        if overflows >= LONGEST:
            self.what = f"{overflows} updates in a row overflowed in fp16 and were skipped"
            return self._last - overflows + 1
        if scale < 1:
            self.what = f"gradients overflow in fp16 so often that their scale fell to {scale:g}"
            return self._last
        return None


_NEVER = 2**62
