"""Batches as large as the device holds: halved when it is out of memory, and said so."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from kcache.devices import free_memory, is_out_of_memory
from kcache.progress import logger
from kcache.shards import KcacheError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches:
    """Runs a function over batches for one column, and remembers how large a batch its device holds."""

    def __init__(self, column: str, item: str, device: "torch.device") -> None:
        """``item`` is what a batch has many of, as messages call it: picture or caption."""
        self._column, self._item, self._device = column, item, device
        self._largest: int | None = None

    def map(
        self, encode: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], size: int
    ) -> Iterator[Result]:
        """The results of ``encode`` over batches of ``items``, in order, at most ``size`` at a time.

        A batch that runs out of memory is halved and tried again, and no later one is larger. KcacheError when even one
        item is too large.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + min(size, self._largest or size)]
            results = self._try(encode, batch)
            if results is None:
                self._halve(len(batch))
            else:
                yield from results
                start += len(batch)

    def _try(self, encode: Callable[[Sequence[Item]], Sequence[Result]], batch: Sequence[Item]) -> list[Result] | None:
        """The results, or None where memory was not enough."""
        try:
            return list(encode(batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here, after the except block, is the traceback gone that kept the failed batch's tensors alive.
        free_memory(self._device)
        return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise KcacheError(
                f"out of memory with one {self._item} at a time for '{self._column}' on {self._device}:"
                " free some memory there, or try --encode-dtype fp16, --device cpu or a smaller --resolution"
            )
        self._largest = size // 2
        logger.warning(
            "out of memory with %d %ss at once for '%s': going on with %d",
            size,
            self._item,
            self._column,
            self._largest,
        )
