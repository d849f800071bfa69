"""Optimizers by name: each goes on from a checkpoint to the bit, takes its own options, and refuses those of others."""

import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_run import equal, from_disk, make_model, options, set_gradients, train, weights
from torch import nn

from kcache.shards import KcacheError, UsageError
from kcache.training.optimizer_args import parse_value
from kcache.training.optimizers import (
    OPTIMIZERS,
    make_optimizer,
    optimizer_name,
    optimizer_state,
    restore_optimizer,
    weights_for_use,
)
from kcache.training.schedules import make_schedule

CPU = torch.device("cpu")
UPDATES = 6
RATES = {"prodigy": 1.0, "adafactor": 1e-2, "sgd": 1e-1}
HERE = [name for name, kind in OPTIMIZERS.items() if importlib.util.find_spec(kind.module.partition(".")[0])]


def options_of(name: str, **given: Any) -> Any:
    args = {"sgd": ("momentum=0.9", "nesterov=true"), "prodigy": ("d_coef=2", "safeguard_warmup=true")}.get(name, ())
    usual = {
        "optimizer": name,
        "learning_rate": RATES.get(name, 1e-3),
        "adam_weight_decay": 0.1,
        "optimizer_args": args,
    }
    schedule = "constant_with_warmup" if name == "schedulefree" else "cosine"
    return options(**{**usual, "lr_scheduler": schedule, **given})


def begin(config: Any) -> tuple[nn.Module, Any, Any]:
    model = make_model()
    optimizer = make_optimizer(config, model.parameters(), CPU)
    return model, optimizer, make_schedule(config, optimizer, UPDATES, 0)


def go_on(config: Any, kept: dict[str, Any], step: int) -> tuple[nn.Module, Any, Any]:
    """As a run does it: the weights, then the optimizer, then the schedule."""
    model = make_model()
    model.load_state_dict(kept["model"])
    optimizer = make_optimizer(config, model.parameters(), CPU)
    restore_optimizer(optimizer, kept["optimizer"], config)
    return model, optimizer, make_schedule(config, optimizer, UPDATES, step)


def test_all_optimizers_but_that_of_the_largest_package_are_tested() -> None:
    assert set(OPTIMIZERS) - set(HERE) <= {"adamw8bit"}


@pytest.mark.parametrize("name", HERE)
def test_a_run_that_goes_on_at_any_update_ends_with_the_same_bits(name: str) -> None:
    config = options_of(name)
    model, optimizer, schedule = begin(config)
    kept = []
    for step in range(UPDATES):
        kept.append(from_disk({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, config)}))
        train(model, optimizer, step, step + 1, schedule.step)
    assert not equal(weights(model), weights(make_model()))
    for step in range(UPDATES):
        other, optimizer, schedule = go_on(config, kept[step], step)
        train(other, optimizer, step, UPDATES, schedule.step)
        assert equal(weights(other), weights(model)), f"gone on after {step} updates"


@pytest.mark.parametrize("name", HERE)
def test_what_is_asked_for_when_a_run_goes_on_is_what_it_gets(name: str) -> None:
    config = options_of(name, lr_scheduler="constant")
    model, optimizer, _ = begin(config)
    train(model, optimizer, 0, 3)
    kept = from_disk({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, config)})
    _, optimizer, _ = go_on(
        options_of(name, lr_scheduler="constant", learning_rate=0.5, adam_weight_decay=0.0), kept, 3
    )
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (0.5, 0.5, 0.0)


def test_what_prodigy_has_found_out_is_the_checkpoints() -> None:
    config = options_of("prodigy", lr_scheduler="constant")
    model, optimizer, _ = begin(config)
    train(model, optimizer, 0, UPDATES)
    found = optimizer.param_groups[0]["d"]
    assert found > 2e-6, "it begins at 1e-6"
    kept = from_disk({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, config)})
    _, optimizer, _ = go_on(options_of("prodigy", optimizer_args=("d_coef=0.5",)), kept, UPDATES)
    assert (optimizer.param_groups[0]["d"], optimizer.param_groups[0]["d_coef"]) == (found, 0.5)


def test_adamw_is_on_the_cpu_the_plain_one_of_torch() -> None:
    config = options(learning_rate=1e-3, adam_weight_decay=0.1, adam_beta2=0.99, adam_epsilon=1e-6)
    model, optimizer, _ = begin(config)
    train(model, optimizer, 0, UPDATES)
    other = make_model()
    train(other, torch.optim.AdamW(other.parameters(), 1e-3, (0.9, 0.99), 1e-6, 0.1), 0, UPDATES)
    assert equal(weights(model), weights(other))


def test_adamw_is_fused_on_a_gpu_unless_another_way_is_asked_for() -> None:
    parameters = list(make_model().parameters())
    assert make_optimizer(options(), parameters, torch.device("cuda")).defaults["fused"] is True
    asked = options(optimizer_args=("foreach=true",))
    assert make_optimizer(asked, parameters, torch.device("cuda")).defaults["fused"] is None


def test_a_checkpoint_of_a_fused_optimizer_goes_on_without() -> None:
    fused, plain = options(optimizer_args=("fused=true",)), options()
    model, optimizer, _ = begin(fused)
    train(model, optimizer, 0, 2)
    kept = from_disk({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, fused)})
    model, optimizer, _ = go_on(plain, kept, 2)
    assert optimizer.param_groups[0]["fused"] is None
    train(model, optimizer, 2, 3)


def test_checkpoints_without_a_name_are_of_adamw() -> None:
    model, optimizer, _ = begin(options())
    train(model, optimizer, 0, 2)
    old = optimizer.state_dict()
    restore_optimizer(make_optimizer(options(), make_model().parameters(), CPU), old, options())
    with pytest.raises(KcacheError, match=r"made with --optimizer adamw and this run has sgd; give --optimizer adamw"):
        restore_optimizer(optimizer, old, options(optimizer="sgd"))


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    _, optimizer, _ = begin(options())
    fewer = make_optimizer(options(), list(make_model().parameters())[:3], CPU)
    with pytest.raises(KcacheError, match="has 3 parameters and this run trains 4; give the options"):
        restore_optimizer(optimizer, optimizer_state(fewer, options()), options())


@pytest.mark.parametrize("name", HERE)
def test_only_schedule_free_weights_change_to_be_used_and_they_come_back_to_the_bit(name: str) -> None:
    config = options_of(name)
    model, optimizer, schedule = begin(config)
    with weights_for_use(optimizer):
        assert equal(weights(model), weights(make_model())), "before the first update both are the same"
    train(model, optimizer, 0, 4, schedule.step)
    trained = weights(model)
    with weights_for_use(optimizer):
        assert equal(weights(model), trained) == (name != "schedulefree")
        with weights_for_use(optimizer):  # within itself it does nothing
            assert equal(weights(model), trained) == (name != "schedulefree")
    assert equal(weights(model), trained)
    train(model, optimizer, 4, UPDATES, schedule.step)
    alone, optimizer, schedule = begin(config)
    train(alone, optimizer, 0, UPDATES, schedule.step)
    assert equal(weights(model), weights(alone)), "looking at them changes no later update"


def test_trained_weights_come_back_after_an_error() -> None:
    model, optimizer, schedule = begin(options_of("schedulefree"))
    train(model, optimizer, 0, 4, schedule.step)
    trained = weights(model)
    with pytest.raises(ZeroDivisionError), weights_for_use(optimizer):
        _ = 1 / 0
    assert equal(weights(model), trained)
    train(model, optimizer, 4, UPDATES, schedule.step)


def test_all_of_it_works_on_an_optimizer_that_accelerate_prepared() -> None:
    config = options_of("schedulefree")
    model = make_model()
    optimizer = Accelerator(cpu=True).prepare(make_optimizer(config, model.parameters(), CPU))
    schedule = make_schedule(config, optimizer, UPDATES, 0)
    train(model, optimizer, 0, 4, schedule.step)
    trained, state = weights(model), from_disk(optimizer_state(optimizer, config))
    with weights_for_use(optimizer):
        assert not equal(weights(model), trained)
    restore_optimizer(optimizer, state, config)
    assert equal(weights(model), trained)


def test_8_bit_adam_is_an_optimizer_by_another_name() -> None:
    assert optimizer_name(options(use_8bit_adam=True)) == "adamw8bit"
    assert optimizer_name(options(use_8bit_adam=True, optimizer="adamw8bit")) == "adamw8bit"
    with pytest.raises(
        UsageError, match="--use-8bit-adam is --optimizer adamw8bit, and --optimizer sgd contradicts it"
    ):
        optimizer_name(options(use_8bit_adam=True, optimizer="sgd"))


def test_8_bit_adam_gets_the_options_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class AdamW8bit:
        def __init__(self, params: Any, lr: float = 1, betas: Any = (0, 0), eps: float = 1, weight_decay: float = 1):
            made.update(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    package = ModuleType("bitsandbytes.optim")
    package.AdamW8bit = AdamW8bit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package)
    make_optimizer(options(use_8bit_adam=True, learning_rate=1e-3, adam_beta1=0.8), [], CPU)
    assert made == {"lr": 1e-3, "betas": (0.8, 0.999), "eps": 1e-8, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
        ("prodigy", "prodigyopt", "prodigy"),
        ("schedulefree", "schedulefree", "schedulefree"),
    ],
)
def test_without_its_package_an_optimizer_says_how_to_get_it(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(KcacheError, match=rf"^{package} does not load .*; run: pip install 'kcache\[{extra}\]'$"):
        make_optimizer(options(optimizer=name), [], CPU)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("-1e-3", -1e-3),
        ("inf", float("inf")),
        ("true", True),
        ("False", False),
        ("None", None),
        ("none,1e-3", (None, 1e-3)),
        ("(0.9, 0.99)", (0.9, 0.99)),
        ("cosine", "cosine"),
    ],
)
def test_values_are_read_as_what_they_look_like(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_an_optimizer_gets_its_own_options() -> None:
    args = ("eps=1e-20,1e-4", "d=2", "beta2_decay=-0.5")
    made = make_optimizer(options(optimizer="adafactor", optimizer_args=args), make_model().parameters(), CPU)
    assert (made.defaults["eps"], made.defaults["d"], made.defaults["beta2_decay"]) == ((1e-20, 1e-4), 2, -0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "prodogy"}, r"'prodogy' is none of adamw, .*; did you mean 'prodigy'\?$"),
        ({"optimizer": "AdamW"}, r"did you mean 'adamw'\?$"),
        ({"optimizer_args": ("fused",)}, "takes NAME=VALUE, and 'fused' is none; such as amsgrad=VALUE$"),
        ({"optimizer_args": ("amsgard=true",)}, r"has no argument 'amsgard' \(it has: .*did you mean 'amsgrad'\?$"),
        ({"optimizer_args": ("params=1",)}, "has no argument 'params'"),
        ({"optimizer_args": ("lr=1",)}, "lr has an option of its own: give --learning-rate$"),
        ({"optimizer_args": ("betas=0.9,0.99",)}, "give --adam-beta1 and --adam-beta2$"),
        ({"optimizer_args": ("eps=1",)}, "give --adam-epsilon$"),
        ({"optimizer_args": ("weight_decay=1",)}, "give --adam-weight-decay$"),
        (
            {"optimizer": "schedulefree", "optimizer_args": ("warmup_steps=9",)},
            "give --lr-scheduler constant_with_warm",
        ),
        ({"optimizer_args": ("amsgrad=true", "amsgrad=false")}, "gives amsgrad twice"),
        ({"optimizer_args": ("amsgrad=no",)}, "amsgrad=no does not fit: amsgrad is true or false, by default False$"),
        ({"optimizer": "sgd", "optimizer_args": ("momentum=much",)}, "momentum is a number, by default 0$"),
        ({"optimizer": "sgd", "optimizer_args": ("momentum=nan",)}, "momentum is a number"),
        ({"optimizer": "prodigy", "optimizer_args": ("slice_p=1.5",)}, "slice_p is a whole number, by default 1$"),
        ({"optimizer": "prodigy", "optimizer_args": ("beta3=big",)}, "beta3 is a number, true, false or none"),
        ({"optimizer": "adafactor", "optimizer_args": ("eps=1",)}, "eps is 2 numbers with commas between them"),
        ({"optimizer": "sgd", "optimizer_args": ("momentum=-1",)}, "--optimizer sgd cannot be made with .*momentum=-1"),
        ({"optimizer": "sgd", "adam_beta1": 0.8}, "--adam-beta1 0.8 is given, and --optimizer sgd has nothing like it"),
        ({"optimizer": "adafactor", "adam_epsilon": 1e-6}, "--adam-epsilon 1e-06 is given, and --optimizer adafactor"),
        ({"optimizer": "schedulefree", "use_ema": True}, "--use-ema would average the average"),
        ({"optimizer": "schedulefree", "adam_beta1": 0.0}, "--adam-beta1 0 leaves --optimizer schedulefree no average"),
    ],
)
def test_what_does_not_fit_an_optimizer_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_optimizer(options(**given), make_model().parameters(), CPU)


def test_prodigy_says_when_the_rate_is_that_of_adam(caplog: pytest.LogCaptureFixture) -> None:
    make_optimizer(options(optimizer="prodigy"), make_model().parameters(), CPU)
    assert "--learning-rate, and 0.0001 leaves little of it; 1.0 is usual" in caplog.text
    caplog.clear()
    make_optimizer(options(optimizer="prodigy", learning_rate=1.0), make_model().parameters(), CPU)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_no_optimizer_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for name in HERE:
        model, optimizer, schedule = begin(options_of(name))
        set_gradients(model, 0)
        optimizer.step()
        schedule.step()
    assert capsys.readouterr().out == ""
