"""What saves memory learns the same where it can, goes on to the bit, and is refused where it cannot work."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import done, refused
from folders import Train
from launched import result, together, updates
from safetensors.torch import load_file
from small_run import equal, from_disk, make_model, options, set_gradients, weights
from test_resume import make_config

from kcache.shards import Cache, UsageError
from kcache.training import painter
from kcache.training.checkpointing import load_tensors
from kcache.training.checks import check_config
from kcache.training.config import DecoderConfig
from kcache.training.low_memory import (
    FULL,
    LORA,
    refuse_accumulation,
    refuse_fp16,
    refuse_processes,
    refuse_sharding,
    with_low_memory,
)
from kcache.training.one_by_one import OneByOne
from kcache.training.optimizers import make_optimizer, optimizer_state, restore_optimizer
from kcache.training.rounding import round_into, rounding_generator
from kcache.training.train import train as train_config

CPU = torch.device("cpu")
UPDATES = 6
OPTIMIZERS = ["adamw", "adafactor", "sgd"] + ["adamw8bit"] * bool(importlib.util.find_spec("bitsandbytes"))
BF16 = {"weights_dtype": "bf16"}
IN_BACKWARD = {"update_in_backward": True, "max_grad_norm": 0.0}
OFFLOAD = {"offload_optimizer": True}
LOW = {**BF16, **IN_BACKWARD, "gradient_checkpointing": True}
"""The preset with AdamW, since the package of 8-bit AdamW is not installed where tests are run."""


def rounded(exact: torch.Tensor, times: int) -> torch.Tensor:
    """``exact`` rounded by so many draws (times, ...), in fp32."""
    generator, many = torch.Generator(), []
    for update in range(times):
        target = torch.empty_like(exact, dtype=torch.bfloat16)
        round_into(target, exact.clone(), rounding_generator(generator, 0, update, 0))
        many.append(target.float())
    return torch.stack(many)


def test_a_number_is_rounded_to_its_neighbours_and_in_the_mean_to_itself() -> None:
    exact = torch.randn(50, generator=torch.Generator().manual_seed(0))
    many = rounded(exact, 4000)
    spacing = 2.0 ** (exact.abs().log2().floor() - 7)  # bf16 has 7 bits behind the first
    assert ((many - exact).abs() < spacing).all()
    assert (many.mean(0) - exact).abs().div(spacing).max() < 0.04  # five deviations of such a mean at most
    assert torch.equal(rounded(many[0], 3), many[0].expand(3, -1)), "what bf16 has stays"


def test_rounding_keeps_what_is_not_finite() -> None:
    nans = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(nans, 20).isnan().all()
    infinite = torch.tensor([torch.inf, -torch.inf])
    assert torch.equal(rounded(infinite, 20), infinite.expand(20, -1))


def test_draws_are_those_of_seed_update_and_parameter_alone() -> None:
    def draw(*key: int) -> list[int]:
        return torch.randint(2**31, (4,), generator=rounding_generator(torch.Generator(), *key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*key)) for key in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)]}) == 4


def bf16_model() -> Any:
    return make_model().to(torch.bfloat16)


def step(model: Any, optimizer: Any, number: int) -> None:
    """An update of ``model``, whichever dtype it has."""
    samples = torch.randn(8, 64, generator=torch.Generator().manual_seed(number)).to(model[0].weight.dtype)
    optimizer.zero_grad()
    (model(samples) - samples.flip(1)).float().square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_after_the_other_the_weights_are_those_of_the_plain_optimizer(name: str) -> None:
    plain, other = make_model(), make_model()
    config = options(optimizer=name, learning_rate=1e-2, **IN_BACKWARD)
    makers = [options(optimizer=name, learning_rate=1e-2), config]
    one, two = (make_optimizer(c, m.parameters(), CPU) for c, m in zip(makers, (plain, other), strict=True))
    assert isinstance(two, OneByOne)
    for number in range(UPDATES):
        set_gradients(plain, number)
        one.step()
        norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()])
        set_gradients(other, number)
        assert all(p.grad is None for p in other.parameters()), "no gradient is kept"
        two.step()
        torch.testing.assert_close(two.norm(), norm)
    assert equal(weights(plain), weights(other))
    states = [optimizer_state(o, c) for o, c in zip((one, two), makers, strict=True)]
    assert states[0].keys() == states[1].keys()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[0]["state"].items():
        assert state.keys() == states[1]["state"][number].keys()


@pytest.mark.parametrize("how", [BF16, {**BF16, **IN_BACKWARD}, {**BF16, **OFFLOAD}, OFFLOAD])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_with_the_same_bits(name: str, how: dict[str, Any]) -> None:
    config = options(optimizer=name, learning_rate=1e-2, **how)
    model = bf16_model() if "weights_dtype" in how else make_model()
    optimizer = make_optimizer(config, model.parameters(), CPU, seed=3)
    kept = []
    for number in range(UPDATES):
        kept.append(from_disk({"model": model.state_dict(), "optimizer": optimizer_state(optimizer, config)}))
        step(model, optimizer, number)
    for first in range(UPDATES):
        again = bf16_model() if "weights_dtype" in how else make_model()
        again.load_state_dict(kept[first]["model"])
        optimizer = make_optimizer(config, again.parameters(), CPU, seed=3, updates=first)
        restore_optimizer(optimizer, kept[first]["optimizer"], config)
        for number in range(first, UPDATES):
            step(again, optimizer, number)
        assert equal(weights(again), weights(model)), f"gone on after {first} updates"


def test_updates_too_small_for_bf16_count_in_the_mean() -> None:
    model, config = bf16_model(), options(optimizer="sgd", learning_rate=1e-6, **BF16)
    before = weights(model)
    optimizer = make_optimizer(config, model.parameters(), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(100):
        optimizer.step()
    moved = torch.cat([(b - p.detach()).float().flatten() for b, p in zip(before, weights(model), strict=True)])
    assert moved.mean().item() == pytest.approx(1e-4, rel=0.1)


def test_states_are_those_of_fp32_weights() -> None:
    model, config = bf16_model(), options(**BF16)
    optimizer = make_optimizer(config, model.parameters(), CPU)
    step(model, optimizer, 0)
    for state in optimizer.state_dict()["state"].values():
        assert state["exp_avg"].dtype == torch.float32


Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make(encoded: Callable[..., Cache], tiny_prior: Path, tiny_decoder: Path) -> Make:
    """``make(stage, out, **changes)``: the options of a run of seven updates."""
    root = encoded().root
    plain = {"gradient_accumulation_steps": 1, "checkpointing_steps": 2, "max_train_steps": 4, "probe_samples": 0}
    return lambda stage, out, **changes: make_config(stage, root, out, tiny_prior, tiny_decoder, **{**plain, **changes})


@pytest.fixture(autouse=True)
def _precision_may_change() -> Iterator[None]:
    """accelerate keeps one for a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


RUNS = {
    "low": LOW,
    "low-offloaded": {**LOW, **OFFLOAD, "channels_last": True},
    "in-backward": IN_BACKWARD,
    "offloaded": {**OFFLOAD, "gradient_accumulation_steps": 2},
    "bf16": {**BF16, "mixed_precision": "bf16", "use_ema": True},
    "lora": {"lora": True, "base_dtype": "bf16", "gradient_checkpointing": True},
    "lora-low": {"lora": True, "base_dtype": "bf16", "use_dora": True, **IN_BACKWARD, **OFFLOAD, "use_ema": True},
}


@pytest.mark.parametrize("stage", ["prior", "decoder"])
@pytest.mark.parametrize("how", RUNS)
def test_a_run_that_is_gone_on_with_ends_with_the_same_bits(make: Make, tmp_path: Path, stage: str, how: str) -> None:
    changes = dict(RUNS[how])
    if stage == "prior":
        changes.pop("channels_last", None)
    train_config(make(stage, tmp_path / "straight", **changes))
    out = tmp_path / "out"
    train_config(make(stage, out, **{**changes, "max_train_steps": 2}))
    for folder in (out / "prior", out / "unet"):  # the run was cut off after its checkpoint
        shutil.rmtree(folder, ignore_errors=True)
    (out / "pytorch_lora_weights.safetensors").unlink(missing_ok=True)
    train_config(make(stage, out, **changes, resume_from_checkpoint="latest"))
    straight, resumed = result(tmp_path / "straight"), result(out)
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name
    is_bf16 = changes.get("weights_dtype") == "bf16"
    dtypes = {name: tensor.dtype for name, tensor in straight.items() if not name.startswith("clip_")}
    assert set(dtypes.values()) == {torch.bfloat16 if is_bf16 else torch.float32}


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_weights_in_bf16_learn_nearly_what_those_in_fp32_do(make: Make, tmp_path: Path, stage: str) -> None:
    measured = {"probe_samples": 10, "max_train_steps": 10, "learning_rate": 1e-3, "max_grad_norm": 0.0}
    exact = train_config(make(stage, tmp_path / "fp32", **measured))
    low = train_config(make(stage, tmp_path / "low", **{**measured, **LOW}))
    assert exact.last_probe < exact.first_probe
    assert low.first_probe == pytest.approx(exact.first_probe, rel=0.02)
    assert low.last_probe == pytest.approx(exact.last_probe, rel=0.05)


@pytest.mark.parametrize(("stage", "how"), [("prior", LOW), ("decoder", {"lora": True, "base_dtype": "bf16"})])
def test_what_is_in_bf16_is_validated_like_anything_else(
    make: Make,
    tmp_path: Path,
    tiny_prior: Path,
    tiny_decoder: Path,
    stage: str,
    how: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = {
        "pretrained_prior_model_name_or_path": str(tiny_prior),
        "pretrained_decoder_model_name_or_path": str(tiny_decoder),
    }
    monkeypatch.setattr(painter, "STEPS", 2)
    measured = {"validation_split": 0.3, "validation_steps": 4, "resolution": 32}
    prompts = {"validation_prompts": ("a fox",)} if stage == "prior" else {}
    config = replace(make(stage, tmp_path / "out", **how), **both, **measured, **prompts)
    assert train_config(config).best_loss is not None
    assert list((tmp_path / "out" / "validation").rglob("*.png"))


def test_the_average_of_bf16_weights_is_kept_in_fp32(make: Make, tmp_path: Path) -> None:
    train_config(make("prior", tmp_path / "out", use_ema=True, **LOW))
    kept = load_tensors(tmp_path / "out" / "checkpoint-4")["ema"]["averages"]
    assert {average.dtype for average in kept} == {torch.float32}
    assert any((average != average.bfloat16().float()).any() for average in kept)


def test_the_statistics_of_the_prior_stay_in_fp32(make: Make, tmp_path: Path, tiny_prior: Path) -> None:
    train_config(make("prior", tmp_path / "out", **LOW))
    before = load_file(tiny_prior / "prior" / "diffusion_pytorch_model.safetensors")
    after = result(tmp_path / "out")
    for name in ("clip_mean", "clip_std"):
        assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_that_travel_are_those_that_stay(name: str) -> None:
    """``cpu:0`` is this CPU, and another device than ``cpu``: states are copied to it and back for every update."""
    config = options(optimizer=name, learning_rate=1e-2, **OFFLOAD)
    still, travelling = make_model(), make_model()
    one, two = (
        make_optimizer(config, model.parameters(), torch.device(device))
        for model, device in ((still, "cpu"), (travelling, "cpu:0"))
    )
    for number in range(UPDATES):
        if number == UPDATES // 2:
            kept = from_disk(optimizer_state(two, config))
            two = make_optimizer(config, travelling.parameters(), torch.device("cpu:0"))
            restore_optimizer(two, kept, config)
        step(still, one, number)
        step(travelling, two, number)
    assert equal(weights(still), weights(travelling))
    places = [{n: v.data_ptr() for n, v in s.items() if torch.is_tensor(v)} for s in two.state.values()]
    step(travelling, two, UPDATES)
    assert places == [{n: v.data_ptr() for n, v in s.items() if torch.is_tensor(v)} for s in two.state.values()]


def test_low_memory_is_short_for_its_parts_and_gives_way_to_what_is_said() -> None:
    def chosen(**given: Any) -> dict[str, Any]:
        nothing = dict.fromkeys([*FULL, *LORA, "lora", "use_8bit_adam"])
        return {name: v for name, v in with_low_memory({**nothing, **given}).items() if v is not None}

    assert chosen() == FULL
    assert chosen(lora=True) == {"lora": True, **LORA}
    assert chosen(optimizer="adafactor", max_grad_norm=1.0) == {**FULL, "optimizer": "adafactor", "max_grad_norm": 1.0}
    assert "optimizer" not in chosen(use_8bit_adam=True)
    check_config(replace(options(), **{**FULL, "optimizer": "adafactor"}))
    check_config(options(lora=True, **LORA))


REFUSED = [
    ({"update_in_backward": True}, "--max-grad-norm 1 could look at together; give --max-grad-norm 0"),
    ({**IN_BACKWARD, "gradient_accumulation_steps": 4}, "no gradients that could be summed over 4 batches"),
    ({**IN_BACKWARD, "mixed_precision": "fp16"}, "in fp16 all gradients are looked at before an update"),
    ({**BF16, "mixed_precision": "fp16"}, "--weights-dtype bf16 and --mixed-precision fp16 contradict each other"),
    ({**BF16, "lora": True}, "the adapters of a LoRA stay in fp32, and --base-dtype bf16 holds"),
    ({"base_dtype": "bf16"}, "--base-dtype bf16 has no effect without --lora"),
    ({"weights_dtype": "fp16"}, "--weights-dtype 'fp16' is none of fp32, bf16"),
    ({**BF16, "optimizer": "prodigy"}, "--optimizer prodigy looks at all weights at once"),
    ({**OFFLOAD, "optimizer": "schedulefree"}, "--optimizer schedulefree looks at all weights at once"),
    ({**OFFLOAD, "optimizer": "adamw8bit", "optimizer_args": ("is_paged=true",)}, "give one of them"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        check_config(options(**given))


def test_what_the_launcher_chose_is_refused_as_well() -> None:
    with pytest.raises(UsageError, match="for one process, and this run has 2"):
        refuse_processes(options(**IN_BACKWARD), 2)
    with pytest.raises(UsageError, match="could be summed over 3 batches"):
        refuse_accumulation(options(**IN_BACKWARD), 3)
    with pytest.raises(UsageError, match="--base-dtype bf16 and --mixed-precision fp16 contradict"):
        refuse_fp16(options(lora=True, base_dtype="bf16"))
    for given in (BF16, IN_BACKWARD, OFFLOAD, {"lora": True, "base_dtype": "bf16"}):
        with pytest.raises(UsageError, match="does not work with weights sharded by FSDP"):
            refuse_sharding(options(**given))
    with pytest.raises(UsageError, match="--channels-last does not work with weights sharded by FSDP"):
        refuse_sharding(DecoderConfig(cache="", output_dir="", channels_last=True))
    refuse_processes(options(**BF16, **OFFLOAD), 2)
    refuse_sharding(options())


def test_low_memory_on_the_command_line(whole: Path, train: Train, tmp_path: Path) -> None:
    done(train("prior", whole, "--low-memory", "--optimizer", "adafactor", "--train-batch-size=2"))
    told = json.loads((tmp_path / "out" / "training.json").read_text())["options"]
    assert {name: told[name] for name in FULL} == {**FULL, "optimizer": "adafactor"}
    dtypes = {name: t.dtype for name, t in result(tmp_path / "out").items() if name not in ("clip_mean", "clip_std")}
    assert set(dtypes.values()) == {torch.bfloat16}
    refused(train("prior", whole, "--low-memory", "--max-grad-norm=1", "--optimizer=sgd"), code=2)


@pytest.mark.slow
def test_two_processes_with_bf16_weights_measure_what_one_does(make: Make, tmp_path: Path) -> None:
    how = {**BF16, **OFFLOAD, "optimizer": "sgd", "learning_rate": 0.1, "logging_steps": 1}
    alone = make("prior", tmp_path / "alone", **how, train_batch_size=4)
    train_config(alone)
    jobs = {"pair": {**_given(alone), "stage": "prior", "output_dir": str(tmp_path / "pair"), "train_batch_size": 2}}
    assert together(tmp_path / "jobs", jobs) == {"pair": {"step": 4}}
    for one, other in zip(updates(tmp_path / "pair"), updates(tmp_path / "alone"), strict=True):
        assert one == pytest.approx(other, rel=0.02)


def _given(config: Any) -> dict[str, Any]:
    """The options that are not at their defaults."""
    return {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
