"""A LoRA: what it adapts, that the rest is frozen, and that its file is what stock diffusers loads."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_support import (
    SUBFOLDERS,
    batch_of,
    lora_config,
    loss_of,
    outputs,
    tiny_model,
    train_lora,
)
from support import flip

from kcache.lora_file import LORA_FILE, read_lora
from kcache.shards import KcacheError, UsageError
from kcache.training.config import TrainConfig
from kcache.training.lora import adaptable_layers
from kcache.training.weights import make_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import architecture

WHOLE = TrainConfig(cache="", output_dir="")
VARIANTS = [
    ("prior", {}),
    ("prior", {"lora_targets": ("attention", "feed-forward"), "lora_alpha": 6.0}),
    ("prior", {"use_dora": True, "lora_alpha": 2.0}),
    ("decoder", {}),
    ("decoder", {"lora_targets": ("attention", "convolutions"), "rank": 2}),
    ("decoder", {"lora_targets": ("convolutions", "mid_block"), "use_dora": True, "lora_alpha": 8.0}),
]


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_prior: Path, tiny_decoder: Path) -> Any:
    """The tiny component of the test's stage."""
    return tiny_model(request.getfixturevalue("stage"), tiny_prior, tiny_decoder)


def full_size(stage: str) -> Any:
    """The component of the hub's checkpoint, without memory for its weights."""
    from diffusers import PriorTransformer, UNet2DConditionModel

    with torch.device("meta"):
        if stage == "prior":
            return PriorTransformer(**architecture.PRIOR)
        return UNet2DConditionModel(**architecture.UNET)


def trained(model: Any) -> dict[str, Any]:
    """The parameters that require gradients, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adapted(model: Any) -> set[str]:
    """The layers that a LoRA lies beside."""
    return {name.partition(".lora_")[0] for name in trained(model)}


# --- what is adapted


@pytest.mark.parametrize(
    ("stage", "targets", "layers", "parameters"),
    [
        ("prior", ("attention",), 80, 1_310_720),
        ("prior", ("feed-forward",), 40, 1_638_400),
        ("prior", ("attention", "feed-forward"), 120, 2_949_120),
        ("decoder", ("attention",), 132, 1_164_288),
        ("decoder", ("convolutions",), 91, 3_575_808),
        ("decoder", ("attention", "convolutions"), 223, 4_740_096),
    ],
)
def test_targets_at_full_size_are_the_layers_that_the_documentation_counts(
    stage: str, targets: tuple[str, ...], layers: int, parameters: int
) -> None:
    model = full_size(stage)
    make_weights(lora_config(lora_targets=targets), SUBFOLDERS[stage]).prepare(model, seed=0)
    assert len(adapted(model)) == layers
    assert sum(p.numel() for p in trained(model).values()) == parameters
    document = (Path(__file__).parent.parent / "docs" / "lora.md").read_text("utf-8")
    assert f"| {stage} | `{' '.join(targets)}` | {layers} | {parameters:,} |" in document


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_attention_is_every_projection_of_every_attention_and_nothing_else(stage: str, model: Any) -> None:
    projections = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
    wanted = {name for name in adaptable_layers(model) if name.endswith(projections)}
    make_weights(lora_config(), SUBFOLDERS[stage]).prepare(model, seed=0)
    assert adapted(model) == wanted
    assert {name.rpartition("add_")[2] for name in wanted if "add_" in name} == (
        {"k_proj", "v_proj"} if stage == "decoder" else set()
    )


@pytest.mark.parametrize(
    ("stage", "targets", "layers"),
    [
        ("prior", ("transformer_blocks.1.attn1.to_q",), {"transformer_blocks.1.attn1.to_q"}),
        ("prior", ("proj_in", "time_embedding"), {"proj_in", "time_embedding.linear_1", "time_embedding.linear_2"}),
        ("prior", ("transformer_blocks.0.ff",), {f"transformer_blocks.0.ff.net.{n}" for n in ("0.proj", "2")}),
        ("decoder", ("conv_in",), {"conv_in"}),
        ("decoder", ("down_blocks.0.resnets.0.conv1",), {"down_blocks.0.resnets.0.conv1"}),
    ],
)
def test_a_module_may_be_named_and_stands_for_the_layers_in_it(
    stage: str, model: Any, targets: tuple[str, ...], layers: set[str]
) -> None:
    make_weights(lora_config(lora_targets=targets), SUBFOLDERS[stage]).prepare(model, seed=0)
    assert adapted(model) == layers


@pytest.mark.parametrize(
    ("stage", "target", "said"),
    [
        (
            "prior",
            "convolutions",
            "PriorTransformer has no 'convolutions' for a LoRA; give --lora-targets of attention, f",
        ),
        (
            "decoder",
            "feed-forward",
            "UNet2DConditionModel has no 'feed-forward' for a LoRA; give --lora-targets of att",
        ),
        ("prior", "atention", "did you mean 'attention'?"),
        ("decoder", "to_kk", "did you mean 'to_k'?"),
        ("decoder", "norm1", "names of modules: add_embedding, add_k_proj, add_v_proj, attentions, conv1,"),
    ],
)
def test_an_unknown_target_is_answered_with_what_there_is(stage: str, model: Any, target: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        make_weights(lora_config(lora_targets=("attention", target)), SUBFOLDERS[stage]).prepare(model, seed=0)
    assert said in str(error.value)


# --- what is trained


@pytest.mark.parametrize(("stage", "options"), VARIANTS)
def test_a_lora_begins_as_the_model_and_learns_while_the_model_stays(
    stage: str, options: dict[str, Any], model: Any
) -> None:
    before, frozen = outputs(model.eval(), stage), {name: p.clone() for name, p in model.named_parameters()}
    make_weights(lora_config(**options), SUBFOLDERS[stage]).prepare(model, seed=0)
    assert all(p.dtype == torch.float32 for p in trained(model).values())
    torch.testing.assert_close(outputs(model, stage), before)
    other = type(model).from_config(model.config)
    other.load_state_dict(frozen, strict=False)
    train_lora(other, stage, lora_config(**options))
    assert not torch.allclose(outputs(other, stage), before, atol=1e-3)
    for name, parameter in other.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer", "")]), name


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_runs_with_one_seed_begin_equal_and_leave_the_global_generator_alone(
    stage: str, tiny_prior: Path, tiny_decoder: Path
) -> None:
    drawn: dict[int, list[torch.Tensor]] = {}
    for number, seed in enumerate((5, 5, 6)):
        torch.manual_seed(number)
        state, model = torch.get_rng_state(), tiny_model(stage, tiny_prior, tiny_decoder)
        make_weights(lora_config(), SUBFOLDERS[stage]).prepare(model, seed)
        assert torch.equal(state, torch.get_rng_state())
        drawn[number] = list(trained(model).values())
    assert all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize("options", [options for stage, options in VARIANTS if stage == "prior"])
def test_a_lora_of_the_trimmed_prior_has_the_gradients_of_the_whole_one(
    tiny_prior: Path, options: dict[str, Any]
) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    train_lora(model, "prior", lora_config(**options))  # both matrices have learned, so both have gradients
    found = {}
    for length in (77, 16):
        model.zero_grad()
        loss_of(model, "prior", batch_of("prior", length)).backward()
        found[length] = {name: p.grad.clone() for name, p in trained(model).items()}
        assert all(gradient.abs().sum() > 0 for gradient in found[length].values())
    for name, gradient in found[77].items():
        torch.testing.assert_close(found[16][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# --- its file


@pytest.mark.parametrize(("stage", "options"), VARIANTS)
def test_what_is_saved_fills_a_prepared_model_exactly(
    stage: str, options: dict[str, Any], model: Any, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    weights = train_lora(model, stage, lora_config(**options))
    weights.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [weights.result] == [LORA_FILE]
    other = tiny_model(stage, tiny_prior, tiny_decoder)
    weights.prepare(other, seed=8)
    weights.load(other, tmp_path)
    assert all(torch.equal(p, trained(other)[name]) for name, p in trained(model).items())
    assert torch.equal(outputs(other.eval(), stage), outputs(model, stage))
    (tmp_path / "again").mkdir()
    weights.save(other, tmp_path / "again")
    (configuration, tensors), (first, _) = read_lora(tmp_path / "again" / LORA_FILE), read_lora(tmp_path / LORA_FILE)
    assert configuration == first  # all of it, in one order, though PEFT keeps targets in a set
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


@pytest.mark.parametrize(("stage", "options"), VARIANTS)
def test_stock_diffusers_loads_it_and_scales_it(
    stage: str, options: dict[str, Any], model: Any, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    plain = outputs(model.eval(), stage)
    train_lora(model, stage, lora_config(**options)).save(model, tmp_path)
    stock = tiny_model(stage, tiny_prior, tiny_decoder).eval()
    stock.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True, adapter_name="mine")
    torch.testing.assert_close(outputs(stock, stage), outputs(model, stage))
    stock.set_adapters("mine", 0.5)
    assert not torch.allclose(outputs(stock, stage), outputs(model, stage), atol=1e-4)
    stock.set_adapters("mine", 0.0)  # of a DoRA the lengths that it has learned stay
    assert torch.allclose(outputs(stock, stage), plain, atol=1e-5) != bool(options.get("use_dora"))
    stock.disable_lora()
    assert torch.equal(outputs(stock, stage), plain)


def rewrite(path: Path, change: Any) -> None:
    """Change the tensors of a safetensors file and keep its header."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-10]),
            "does not load (cut, damaged, or not what kcache",
        ),
        (lambda path: path.write_bytes(b""), "does not load (cut, damaged, or not what kcache"),
        (lambda path: flip(path, 3), "does not load (cut, damaged, or not what kcache"),
        (
            lambda path: rewrite(path, lambda t: t.popitem()),
            " and PriorTransformer takes of 16x4; give the LoRA",
        ),
        (
            lambda path: rewrite(path, lambda t: t.update(more=torch.zeros(2, 3))),
            "has more of 2x3 and PriorTransformer takes not at all; give the LoRA to the model that it was trained for",
        ),
        (lambda path: path.unlink(), f"holds no {LORA_FILE}: it is of a run without --lora; leave --lora out"),
    ],
)
def test_a_damaged_file_is_named_and_fills_nothing(tiny_prior: Path, tmp_path: Path, damage: Any, said: str) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    weights = train_lora(model, "prior", lora_config())
    weights.save(model, tmp_path)
    damage(tmp_path / LORA_FILE)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(KcacheError) as error:
        weights.load(model, tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert said in str(error.value)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"rank": 2}, "has r 4 and this LoRA 2; give --rank as it was, or start a new run in another --output-dir"),
        ({"lora_alpha": 1.0}, "has lora_alpha 4 and this LoRA 1.0; give --lora-alpha as it was, or"),
        ({"use_dora": True}, "has use_dora False and this LoRA True; give --use-dora as it was, or"),
        ({"lora_targets": ("feed-forward",)}, "PriorTransformer takes not at all; give the LoRA to the model that it"),
    ],
)
def test_a_file_of_other_options_is_refused_with_both_values(
    tiny_prior: Path, tmp_path: Path, other: dict[str, Any], said: str
) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    train_lora(model, "prior", lora_config()).save(model, tmp_path)
    changed, weights = tiny_model("prior", tiny_prior, tiny_prior), make_weights(lora_config(**other), "prior")
    weights.prepare(changed, seed=0)
    with pytest.raises(KcacheError) as error:
        weights.load(changed, tmp_path)
    assert said in str(error.value)


# --- whole weights, by the same interface


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_whole_weights_are_saved_in_the_hubs_layout_and_loaded_exactly(
    stage: str, model: Any, tiny_prior: Path, tiny_decoder: Path, tmp_path: Path
) -> None:
    weights = make_weights(WHOLE, SUBFOLDERS[stage])
    weights.prepare(model, seed=0)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.01)
    weights.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [weights.result] == [SUBFOLDERS[stage]]
    names = {path.name for path in (tmp_path / weights.result).iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    other = tiny_model(stage, tiny_prior, tiny_decoder)
    weights.load(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["cut", "lacks a tensor", "another shape"])
def test_whole_weights_that_are_not_all_there_are_refused(tiny_prior: Path, tmp_path: Path, damage: str) -> None:
    model, weights = tiny_model("prior", tiny_prior, tiny_prior), make_weights(WHOLE, "prior")
    weights.save(model, tmp_path)
    path = tmp_path / "prior" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "lacks a tensor":
        rewrite(path, lambda tensors: tensors.pop("proj_in.weight"))
    else:
        rewrite(path, lambda tensors: tensors.update({"proj_in.weight": torch.zeros(16, 15)}))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(KcacheError, match=r"prior does not load \(cut, damaged.*; resume from another checkpoint"):
        weights.load(model, tmp_path)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_whole_run_and_one_of_a_lora_do_not_go_on_from_each_other(tiny_prior: Path, tmp_path: Path) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    train_lora(model, "prior", lora_config()).save(model, tmp_path)
    with pytest.raises(KcacheError, match="is of a run with --lora; add --lora and its options to go on with it"):
        make_weights(WHOLE, "prior").load(tiny_model("prior", tiny_prior, tiny_prior), tmp_path)
