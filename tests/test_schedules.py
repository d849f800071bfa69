"""Schedules of the learning rate: each gives the same rate at every update however often a run was cut off."""

import math
from typing import Any

import pytest
import torch
from small_run import make_model, options

from kcache.shards import UsageError
from kcache.training.config import SCHEDULES
from kcache.training.optimizers import make_optimizer
from kcache.training.schedules import check_schedule, make_schedule

UPDATES, WARM_UP, RATE = 12, 4, 3e-3
OF_ITS_OWN: dict[str, list[dict[str, Any]]] = {
    "cosine": [{}, {"lr_num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"lr_num_cycles": 3.0}],
    "polynomial": [{}, {"lr_power": 2.0}],
    "piecewise_constant": [{"lr_step_rules": "1:3,0.1:7,0.01"}],
}
ALL = [{"lr_scheduler": name, **more} for name in SCHEDULES for more in OF_ITS_OWN.get(name, [{}])]


def rates(first: int = 0, stop: int = UPDATES, updates: int = UPDATES, **given: Any) -> list[float]:
    """The rates of updates ``first`` to ``stop`` of a run that begins or goes on at ``first``."""
    config = options(**{"lr_warmup_steps": WARM_UP, "learning_rate": RATE, **given})
    optimizer = make_optimizer(config, make_model().parameters(), torch.device("cpu"))
    schedule = make_schedule(config, optimizer, updates, first)
    seen = []
    for _ in range(first, stop):
        seen.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == seen[-1:]
        optimizer.step()
        schedule.step()  # also after the last update, as the loop does it
    return seen


@pytest.mark.parametrize("given", ALL, ids=lambda given: "-".join(map(str, given.values())))
def test_a_run_that_goes_on_at_any_update_has_the_rates_of_one_that_was_not_cut_off(given: dict[str, Any]) -> None:
    whole = rates(**given)
    for first in range(1, UPDATES):
        assert rates(first, **given) == whole[first:], f"gone on after {first} updates"


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"])
def test_warm_up_is_counted_in_updates(name: str) -> None:
    seen = rates(lr_scheduler=name)
    assert seen[: WARM_UP + 1] == [RATE * (step / WARM_UP) for step in range(WARM_UP + 1)]


def test_schedules_have_the_shapes_of_their_names() -> None:
    last = (UPDATES - 1 - WARM_UP) / (UPDATES - WARM_UP)  # how far the last update is
    left = 1 - last
    assert rates(lr_scheduler="constant") == [RATE] * UPDATES
    assert rates(lr_scheduler="linear")[-1] == pytest.approx(RATE * left)
    assert rates(lr_scheduler="cosine")[-1] == pytest.approx(RATE * 0.5 * (1 + math.cos(math.pi * last)))
    assert rates(lr_scheduler="polynomial", lr_power=2.0)[-1] == pytest.approx(1e-7 + (RATE - 1e-7) * left**2)
    piecewise = rates(lr_scheduler="piecewise_constant", lr_step_rules="1:3,0.1:7,0.01")
    assert piecewise == [RATE * factor for factor in [1.0] * 3 + [0.1] * 4 + [0.01] * 5]


def test_the_number_of_cycles_is_that_of_waves_and_of_restarts() -> None:
    wave = rates(lr_scheduler="cosine", lr_num_cycles=1.0, lr_warmup_steps=0)
    assert wave[UPDATES // 2] == pytest.approx(0, abs=1e-12)
    assert wave[1] == pytest.approx(wave[-1]), "down and up again"
    restarts = rates(lr_scheduler="cosine_with_restarts", lr_num_cycles=3.0, lr_warmup_steps=0)
    assert restarts[0] == restarts[4] == restarts[8] == RATE


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant_with_warmup"])
@pytest.mark.parametrize("warm_up", [UPDATES, UPDATES + 5])
def test_a_run_that_is_all_warm_up_comes_to_its_end_and_says_so(
    name: str, warm_up: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert rates(lr_scheduler=name, lr_warmup_steps=warm_up)[-1] == pytest.approx(RATE * (UPDATES - 1) / warm_up)
    assert f"all of the 12 updates are warm-up, and the rate never comes to --learning-rate {RATE}" in caplog.text


def test_a_first_update_that_fp16_skips_is_no_reason_to_warn() -> None:
    config, model = options(lr_scheduler="linear"), make_model()
    optimizer = make_optimizer(config, model.parameters(), torch.device("cpu"))
    schedule = make_schedule(config, optimizer, UPDATES, 0)
    schedule.step()  # in the tests a warning is an error


@pytest.mark.parametrize(("warm_up", "says"), [(0, False), (500, False), (7, True)])
def test_a_warm_up_that_a_schedule_does_not_have_is_said_where_it_was_asked_for(
    warm_up: int, says: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert rates(lr_scheduler="constant", lr_warmup_steps=warm_up) == [RATE] * UPDATES
    assert (f"--lr-warmup-steps {warm_up} has no effect: --lr-scheduler constant" in caplog.text) == says


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lr_scheduler": "cosin"}, r"--lr-scheduler 'cosin' is none of linear, .*; did you mean 'cosine'\?$"),
        ({"lr_scheduler": "cosine", "lr_power": 2.0}, "--lr-power is for --lr-scheduler polynomial, not cosine"),
        ({"lr_scheduler": "linear", "lr_num_cycles": 2.0}, "is for --lr-scheduler cosine or cosine_with_restarts, not"),
        ({"lr_scheduler": "constant", "lr_step_rules": "1:9,0.1"}, "is for --lr-scheduler piecewise_constant, not"),
        (
            {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 1.5},
            "--lr-num-cycles 1.5 of .* is no whole number",
        ),
        (
            {"lr_scheduler": "polynomial", "learning_rate": 1e-7},
            "ends at 1e-07, and --learning-rate 1e-07 is not above",
        ),
        ({"lr_scheduler": "piecewise_constant"}, "needs --lr-step-rules, such as 1:10,0.1:20,0.01"),
        ({"optimizer": "schedulefree", "lr_scheduler": "cosine"}, "choose constant or constant_with_warmup$"),
    ],
)
def test_what_does_not_fit_a_schedule_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_schedule(options(**given))


@pytest.mark.parametrize(
    "rules", ["", "1:10", "1:10,0.1:20", "a:10,0.1", "1:ten,0.1", "1:10;0.1", "-1:10,0.1", "1:1.5,1"]
)
def test_rules_that_are_none_are_refused(rules: str) -> None:
    with pytest.raises(UsageError, match=f"--lr-step-rules '{rules}' is not FACTOR:UPDATE,...,FACTOR, such as"):
        check_schedule(options(lr_scheduler="piecewise_constant", lr_step_rules=rules))


@pytest.mark.parametrize("rules", ["1:20,0.1:10,0.01", "1:10,0.1:10,0.01", "1:0,0.1"])
def test_rules_whose_updates_do_not_ascend_are_refused(rules: str) -> None:
    with pytest.raises(UsageError, match="has updates that do not ascend from 1; order them"):
        check_schedule(options(lr_scheduler="piecewise_constant", lr_step_rules=rules))


@pytest.mark.parametrize("rules", ["1", "1:10,.1", " 1.5 : 3 , 1e-2 "])
def test_rules_may_be_short_and_spaced(rules: str) -> None:
    check_schedule(options(lr_scheduler="piecewise_constant", lr_step_rules=rules))
