"""What goes wrong in an update is seen: at the update where it began, and not where fp16 only found its scale."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kcache.training.overflow import LONGEST, Watch

CPU = torch.device("cpu")
ONE, NAN, INF = torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(float("inf"))


class Scale:
    """A gradient scaler as far as it is asked."""

    def __init__(self, value: float = 65536.0) -> None:
        self.value = value

    def get_scale(self) -> float:
        return self.value


def test_nothing_is_said_of_a_run_that_goes_well() -> None:
    for scaler in (None, Scale()):
        watch = Watch(CPU, scaler)
        assert watch.first_bad() is None
        for step in range(50):
            watch.saw(step, ONE, ONE)
        assert watch.first_bad() is None


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_first_loss_that_is_not_finite_is_named(value: Tensor) -> None:
    for scaler in (None, Scale()):
        watch = Watch(CPU, scaler)
        for step, loss in enumerate([ONE, ONE, value, ONE, value]):
            watch.saw(step, loss, ONE)
        assert watch.first_bad() == 2
        assert "loss" in watch.what


def test_each_call_answers_for_the_updates_since_the_one_before() -> None:
    watch = Watch(CPU)
    watch.saw(0, NAN, ONE)
    assert watch.first_bad() == 0
    watch.saw(1, ONE, ONE)
    assert watch.first_bad() is None
    watch.saw(2, ONE, ONE)
    watch.saw(3, NAN, ONE)
    assert watch.first_bad() == 3


def test_without_a_scaler_a_gradient_that_is_not_finite_is_bad_and_with_one_it_is_not() -> None:
    for scaler, said in ((None, 1), (Scale(), None)):
        watch = Watch(CPU, scaler)
        for step, norm in enumerate([ONE, INF, ONE, NAN]):
            watch.saw(step, ONE, norm)
        assert watch.first_bad() == said


def test_overflows_in_a_row_are_bad_when_they_do_not_stop() -> None:
    watch = Watch(CPU, Scale())
    watch.saw(0, ONE, ONE)
    for step in range(1, LONGEST):
        watch.saw(step, ONE, INF)
    assert watch.first_bad() is None, "one less than too many"
    watch.saw(LONGEST, ONE, INF)
    assert watch.first_bad() == 1, "asking has not begun the count again"
    assert watch.what == "20 updates in a row overflowed in fp16 and were skipped"


def test_overflows_that_stopped_are_forgiven() -> None:
    watch = Watch(CPU, Scale())
    for step in range(2 * LONGEST):
        watch.saw(step, ONE, INF)
    watch.saw(2 * LONGEST, ONE, ONE)
    assert watch.first_bad() is None


def test_a_scale_below_one_is_bad_however_it_came_to_be() -> None:
    watch = Watch(CPU, Scale(0.5))
    for step in range(10):
        watch.saw(step, ONE, ONE if step % 2 else INF)
    assert watch.first_bad() == 9
    assert watch.what == "gradients overflow in fp16 so often that their scale fell to 0.5"


def test_processes_agree_on_the_first_of_all() -> None:
    seen_elsewhere = torch.tensor([3])
    watch = Watch(CPU, gather=lambda seen: torch.cat([seen, seen_elsewhere]))
    for step in range(5):
        watch.saw(step, ONE if step < 4 else NAN, ONE)
    assert watch.first_bad() == 3


@pytest.mark.parametrize("with_scaler", [False, True])
def test_watching_reads_nothing_from_the_device(with_scaler: bool) -> None:
    device = torch.device("meta")  # where there are no values to read
    watch = Watch(device, Scale() if with_scaler else None)
    for step in range(5):
        watch.saw(step, torch.ones((), device=device), torch.ones((), device=device))


def updates(watch: Watch, scaler: Any, factor: float, first: int, count: int) -> None:
    """Updates in fp16 whose gradients are ``factor`` before the scaler multiplies them."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], 1e-6)
    for step in range(first, first + count):
        optimizer.zero_grad()
        loss = (parameter.half() * factor).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_([parameter], 1.0)
        scaler.step(optimizer)
        scaler.update()
        watch.saw(step, loss, norm)


def test_with_torchs_scaler_a_run_that_finds_its_scale_is_fine_and_one_that_finds_none_is_not() -> None:
    scaler: Any = torch.amp.GradScaler("cpu")
    watch = Watch(CPU, scaler)
    updates(watch, scaler, 1000.0, 0, 30)
    assert scaler.get_scale() < 65536, "some updates overflowed"
    assert watch.first_bad() is None
    scaler.update(new_scale=65536.0)
    updates(watch, scaler, 65504.0, 30, 5)
    assert watch.first_bad() is None
    scaler.update(new_scale=2.0**40)
    updates(watch, scaler, 65504.0, 35, LONGEST)
    assert watch.first_bad() == 30
