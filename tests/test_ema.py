"""The moving average of the weights: the reference's numbers, the same bits after a resume, and nothing left behind."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from small_run import equal, from_disk, make_model, train, weights
from torch import nn

from kcache.shards import KcacheError
from kcache.training import ema as module
from kcache.training.ema import Ema

UPDATES = 8


def trained_with(decay: float, updates: int = UPDATES) -> tuple[nn.Module, torch.optim.Optimizer, Ema]:
    model = make_model()
    optimizer, ema = torch.optim.SGD(model.parameters(), 0.5), Ema(list(model.parameters()), decay)
    train(model, optimizer, 0, updates, ema.step)
    return model, optimizer, ema


def test_an_average_that_is_taken_in_part_by_part_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_model, _, at_once = trained_with(0.9999)
    monkeypatch.setattr(module, "PART", 100)
    model, _, in_parts = trained_with(0.9999)
    assert len(in_parts._parts) == 4
    assert len(at_once._parts) == 1
    assert equal(averages(model, in_parts), averages(whole_model, at_once))
    assert in_parts.state_dict()["updates"] == UPDATES


def averages(model: nn.Module, ema: Ema) -> list[torch.Tensor]:
    with ema.applied():
        return weights(model)


def test_the_average_is_that_of_the_reference() -> None:
    model = make_model()
    optimizer, ema = torch.optim.SGD(model.parameters(), 0.5), Ema(list(model.parameters()), 0.9999)
    reference, one_by_one = (EMAModel(model.parameters(), foreach=foreach) for foreach in (True, False))

    def step() -> None:
        ema.step()
        reference.step(model.parameters())
        one_by_one.step(model.parameters())

    train(model, optimizer, 0, UPDATES, step)
    assert equal(averages(model, ema), reference.shadow_params)
    torch.testing.assert_close(averages(model, ema), one_by_one.shadow_params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", [0.9999, 0.3])
def test_newer_updates_count_more_and_the_first_replaces_what_was_before(decay: float) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = Ema([parameter], decay)
    expected = 0.0
    for update in range(1, UPDATES):
        with torch.no_grad():
            parameter.fill_(update**2)
        ema.step()
        keeps = min(update / (update + 9), decay) if update > 1 else 0.0
        expected = keeps * expected + (1 - keeps) * update**2
        with ema.applied():
            assert parameter.item() == pytest.approx(expected)


def test_weights_are_to_the_bit_what_they_were_after_the_average_stood_in_for_them() -> None:
    model, optimizer, ema = trained_with(0.9999, 4)
    before = weights(model)
    with ema.applied():
        assert not equal(weights(model), before)
    assert equal(weights(model), before)
    with pytest.raises(ZeroDivisionError), ema.applied():
        _ = 1 / 0
    assert equal(weights(model), before)
    train(model, optimizer, 4, UPDATES, ema.step)
    other, _, alone = trained_with(0.9999)
    assert equal(averages(model, ema), averages(other, alone)), "looking at it changes no later update"


def test_a_run_that_goes_on_at_any_update_has_the_same_average() -> None:
    model, _, ema = trained_with(0.9999)
    for step in range(UPDATES):
        other, optimizer, before = trained_with(0.9999, step)
        kept = from_disk(before.state_dict())
        after = Ema(list(other.parameters()), 0.9999)  # of the weights as they are now, until it is loaded
        after.load_state_dict(kept)
        train(other, optimizer, step, UPDATES, after.step)
        assert equal(averages(other, after), averages(model, ema)), f"gone on after {step} updates"


def test_a_resumed_average_has_the_decay_that_is_asked_for_now() -> None:
    model, optimizer, ema = trained_with(0.9999)
    now = Ema(list(model.parameters()), 0.0)
    now.load_state_dict(from_disk(ema.state_dict()))
    train(model, optimizer, UPDATES, UPDATES + 1, now.step)
    torch.testing.assert_close(averages(model, now), weights(model))


def test_a_loaded_average_shares_no_memory_with_what_it_was_loaded_from() -> None:
    model, optimizer, ema = trained_with(0.9999)
    kept = {"updates": UPDATES, "averages": [average.clone() for average in ema.state_dict()["averages"]]}
    before = [average.clone() for average in kept["averages"]]
    ema.load_state_dict(kept)
    train(model, optimizer, 0, 1, ema.step)
    assert equal(kept["averages"], before)


def test_an_average_of_other_parameters_is_refused() -> None:
    model, _, ema = trained_with(0.9999, 1)
    fewer = Ema(list(model.parameters())[:2], 0.9999)
    with pytest.raises(KcacheError, match="average is of 4 parameters and this run trains 2, or their shapes differ"):
        fewer.load_state_dict(ema.state_dict())
