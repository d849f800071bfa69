"""Pictures read, hashed, decoded and resized in a pool, ahead of the encoders and in order."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from .dataset import Dataset, Sample, Stat
from .encoders import ImageEncoder, Prepared
from .images import Decoding, decode, hushed_pillow
from .pixels import UnreadableImageError

Item = TypeVar("Item")
Result = TypeVar("Result")

_NO_MEMORY = "there was not enough memory for it; try again with fewer --workers"


@dataclass(frozen=True)
class Picture:
    """One picture ready for its encoders, or the reason why it is set aside.

    ``prepared`` has for each column what its encoder takes. ``frames`` above 1: it is animated or has several pages, of
    which the first is encoded. ``transient``: it was set aside for want of memory, so another run may encode it.
    """

    id: str
    stat: Stat | None = None
    sha256: str | None = None
    width: int = 0
    height: int = 0
    frames: int = 1
    prepared: dict[str, Prepared] = field(default_factory=dict)
    set_aside: str | None = None
    transient: bool = False


def prepare(dataset: Dataset, sample: Sample, encoders: Mapping[str, ImageEncoder], decoding: Decoding) -> Picture:
    """Read and decode one picture once, whatever number of encoders it feeds."""
    stat = dataset.stat(sample.id)
    try:
        data = dataset.read(sample.id)
    except OSError as error:
        return Picture(sample.id, set_aside=sample.fault or f"the file cannot be read: {error.strerror or error}")
    except MemoryError:
        return Picture(sample.id, set_aside=_NO_MEMORY, transient=True)
    sha256 = hashlib.sha256(data).hexdigest()
    if sample.fault:
        return Picture(sample.id, stat, sha256, set_aside=sample.fault)
    try:
        decoded = decode(data, decoding)
        prepared = {name: encoder.prepare(decoded.image, sha256) for name, encoder in encoders.items()}
    except UnreadableImageError as error:
        return Picture(sample.id, stat, sha256, set_aside=str(error))
    except MemoryError:
        return Picture(sample.id, stat, sha256, set_aside=_NO_MEMORY, transient=True)
    width, height = decoded.image.size
    return Picture(sample.id, stat, sha256, width, height, decoded.frames, prepared)


def why_undecodable(
    dataset: Dataset, samples: Sequence[Sample], decoding: Decoding, workers: int
) -> Iterator[str | None]:
    """For each sample why its picture cannot be decoded; None where it can, or where another run may do it."""
    if not samples:
        return
    with (
        hushed_pillow(decoding.max_pixels),
        mapped_ahead(lambda one: prepare(dataset, one, {}, decoding), samples, workers=workers, ahead=workers) as seen,
    ):
        for picture in seen:
            yield None if picture.transient else picture.set_aside


@contextmanager
def mapped_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Iterator[Result]]:
    """``map(function, items)`` in order, with up to ``ahead`` results computed before they are asked for.

    Leaving the context, with an error or not, drops what was not asked for.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="kcache-pictures")
    remaining, waiting = iter(items), deque[Future[Result]]()

    def results() -> Iterator[Result]:
        waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, ahead))
        while waiting:
            done = waiting.popleft()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
            yield done.result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
