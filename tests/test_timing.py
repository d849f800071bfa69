"""What an estimate of time is made of: warm batches, of the size that is used, for a few seconds at most."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kcache.encoding import timing
from kcache.encoding.encoders import Awaited
from kcache.encoding.images import Decoding


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Encoder:
    """Takes ``fixed`` seconds for a batch and ``each`` for an input of it; the first batch of a size takes ``cold``."""

    column = SimpleNamespace(name="image", reads="image")

    def __init__(self, clock: Clock, *, fixed: float, each: float, cold: float) -> None:
        self.clock, self.fixed, self.each, self.cold = clock, fixed, each, cold
        self.batches: list[int] = []

    def load(self) -> None:
        self.clock.now += 7

    def prepare(self, image: Any, sha256: str) -> str:
        return sha256

    def features(self, inputs: Sequence[Any], batch_size: int) -> Iterator[Awaited]:
        self.clock.now += self.fixed + self.each * len(inputs) + (len(inputs) not in self.batches) * self.cold
        self.batches.append(len(inputs))
        return iter([dict] * len(inputs))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the timing looks at."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def timings(encoder: Encoder) -> timing.Timings:
    encoders: Any = {"image": encoder}
    return timing.Timings(encoders, 16, Decoding("white", 2**28), 2)


def test_a_cold_batch_does_not_count_and_a_whole_one_does(clock: Clock) -> None:
    encoder = Encoder(clock, fixed=0.08, each=0.01, cold=50)
    measured = timings(encoder)
    encoder.cold = 2.0
    assert measured.encoding("image") == pytest.approx(0.08 / 16 + 0.01)
    assert encoder.batches == [1, 1, 16, 16]
    assert measured.loading == 7
    measured.encoding("image")
    assert len(encoder.batches) == 4, "each encoder is timed once"


@pytest.mark.parametrize(("each", "batches"), [(0.5, [1, 1, 6, 6]), (1.9, [1, 1]), (20.0, [1])])
def test_a_slow_encoder_is_timed_for_a_few_seconds(clock: Clock, each: float, batches: list[int]) -> None:
    encoder = Encoder(clock, fixed=0, each=each, cold=0)
    assert timings(encoder).encoding("image") == pytest.approx(each)
    assert encoder.batches == batches
